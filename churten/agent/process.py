# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that are a child process."""

import _signal as signal  # type: ignore[import-not-found]  # `signal` itself would import enum at every start
import errno
import os
import select
import struct
import time

from churten.agent.child import become_child, login_child
from churten.agent.frames import (
    BODY_MAX,
    F_END,
    REST_MAX,
    STDERR,
    STDOUT,
    T_ACCEPTED,
    T_DATA,
    T_EXIT,
    T_WINDOW,
    WINDOW,
    Failure,
    ProtocolError,
    pack,
)
from churten.agent.shell import Plain


class Process:
    """A child with stdout and stderr pipes, perhaps stdin: RUN and EXEC.

    starting -> running -> ended (reaped, draining) -> answered. Killing is a
    matter of its own: TERM to the group, after 2 s KILL, the child left as a
    zombie until then so that its group number stays ours."""

    KILL_AFTER = 2.0
    DRAIN = 0.5  # longest wait for pipes a background process keeps open
    QUIET = 0.1  # ... and it ends after so long without data

    def __init__(self, agent, request, timeout_ms):
        self.agent, self.request = agent, request
        self.pid = None
        self.pipes = {}  # fd -> stream number
        self.buffers = {STDOUT: bytearray(), STDERR: bytearray()}
        self.credit = WINDOW
        self.stdin = None
        self.stdin_buffer, self.stdin_end = bytearray(), False
        self.stdin_credit = WINDOW
        self.stdin_given = 0  # bytes of the agent's own in the buffer
        self.cancelled = False
        self.status, self.elapsed = None, 0
        self.deadline = None
        self.timeout = timeout_ms / 1000.0
        self.kill_at = None
        self.zombie = False
        self.drain_until = self.quiet_until = None
        self.truncated = 0
        self.learn = None
        self.makes = None  # a folder
        self.flag = None  # memory in which the child says that it did what is asked of it
        self.flagged = False  # it did
        self.standing = None  # the Standing that this child is or may become
        self.otherwise = None  # what to do if a standing child did not do it
        self.is_act = self.said_accepted = False
        self.is_late = False  # its child may yet find that it cannot: ACCEPTED waits
        self.on_end = None  # called with the wait status instead of EXIT

    def start(self, child, stdin=None, standing=None):
        """Forks; `child` is called in the child and must not return. stdin:
        None for /dev/null, bytes to begin with (END by close_stdin). standing:
        what the child may become."""
        agent, pipes = self.agent, []
        try:
            for _ in range(2 if stdin is None else 3):
                pipes.append(os.pipe())
            (out_r, out_w), (err_r, err_w) = pipes[:2]
            agent.own_fds.update(fd for pair in pipes for fd in pair)
            begun = time.monotonic()
            self.pid = agent.fork()
            if self.pid == 0:
                try:
                    in_r = pipes[2][0] if stdin is not None else None
                    become_child(agent, in_r, out_w, err_w, standing)
                    child()
                except BaseException as error:
                    os.write(2, ("agent's child: %r\n" % error).encode())
                finally:
                    os._exit(255)
        except OSError as error:
            for pair in pipes:
                for fd in pair:
                    agent.own_fds.discard(fd)
                    os.close(fd)
            if standing is not None:
                standing.gone()
            raise Failure("agent", "agent", "cannot start a process: %s" % error)
        self.begun = begun
        agent.close(out_w)
        agent.close(err_w)
        if standing is not None:
            self.standing = standing
            standing.started(self, (out_r, err_r))
        for fd, stream in ((out_r, STDOUT), (err_r, STDERR)):
            os.set_blocking(fd, False)
            self.pipes[fd] = stream
            agent.watch(fd, select.POLLIN, self.on_output)
        if stdin is not None:
            agent.close(pipes[2][0])
            self.stdin = pipes[2][1]
            os.set_blocking(self.stdin, False)
            self.stdin_buffer += stdin
            self.stdin_given = len(stdin)
            self.feed()
        if self.timeout:
            self.deadline = begun + self.timeout
        if not self.is_late:
            self.accepted()

    def take(self, standing, message):
        """Instead of start(): gives `message` to a child that stands. False: it could
        not be given, and the child has gone."""
        self.begun = time.monotonic()
        if not standing.give(self, message):
            return False
        self.standing, self.pid = standing, standing.pid
        for fd, stream in zip(standing.fds, (STDOUT, STDERR)):
            self.pipes[fd] = stream
            self.agent.watch(fd, select.POLLIN, self.on_output)
        if self.timeout:
            self.deadline = self.begun + self.timeout
        return True

    def stood(self, said):
        """The child has done it, and stands: all it wrote is in the pipes."""
        if self.cancelled or self.kill_at is not None:
            return  # it is being killed
        standing, self.standing, self.pid = self.standing, None, None
        for fd in list(self.pipes):
            self.read(fd, 4 * WINDOW)
            self.agent.unwatch(fd)
        whole = len(self.pipes) == 2
        self.pipes.clear()
        standing.stands(whole)
        otherwise, self.otherwise = self.otherwise, None
        if not self.is_act:
            self.ended((said, 0))
        elif said:
            self.accepted()
            if self.makes:
                self.agent.made_folder(self.makes)
            self.ended((0, 0))
        else:
            self.again(otherwise)

    def accepted(self):
        if not self.said_accepted:
            self.said_accepted = True
            self.agent.send(T_ACCEPTED, b"", self.request)

    # stdin

    def on_data(self, flags, body):
        self.stdin_credit -= len(body)
        if self.stdin_credit < -BODY_MAX:
            raise ProtocolError("window passed")
        if self.stdin is None:
            self.consumed(len(body))
        else:
            self.stdin_buffer += body
        if flags & F_END:
            self.stdin_end = True
        self.feed()

    def consumed(self, count):
        own = min(count, self.stdin_given)
        self.stdin_given -= own
        count -= own
        self.stdin_credit += count
        if count:
            self.agent.send(T_WINDOW, struct.pack(">I", count), self.request)

    def feed(self, fd=None, events=0):
        if self.stdin is None:
            return
        if self.stdin_buffer:
            try:
                count = os.write(self.stdin, bytes(self.stdin_buffer[:BODY_MAX]))
            except BlockingIOError:
                count = 0
            except OSError:  # it closed its stdin: the rest is for nobody
                count = len(self.stdin_buffer)
                self.agent.close(self.stdin)
                self.stdin = None
            del self.stdin_buffer[:count]
            self.consumed(count)
        if self.stdin is None:
            return
        if self.stdin_buffer:
            self.agent.watch(self.stdin, select.POLLOUT, self.feed)
        elif self.stdin_end:
            self.agent.close(self.stdin)
            self.stdin = None
        else:
            self.agent.unwatch(self.stdin)

    # output

    def on_window(self, count):
        self.credit += count
        self.advance()

    def on_output(self, fd, events):
        self.read(fd, BODY_MAX)
        self.advance()

    def read(self, fd, most):
        """Reads what is there, up to about `most`; closes the pipe at its end."""
        stream = self.pipes[fd]
        while most > 0:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.agent.close(fd)
                del self.pipes[fd]
                return
            self.buffers[stream] += data
            most -= len(data)
            if self.drain_until:
                self.quiet_until = time.monotonic() + self.QUIET
            if len(data) < 4096 and self.status is None and self.pid is not None:
                return  # the rest can wait for the next turn

    def send_output(self, keep):
        for stream, buffer in self.buffers.items():
            while len(buffer) > keep and self.credit > 0:
                self.accepted()
                part = bytes(buffer[: min(self.credit, BODY_MAX)])
                del buffer[: len(part)]
                self.credit -= len(part)
                self.agent.send(T_DATA, part, self.request, stream << 2)
            if self.cancelled and len(buffer) > keep:
                del buffer[keep:]  # nobody opens the window any more

    def advance(self):
        self.send_output(REST_MAX)
        if self.drain_until is not None:
            self.maybe_answer()
            return
        for fd, stream in self.pipes.items():
            if len(self.buffers[stream]) > BODY_MAX:
                self.agent.unwatch(fd)  # back pressure: the child waits
            else:
                self.agent.watch(fd, select.POLLIN, self.on_output)

    # the end

    def on_sigchld(self):
        if self.pid is None or self.zombie:
            return
        if self.kill_at is not None and hasattr(os, "waitid"):
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if info is None:
                return
            self.zombie = True
            if self.agent.ending:  # what else is in its group: hurry up
                self.kill_at = min(self.kill_at, time.monotonic() + 0.2)
            code = info.si_status
            killed = info.si_code != os.CLD_EXITED
            self.ended((-1, code) if killed else (code, 0))
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.pid = None
            if os.WIFSIGNALED(status):
                self.ended((-1, os.WTERMSIG(status)))
            else:
                self.ended((os.WEXITSTATUS(status), 0))

    def ended(self, status):
        self.elapsed = int((time.monotonic() - self.begun) * 1e6)
        self.status = status
        self.deadline = None
        if self.standing is not None and self.left_standing():
            return
        if self.learn is not None:
            self.agent.learned(self)
        if self.flag is not None:
            self.flagged = self.flag[0] == 1
            if self.flagged and self.makes:
                self.agent.made_folder(self.makes)
            self.flag.close()
            self.flag = None
        now = time.monotonic()
        for fd in list(self.pipes):
            self.read(fd, 4 * WINDOW)
        self.drain_until, self.quiet_until = now + self.DRAIN, now + self.QUIET
        self.send_output(REST_MAX)
        for fd in self.pipes:
            self.agent.watch(fd, select.POLLIN, self.on_output)
        self.maybe_answer()

    def left_standing(self):
        """The child has gone. One that stood, and had not begun with this, was killed
        for another reason: whether the request begins anew."""
        standing, self.standing = self.standing, None
        otherwise, self.otherwise = self.otherwise, None
        begun = standing.begun[0]
        standing.gone()
        if otherwise is None:
            return False
        if begun or self.cancelled:
            self.accepted()
            return False
        self.close_fds()
        self.status = None
        self.again(otherwise)
        return True

    def again(self, otherwise):
        try:
            otherwise()
        except Failure as failure:
            self.agent.fail(self.request, failure)

    def maybe_answer(self):
        full = max(len(buffer) for buffer in self.buffers.values())
        if self.pipes:
            if time.monotonic() < min(self.drain_until, self.quiet_until):
                return
            self.truncated = 1
            self.close_fds()
        if full <= REST_MAX and self.agent.jobs.get(self.request) is self:
            self.answer()  # else when the WINDOW for the rest comes

    def answer(self):
        self.close_fds()
        if self.on_end is not None:
            self.on_end(self)
        else:
            self.say_exit()
        del self.agent.jobs[self.request]
        if self.zombie:
            self.agent.leaving.append(self)

    def say_exit(self):
        body = pack(
            [self.status[0], self.status[1], self.elapsed,
             bytes(self.buffers[STDOUT]), bytes(self.buffers[STDERR]),
             self.truncated]
        )  # fmt: skip
        self.agent.send(T_EXIT, body, self.request)

    def close_fds(self):
        for fd in list(self.pipes):
            self.agent.close(fd)
        self.pipes.clear()
        if self.stdin is not None:
            self.agent.close(self.stdin)
            self.stdin = None

    # time and killing

    def next_time(self):
        times = [t for t in (self.deadline, self.kill_at) if t is not None]
        if self.drain_until is not None and self.pipes:
            times.append(min(self.drain_until, self.quiet_until))
        return min(times) if times else None

    def on_time(self, now):
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self.cancel()
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = None
            self.kill(signal.SIGKILL)
            if self.zombie:
                self.zombie = False
                os.waitpid(self.pid, 0)
                self.pid = None
        if self.drain_until is not None:
            self.maybe_answer()

    def alone(self):
        """Nobody listens any more: no more input, its output goes nowhere."""
        self.stdin_end = self.cancelled = True
        self.credit = 0
        self.feed()
        self.advance()

    def cancel(self):
        self.cancelled = True
        self.send_output(REST_MAX)
        if self.drain_until is not None:
            self.maybe_answer()
        if self.pid is not None and self.kill_at is None and self.status is None:
            self.kill(signal.SIGTERM)
            self.kill_at = time.monotonic() + self.KILL_AFTER

    def kill(self, signum):
        for action in (os.killpg, os.kill):
            try:
                action(self.pid, signum)
                return
            except OSError as error:  # no group yet: setsid is still to come
                if error.errno != errno.ESRCH:
                    return


class Probe(Process):
    """Asks the account's shells, as an EXEC would reach them, what the words of
    core's texts mean there. Nobody waits for it; its finding holds for a minute."""

    NUMBER = -1  # among the jobs; requests have others
    AGE = 60.0
    TEXT = (
        "/bin/sh -c 'for name in echo umask mkdir chmod rm sleep; do command -v $name"
        ' || exit 1; done; echo "$PATH"; echo "$HOME"\''
    )

    def __init__(self, agent):
        Process.__init__(self, agent, self.NUMBER, 5000)
        self.on_end = self.judge

    def child(self):
        environ = self.agent.environ
        os.write(1, Plain.now(environ) + b"\n")
        login_child(self.agent, self.TEXT, environ)

    def accepted(self):
        pass

    def send_output(self, keep):
        for buffer in self.buffers.values():
            del buffer[REST_MAX:]

    def alone(self):
        self.cancel()

    def judge(self, job):
        lines = bytes(self.buffers[STDOUT]).split(b"\n")
        whole = self.status == (0, 0) and not self.truncated and len(lines) == 10
        if not whole or self.buffers[STDERR] or lines[1:3] != [b"echo", b"umask"]:
            return
        for name, path in zip(Plain.PROGRAMS, lines[3:7]):
            if path not in (b"/bin/" + name.encode(), b"/usr/bin/" + name.encode()):
                return
        self.agent.plain = Plain(lines[0], lines[3:7], lines[7], lines[8])
