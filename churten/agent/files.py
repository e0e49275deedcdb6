# SPDX-License-Identifier: GPL-3.0-or-later
"""PUT and FETCH."""

import errno
import os
import stat
import struct
import time

from churten.agent.frames import BODY_MAX, F_END, PIPE, T_WINDOW, WINDOW, Failure, number, text, unpack


class Put:
    """PUT: DATA frames into a temporary file beside, then a rename."""

    def __init__(self, agent, request, body):
        path, mode, size = unpack(body, 3)[:3]
        self.agent, self.request = agent, request
        self.masked = mode[:1] == b"~"
        self.mode = int(mode.lstrip(b"~"), 8) if mode else None
        self.size, self.got = number(size, -1), 0
        self.begun = time.monotonic()
        self.path = os.path.realpath(path)
        self.temp = None
        self.fd = None
        self.old = None
        self.open()

    def open(self):
        try:
            self.old = os.stat(self.path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
        if self.old is not None and self.in_place():
            self.fd = os.open(self.path, os.O_WRONLY | os.O_TRUNC | os.O_NOCTTY)
        else:
            temp = self.path + b".churten-" + os.urandom(6).hex().encode()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            mode = 0o600
            if self.old is None and (self.masked or self.mode is None):
                mode = self.mode if self.masked else 0o666
            try:
                self.fd = os.open(temp, flags, mode)
                self.temp = temp
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG):
                    raise
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                self.fd = os.open(self.path, flags, 0o666)
        if self.temp and self.old is not None:
            try:
                os.fchown(self.fd, self.old.st_uid, self.old.st_gid)
                os.fchmod(self.fd, stat.S_IMODE(self.old.st_mode))
            except OSError:  # not ours to give: write into the old file
                self.drop()
                self.fd = os.open(self.path, os.O_WRONLY | os.O_TRUNC)
        self.agent.own_fds.add(self.fd)
        if self.size > PIPE:
            self.agent.widen(self.agent.control_in)

    def in_place(self):
        """Whether a new file could not be all the old one was."""
        if self.old.st_nlink > 1:
            return True
        try:
            names = os.listxattr(self.path)
        except (AttributeError, OSError):
            return False
        return any(name != "security.selinux" for name in names)

    def on_data(self, flags, body):
        with memoryview(body) as part:
            self.write(part)
        self.on_end(flags, len(body))

    def write(self, part):
        """Of a frame's body; what cannot be written ends the request."""
        try:
            at = 0
            while at < len(part) and self.fd is not None:
                at += os.write(self.fd, part[at:])
            self.got += at
        except OSError as error:
            self.failed(error)

    def on_end(self, flags, size):
        """Of a frame, whose body had so many bytes."""
        if self.fd is None:
            return
        try:
            if flags & F_END:
                self.finish()
            elif size:
                self.agent.send(T_WINDOW, struct.pack(">I", size), self.request)
        except OSError as error:
            self.failed(error)

    def failed(self, error):
        self.drop()
        self.agent.fail(self.request, file_failure(error, self.path))

    def finish(self):
        if self.size >= 0 and self.got != self.size:
            self.drop()
            message = "%d of %d bytes came" % (self.got, self.size)
            self.agent.fail(self.request, Failure("file", "file", message, 1))
            return
        if self.mode is not None and not self.masked:
            os.fchmod(self.fd, self.mode)
        self.agent.close(self.fd)
        self.fd = None
        if self.temp:
            os.rename(self.temp, self.path)
            self.temp = None
        self.agent.exit_zero(self)

    def drop(self):
        if self.fd is not None:
            self.agent.close(self.fd)
            self.fd = None
        if self.temp:
            try:
                os.unlink(self.temp)
            except OSError:
                pass
            self.temp = None

    def cancel(self):
        self.drop()
        self.agent.fail(self.request, Failure("cancelled", "file", "cancelled", 1))

    def on_window(self, count):
        pass


class Fetch:
    """FETCH: a file as DATA frames, as the window allows."""

    def __init__(self, agent, request, body):
        (path,) = unpack(body, 1)[:1]
        self.agent, self.request = agent, request
        self.begun = time.monotonic()
        self.path, self.credit = path, WINDOW
        self.fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        agent.own_fds.add(self.fd)
        info = os.fstat(self.fd)
        self.mode = info.st_mode
        if info.st_size > PIPE:
            agent.widen(agent.control_out)
        if stat.S_ISDIR(self.mode):
            self.drop()
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))

    def on_window(self, count):
        self.credit += count

    def ready(self):
        return self.fd is not None and self.credit > 0

    def pump(self):
        try:
            data = os.read(self.fd, min(BODY_MAX, self.credit))
        except OSError as error:
            self.drop()
            self.agent.fail(self.request, file_failure(error, self.path))
            return
        self.credit -= len(data)
        flags = 0 if data else F_END
        self.agent.send_data(data, self.request, flags)
        if not data:
            self.drop()
            self.agent.exit_zero(self, b"%o" % stat.S_IMODE(self.mode))

    def drop(self):
        if self.fd is not None:
            self.agent.close(self.fd)
            self.fd = None

    def cancel(self):
        self.drop()
        self.agent.fail(self.request, Failure("cancelled", "file", "cancelled", 1))

    def on_data(self, flags, body):
        pass


def file_failure(error, path, started=1):
    message = "%s: %s" % (text(path), error.strerror or error)
    return Failure("file", "file", message, started)
