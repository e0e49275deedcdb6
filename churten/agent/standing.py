# SPDX-License-Identifier: GPL-3.0-or-later
"""The standing child.

Forking a warm interpreter and touching its pages costs a target several times what
a module such as `command` or `copy` takes itself. So a child that has run a module of
which the client says that all of it is core's own (RUN's `stays`) waits for the next
RUN of the same payload, if by then nothing can tell it from a child just forked. That
is not believed but looked at, by State.restore(): the names and values of modules, and
what the kernel keeps of a process. Globals are put back; anything else that is not as
it was, a thread, a process left behind, one descriptor too many, ends the child as
any other ends, and the next run gets a new one. Messages to it: u32 length and a
body, RUN's own or pack(ACT...); its answer is one byte, the status (RUN), or whether
it could (ACT).

It is in the agent's session, in a process group of its own: so it can leave that
group for a moment and ask whether anybody is still in it.
"""

import _signal as signal  # type: ignore[import-not-found]  # `signal` itself would import enum at every start
import gc
import os
import select
import struct
import sys
import time

from churten.agent.child import call_main, in_working_directory, interpreter_exit, leave, wind_up
from churten.agent.frames import Failure, unpack
from churten.agent.run import Run, like_a_start, run_module
from churten.agent.shell import Plain, shell_act
from churten.agent.state import State

ACT = b"act"
STANDING_BODY = 60 * 1024  # what a pipe takes at once; a longer RUN gets a new child


def can_stand():
    """Whether such children are possible here. With SELinux its library keeps the
    policy's contexts for the life of a process; without /proc nobody can look; with a
    terminal a group of its own would be in the background."""
    if not hasattr(gc, "freeze") or os.path.exists("/sys/fs/selinux/enforce"):
        return False
    try:
        with open("/proc/self/stat", "rb") as file:
            tty = file.read().rpartition(b")")[2].split()[4]
        os.listdir("/proc/self/task")
        return tty == b"0"
    except (OSError, IndexError):
        return False


def has_memory():
    """Whether a child of some 7 MB may stay: an eighth of the memory is free."""
    try:
        with open("/proc/meminfo", "rb") as file:
            lines = [line.split() for line in file.read(256).splitlines()]
        found = {line[0]: int(line[1]) for line in lines if len(line) == 3}
        return found[b"MemAvailable:"] * 8 > found[b"MemTotal:"]
    except (OSError, KeyError, ValueError):
        return False


def module_child(agent, library, run, learn, standing=None):
    """Runs the module as the stock wrapper does."""
    known = like_a_start(agent, library, run)
    if standing is not None:
        stand(agent, library, run, standing)
    status = interpreter_exit(lambda: run_module(library, run), learn, known)
    os._exit(status)


def stand(agent, library, run, standing):
    """Runs the module, and what comes after it, until the state is another. Ends the
    process."""
    state = State(agent)
    while True:
        status = run_standing(state, library, run)
        run, answer = None, bytes([status])
        while run is None:
            run = next_run(standing, answer)
            if not isinstance(run, Run):
                run, answer = None, bytes([act_here(agent, run)])
        in_working_directory(agent)
        time.tzset()


def run_standing(state, library, run):
    """Runs the module; returns its status if all is as before, else ends the process."""
    status = state.in_context(lambda: call_main(lambda: run_module(library, run)))
    threads = sys.modules["_thread"]._count() if "_thread" in sys.modules else 0
    if threads or status < 0:
        os._exit(leave(status))
    status = wind_up(status) & 0xFF
    if not state.restore():
        os._exit(status)
    return status


def next_run(standing, answer):
    """Says how the last one ended; the next message: a Run, or the items of an ACT."""
    source, sink = standing.theirs
    try:
        os.write(sink, answer)
        body = receive(source, int.from_bytes(receive(source, 4), "big"))
        standing.begun[0] = 1
    except BaseException:  # the agent has gone, or a signal came
        os._exit(255)
    items = unpack(body, 1)
    return items if items[0] == ACT else Run(body)


def receive(fd, size):
    data = b""
    while len(data) < size:
        part = os.read(fd, size - len(data))
        if not part:
            os._exit(0)
        data += part
    return data


def act_here(agent, items):
    """Does an ACT if all is as its Plain says; whether it could."""
    try:
        act = shell_act(items[1])
        plain = Plain(items[2], items[5:], items[3], items[4])
        in_working_directory(agent)
        if act is None or not plain.holds(agent.environ):
            return False
        said = act.do(plain)
    except (OSError, ValueError, KeyError):
        return False
    while said:
        said = said[os.write(1, said) :]
    return True


class Standing:
    """A child that may run a module more than once; see "the standing child".

    lent (to a Process) -> idle (between two) -> leaving -> reaped, or lent -> gone
    with the Process, which reaps it as any other child."""

    IDLE = 60.0  # seconds an idle one is kept, as a session
    MOST = 4  # idle ones

    zombie, status = False, None

    def __init__(self, agent, key):
        self.agent, self.key = agent, key
        self.pid = self.job = self.until = self.kill_at = None
        self.fds = ()  # the pipes of its output
        self.theirs = self.ours = ()  # where it reads and writes; where we do
        import mmap

        self.begun = mmap.mmap(-1, 1)  # it has what it was given
        try:
            (its_in, our_out), (our_in, its_out) = os.pipe(), os.pipe()
        except OSError as error:
            raise Failure("agent", "agent", "cannot start a process: %s" % error)
        self.theirs, self.ours = (its_in, its_out), (our_in, our_out)
        agent.own_fds.update(self.ours)

    def started(self, job, fds):
        for fd in self.theirs:
            os.close(fd)
        self.theirs = ()
        self.job, self.pid, self.fds = job, job.pid, fds
        for fd in self.ours:
            os.set_blocking(fd, False)
        self.agent.watch(self.ours[0], select.POLLIN, self.on_control)

    def give(self, job, message):
        """Lends it to `job`; whether it took the message."""
        self.agent.idle.remove(self)
        self.begun[0] = 0
        try:
            sent = os.write(self.ours[1], struct.pack(">I", len(message)) + message)
        except OSError:
            sent = 0
        if sent != len(message) + 4 or self.reaped():
            self.leave()
            return False
        self.job, self.until = job, None
        return True

    def on_control(self, fd, events):
        try:
            said = os.read(fd, 2)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if len(said) == 1 and self.job is not None:
            self.job.stood(said[0])
        elif self.job is not None:
            self.close_control()  # it is ending; SIGCHLD will say how
        else:
            self.agent.idle.remove(self)
            self.leave()

    def stands(self, whole):
        """Its Process is done with it; `whole`: its pipes are open."""
        self.job = None
        if not whole or self.agent.ending or self.key[0] != self.agent.ahead.age:
            self.leave()
            return
        idle = self.agent.idle
        idle.append(self)
        self.until = time.monotonic() + self.IDLE
        same = [one for one in idle if one.key == self.key]
        if len(same) > 2 or len(idle) > self.MOST:
            oldest = same[0] if len(same) > 2 else idle[0]
            idle.remove(oldest)
            oldest.leave()

    def gone(self):
        """Its Process has reaped it, and closes its pipes."""
        self.close_control()
        self.begun.close()
        self.pid = self.job = None

    def close_control(self):
        for fd in self.ours:
            self.agent.close(fd)
        for fd in self.theirs:
            os.close(fd)
        self.ours = self.theirs = ()

    def leave(self):
        """Ends it: it is idle, and goes when nobody holds the other end."""
        self.close_control()
        self.begun.close()
        for fd in self.fds:
            if fd in self.agent.own_fds:
                self.agent.close(fd)
        self.until, self.kill_at = None, time.monotonic() + 2.0
        if self.pid is not None:
            self.agent.leaving.append(self)

    def reaped(self):
        try:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                self.pid = None
        except ChildProcessError:
            self.pid = None
        return self.pid is None

    def on_sigchld(self):
        if self.job is None and self.pid is not None and self.reaped():
            if self in self.agent.idle:
                self.agent.idle.remove(self)
                self.leave()

    def next_time(self):
        return self.until if self.until is not None else self.kill_at

    def on_time(self, now):
        if self.until is not None:
            self.agent.idle.remove(self)
            self.leave()
        elif self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            self.kill_at = None
