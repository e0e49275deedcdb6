# SPDX-License-Identifier: GPL-3.0-or-later
"""What core asks of every shell.

Around each file that it puts on a target, core's shell plugin asks for a home,
a folder, permissions and the folder's removal: a dozen programs start for what
takes a few system calls. These texts, with nothing in them that a shell would
read as anything but plain paths, are done by the forked child itself: only where
a Probe has seen that the account's shells bring nothing of their own, and only
if all goes well. Else the child becomes the shell, as for any other command; how
far it has come makes no difference to that (`mkdir -p` finds what is there, `rm
-f` what is left), and the words of a failure are the shell's. It is a child of
its own because a folder of a hung file server must not hold the agent. Only what
is quick in a folder that such a child made just now is done without any.
"""

import os
import stat

from churten.agent.account import account_shell

SHELL_LEAD, SHELL_TAIL = b"/bin/sh -c '", b"'"
SHELL_PAUSE = b" && sleep 0"  # core 2.20 and older put it behind each
SHELL_PATH = rb"(?:/[\w.+:@%=,-]+)+"
SHELL_NAME = rb"ansible-tmp-[0-9.]+-[0-9]+-[0-9]+"
SHELL_PATTERNS = []  # (work, compiled pattern), once made
QUICK_FILES, QUICK_BYTES = 8, 16 * 1024 * 1024


class Act:
    """One of these texts: what does it, and with what."""

    def __init__(self, work, groups):
        self.work, self.groups = work, groups

    def do(self, plain):
        """Returns what the shell would print, or raises."""
        return self.work(plain, *self.groups)

    def makes(self):
        """The folder that it makes, or None."""
        return self.groups[1] if self.work is shell_folder else None

    def is_quick(self, made):
        """Whether it is a matter of moments in folders that were `made` just now."""
        if self.work is shell_permit:
            paths = [path.rstrip(b"/") for path in self.groups[1].split()]
            return all(path in made or os.path.dirname(path) in made for path in paths)
        if self.work is not shell_remove or self.groups[0] not in made:
            return False
        with os.scandir(self.groups[0]) as entries:
            sizes = [entry.stat(follow_symlinks=False).st_size for entry in entries]
        return len(sizes) <= QUICK_FILES and sum(sizes) <= QUICK_BYTES


def shell_act(command):
    """The Act that `command` is; None for any other command."""
    if not command.startswith(SHELL_LEAD) or not command.endswith(SHELL_TAIL):
        return None
    import re

    if not SHELL_PATTERNS:
        for act, pattern in (
            (shell_home, rb"echo ~([A-Za-z_][\w.-]*)?"),
            (
                shell_folder,
                rb'\( umask 77 && mkdir -p "` echo (PATH) `"&& mkdir "` echo (PATH) `"'
                rb' && echo (NAME)="` echo (PATH) `" \)',
            ),
            (shell_permit, rb"chmod u\+(r?w?x)((?: PATH/?)+)"),
            (shell_remove, rb"rm -f -r (PATH/NAME)/ > /dev/null 2>&1"),
        ):
            pattern = pattern.replace(b"PATH", SHELL_PATH).replace(b"NAME", SHELL_NAME)
            SHELL_PATTERNS.append((act, re.compile(pattern)))
    text = command[len(SHELL_LEAD) : -len(SHELL_TAIL)]
    if text.endswith(SHELL_PAUSE):
        text = text[: -len(SHELL_PAUSE)]
    for act, pattern in SHELL_PATTERNS:
        found = pattern.fullmatch(text)
        if found is not None and not re.search(rb"/\.\.?(?:[/ `]|$)", text):
            return Act(act, found.groups())
    return None


def shell_home(plain, name):
    import pwd
    import re

    home = os.fsencode(pwd.getpwnam(os.fsdecode(name)).pw_dir) if name else plain.home
    if not re.fullmatch(SHELL_PATH, home):
        raise ValueError(home)
    return home + b"\n"


def shell_folder(plain, parent, path, name, same):
    if path != same or path != parent + b"/" + name:
        raise ValueError(path)
    before = os.umask(0o77)
    try:
        os.makedirs(parent, exist_ok=True)
        os.mkdir(path)
    finally:
        os.umask(before)
    return name + b"=" + path + b"\n"


def shell_permit(plain, letters, paths):
    more = sum({"r": 0o400, "w": 0o200, "x": 0o100}[chr(c)] for c in letters)
    for path in paths.split():
        os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | more)
    return b""


def shell_remove(plain, path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    for name in os.listdir(fd):
        os.unlink(name, dir_fd=fd)  # a folder inside is for rm
    os.close(fd)
    os.rmdir(path)
    return b""


class Plain:
    """What a Probe found where shells do what these texts say and no more."""

    FILES = ("/bin/sh", "/etc/bash.bashrc", "/etc/bashrc", "/etc/profile.d")
    FILES_AT_HOME = (".bashrc", ".bashrc.d", ".bash_aliases")
    PROGRAMS = ("mkdir", "chmod", "rm", "sleep")

    def __init__(self, marks, programs, path, home):
        self.marks, self.programs = marks, programs
        self.path, self.home = path, home

    @staticmethod
    def now(environ):
        """Changes with the account's shell and with what it reads when it starts.
        Raises for a shell whose ways are not known."""
        shell, home = account_shell(), environ.get("HOME", "/")
        if os.path.basename(shell) not in ("sh", "dash", "bash") or "BASH_ENV" in environ:
            raise ValueError(shell)
        found = [shell]
        files = [os.path.join(home, name) for name in Plain.FILES_AT_HOME]
        for path in (shell,) + Plain.FILES + tuple(files):
            try:
                info = os.stat(path)
                found += [str(info.st_ino), str(info.st_size), str(info.st_mtime_ns)]
            except OSError:
                found.append("-")
        return os.fsencode(" ".join(found))

    def holds(self, environ):
        """Whether all is as it was when the probe looked (in the child)."""
        if self.now(environ) != self.marks:
            return False
        for name, program in zip(self.PROGRAMS, self.programs):
            for folder in self.path.split(b":"):
                path = folder + b"/" + name.encode()
                if os.access(path, os.X_OK):
                    break
            if path != program:
                return False
        return True
