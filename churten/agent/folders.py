# SPDX-License-Identifier: GPL-3.0-or-later
"""The folders that libraries are in, and what killed agents left of them."""

import os
import stat
import time

from churten.agent.frames import Failure
from churten.agent.library import LOCAL

ROOM = 16 * 1024 * 1024  # bytes that a place for a library should have to spare


def has_room(place):
    try:
        info = os.statvfs(place)
    except (AttributeError, OSError):
        return True  # nobody knows: mkdir will say
    files = info.f_favail or not info.f_files  # some filesystems count none
    return bool(files) and info.f_bavail * info.f_frsize >= ROOM


def make_folder(wanted, prefix):
    """A new 0700 directory in `wanted` or where tempfile would make one, in memory
    if these are full or read-only; a full one at last."""
    places = [wanted] + [os.environ.get(n) for n in ("TMPDIR", "TEMP", "TMP")]
    places += ["/tmp", "/var/tmp", "/usr/tmp", ".", "/dev/shm"]
    places = [os.path.realpath(os.path.expanduser(p)) for p in places if p]
    error = None
    # (sorted() keeps the order of those that are alike)
    for place in sorted(places, key=lambda p: not has_room(p)):
        folder = os.path.join(place, prefix + os.urandom(4).hex())
        try:
            os.mkdir(folder, 0o700)
            return folder
        except OSError as problem:
            error = problem
    raise Failure("agent", "agent", "no temporary directory: %s" % error)


SWEEP_AFTER = 2.0  # seconds from the first module on: nobody waits for it then
SWEEP_AGE = 86400  # a module may outlive its agent, and need its files
SWEEP_MOST = 10000  # names of a directory that are looked at


def lock_folder(folder):
    """A descriptor that holds the lock of a library's folder for as long as this agent,
    or job, lives, however it ends. None without locks or descriptors: then its age alone
    keeps others off."""
    import fcntl

    fd = None
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        if fd is not None:
            os.close(fd)
        fd = None
    return fd


def leave_library(library):
    """Gives its lock back, and removes it if nobody else holds one: the agent, or one of
    its jobs."""
    import fcntl

    folder = os.path.dirname(library.path)
    if library.lock is None:
        library.remove()
        return
    os.close(library.lock)
    library.lock = None
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        library.remove()
    except OSError:
        pass
    finally:
        os.close(fd)


def sweep(place):
    """Removes folders of libraries whose agents were killed, in a directory that
    others may write to: by descriptors, never through a link."""
    import re

    known = re.compile(r"(ansible_\w+_payload)_[0-9a-f]{8}")
    try:
        with os.scandir(place) as entries:
            for count, entry in enumerate(entries):
                if count >= SWEEP_MOST:
                    break
                match = known.fullmatch(entry.name)
                if match:
                    sweep_folder(entry.path, match.group(1) + ".zip")
    except OSError:
        pass


def sweep_folder(path, name):
    """Only one that is ours, old, unlocked, and holds a library and no more."""
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        info = os.fstat(fd)
        if (
            info.st_uid != os.geteuid()
            or stat.S_IMODE(info.st_mode) != 0o700
            or time.time() - info.st_mtime < SWEEP_AGE
        ):
            return
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        names = os.listdir(fd)
        if name not in names or not set(names) <= {name, name + ".new"}:
            return
        if not is_library(name, fd):
            return
        for one in names:
            os.unlink(one, dir_fd=fd)
        os.rmdir(path)
    except OSError:
        pass
    finally:
        os.close(fd)


def is_library(name, folder_fd):
    """Whether a zip file begins as Library does. Stock's folders have the same
    names, but another file first; their modules may still run."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(name, flags, dir_fd=folder_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        head = os.read(fd, LOCAL.size + 16)
    finally:
        os.close(fd)
    return head[:4] == b"PK\3\4" and head[LOCAL.size :] == b"sitecustomize.py"
