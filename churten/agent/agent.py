# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent: descriptors, its loop, frames, chains."""

import _signal as signal  # type: ignore[import-not-found]  # `signal` itself would import enum at every start
import gc
import os
import select
import sys
import time

from churten.agent.account import environ_at_start, locale_of, stock_sys_path
from churten.agent.ahead import Ahead
from churten.agent.chains import BROKEN, Chain, Link
from churten.agent.files import Fetch, Put, file_failure
from churten.agent.folders import leave_library, sweep
from churten.agent.frames import (
    BODY_MAX,
    F_LINK,
    F_SETPIPE_SZ,
    F_ZLIB,
    HEADER,
    MAGIC,
    PIPE_WIDE,
    T_CANCEL,
    T_CLOSE,
    T_DATA,
    T_EXEC,
    T_EXIT,
    T_FAILED,
    T_FETCH,
    T_HELLO,
    T_LOG,
    T_PAYLOAD,
    T_PING,
    T_PONG,
    T_PUT,
    T_RUN,
    T_START,
    T_WINDOW,
    VERSION,
    Failure,
    ProtocolError,
    frame,
    frame_at,
    inflate,
    number,
    pack,
    unpack,
)
from churten.agent.library import payload_of
from churten.agent.process import Process
from churten.agent.requests import Requests
from churten.agent.run import Run
from churten.agent.standing import can_stand
from churten.agent.state import Picture
from churten.agent.subagent import SubAgent


class Agent(Requests):
    def __init__(self, nonce, interpreters):
        self.nonce, self.interpreters = nonce, interpreters
        self.jobs = {}  # request -> Process, Put, Fetch
        self.sweep_at, self.sweep_where = None, set()  # places of libraries
        self.subs = {}  # agent number -> SubAgent
        self.leaving = []  # killed, but not reaped yet
        self.idle = []  # Standing children, the one longest idle first
        self.may_stand, self.picture = False, Picture()
        self.is_picture_due = False
        self.payloads = {}
        self.libraries = []
        self.chains = {}  # token -> Chain, oldest first
        self.links = {}  # request -> its Chain, until it has ended
        self.own_fds = set()
        self.handlers = {}
        self.poll = select.poll()
        self.input, self.out = bytearray(), bytearray()
        self.rest = None  # of a file's frame: request, flags, length, bytes to come
        self.page = None  # where they are read into
        self.ending = self.killed = False  # killed: by a signal
        self.stale = False  # the interpreter's file has changed
        self.plain, self.probed = None, float("-inf")  # a Plain; when it was asked for
        self.made = {}  # folder that a child made itself -> when
        self.signalled = False

    # descriptors

    def watch(self, fd, events, handler):
        known = self.handlers.get(fd)
        if known is None:
            self.poll.register(fd, events)
        elif known[0] != events:
            self.poll.modify(fd, events)
        self.handlers[fd] = (events, handler)

    def unwatch(self, fd):
        if self.handlers.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def close(self, fd):
        self.unwatch(fd)
        self.own_fds.discard(fd)
        os.close(fd)

    def fork(self):
        """In the child signals stay blocked until become_child: one that comes
        before must not end in the agent's handlers there."""
        if hasattr(gc, "freeze"):
            gc.freeze()
        signal.pthread_sigmask(signal.SIG_BLOCK, self.signals_at_start)
        pid = None
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                signal.pthread_sigmask(signal.SIG_SETMASK, self.mask_at_start)
        return pid

    def send(self, kind, body, request=0, flags=0, agent=0):
        self.out += frame(kind, body, request, agent, flags)
        if request in self.links:
            self.link_said(kind, request, body)

    def send_data(self, data, request, flags):
        """As send, of a file: without a copy of the frame."""
        self.out += HEADER.pack(
            MAGIC, VERSION, T_DATA, flags, 0, 0, 0, request, len(data)
        )
        self.out += data

    def log(self, level, message):
        self.send(T_LOG, pack([level, message]))

    def fail(self, request, failure, agent=0):
        self.jobs.pop(request, None)
        self.send(T_FAILED, pack(failure.items), request, 0, agent)

    def exit_zero(self, job, out=b""):
        self.jobs.pop(job.request, None)
        elapsed = int((time.monotonic() - job.begun) * 1e6)
        self.send(T_EXIT, pack([0, 0, elapsed, out, b"", 0]), job.request)

    # start

    def start(self):
        """Takes stdin and stdout for the frames, and leaves /dev/null there."""
        import fcntl

        self.pid, self.may_stand = os.getpid(), can_stand()
        at_start = frozenset(sys.modules)
        self.dont_write_bytecode = sys.dont_write_bytecode
        sys.dont_write_bytecode = True
        self.environ = environ_at_start()
        try:
            self.cwd = os.getcwd()
        except OSError:
            self.cwd = None
        stock_sys_path(self.cwd)
        self.locale = locale_of(self.environ)
        self.ahead = Ahead(at_start)
        self.control_in = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
        self.control_out = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        wake_r, self.wake_w = os.pipe()
        for fd in (self.control_in, self.control_out, wake_r, self.wake_w):
            os.set_blocking(fd, fd == self.control_out)
            self.own_fds.add(fd)
        self.signals_at_start = {}
        self.mask_at_start = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        for name in ("SIGCHLD", "SIGTERM", "SIGHUP", "SIGINT"):
            signum = getattr(signal, name)
            self.signals_at_start[signum] = signal.getsignal(signum)
            if name == "SIGCHLD" or self.signals_at_start[signum] != signal.SIG_IGN:
                signal.signal(signum, self.on_signal)
        signal.set_wakeup_fd(self.wake_w)
        self.watch(wake_r, select.POLLIN, self.on_wake)
        self.watch(self.control_in, select.POLLIN, self.on_input)
        gc.disable()
        self.executable = self.executable_state()
        self.out += b"\nCHURTEN-" + self.nonce + b"-READY\n"
        self.hello()
        # Requests may have been sent with the start. Nothing of them begins before
        # this is out: who never hears it knows that nothing began.
        self.flush()
        os.set_blocking(self.control_out, False)

    def hello(self):
        from _frozen_importlib_external import MAGIC_NUMBER

        info = [
            "python", sys.executable or "",
            "version", "%d.%d.%d" % sys.version_info[:3],
            "magic", MAGIC_NUMBER.hex(),
            "pid", os.getpid(),
            "uid", os.getuid(),
            "platform", sys.platform,
            "home", os.path.expanduser("~"),
            "hostname", os.uname().nodename,
            "interpreters", self.interpreters,
            "path", os.environ.get("PATH", ""),
        ]  # fmt: skip
        self.send(T_HELLO, pack(info))

    def executable_state(self):
        try:
            info = os.stat(sys.executable)
            return info.st_dev, info.st_ino, info.st_mtime
        except (OSError, TypeError, ValueError):
            return None

    # the loop

    def on_signal(self, signum, stack):
        self.signalled = True
        if signum != signal.SIGCHLD:
            self.ending = self.killed = True

    def on_wake(self, fd, events):
        try:
            os.read(fd, 4096)
        except OSError:
            pass

    def loop(self):
        while not self.ending:
            self.turn(self.next_time())
            if self.stale and not (self.jobs or self.subs or self.out):
                break
        self.shutdown()

    def turn(self, until):
        fetches = self.fetches()
        wait = None
        if until is not None:
            wait = max(0, int((until - time.monotonic()) * 1000) + 1)
        if fetches:
            wait = 0
        for fd, events in self.poll.poll(wait):
            known = self.handlers.get(fd)
            if known is not None:
                known[1](fd, events)
        if self.signalled:
            self.signalled = False
            for job in self.everyone():
                job.on_sigchld()
        now = time.monotonic()
        for job in self.everyone():
            due = job.next_time()
            if due is not None and now >= due:
                job.on_time(now)
        self.leaving = [job for job in self.leaving if job.pid is not None]
        if self.sweep_at is not None and now >= self.sweep_at:
            self.sweep_at = None
            while self.sweep_where:
                sweep(self.sweep_where.pop())
        if not self.ending:
            self.take_frames()
            self.begin_links()
        for fetch in fetches:
            if fetch.ready():
                fetch.pump()
        self.flush()
        if self.is_picture_due and not self.jobs:
            self.is_picture_due = False
            self.take_picture()

    def everyone(self):
        """All that have a child process."""
        jobs = [job for job in self.jobs.values() if isinstance(job, Process)]
        return jobs + list(self.subs.values()) + self.leaving + self.idle

    def fetches(self):
        if len(self.out) > BODY_MAX:
            return []
        return [
            job
            for job in self.jobs.values()
            if isinstance(job, Fetch) and job.ready()
        ]

    def next_time(self):
        times = [job.next_time() for job in self.everyone()] + [self.sweep_at]
        times = [t for t in times if t is not None]
        return min(times) if times else None

    def flush(self, fd=None, events=0):
        try:
            while self.out:
                with memoryview(self.out) as view, view[:BODY_MAX] as part:
                    count = os.write(self.control_out, part)
                del self.out[:count]
        except BlockingIOError:
            self.watch(self.control_out, select.POLLOUT, self.flush)
            return
        except OSError:
            self.ending = True
            self.out.clear()
        self.unwatch(self.control_out)

    def outlive(self):
        """The connection has gone. What runs goes on to its end, as under a plain
        sshd; a signal still ends it."""
        for job in self.everyone():
            if isinstance(job, SubAgent):
                if job.state == "up":
                    job.close_stdin()
                else:
                    job.stop()
            elif isinstance(job, Process):
                job.alone()
        while not self.killed and (self.subs or self.leaving or self.jobs):
            self.turn(self.next_time())

    def shutdown(self):
        self.ending = True
        for request, job in list(self.jobs.items()):
            if not isinstance(job, Process):
                job.drop()
                del self.jobs[request]
        self.unwatch(self.control_in)
        while self.idle:
            self.idle.pop().leave()
        if not self.killed:
            self.outlive()
        jobs = self.everyone()
        for job in jobs:
            if isinstance(job, SubAgent):
                job.stop()
            elif isinstance(job, Process) and job.pid is not None and job.status is None:
                job.cancel()
        until = time.monotonic() + 3.5
        while time.monotonic() < until:
            waiting = [j for j in jobs if j.pid is not None and j.kill_at is not None]
            if not waiting:
                break
            times = [j.next_time() for j in waiting if j.next_time() is not None]
            self.turn(min([until] + times))
        for library in self.libraries:
            leave_library(library)

    # frames

    def on_input(self, fd, events):
        most, until = BODY_MAX, time.monotonic() + 0.1
        while not self.ending:
            try:
                if self.rest is not None:
                    self.take_rest(fd)
                    most = HEADER.size  # probably of the file's next frame
                    if time.monotonic() < until:
                        continue
                    return
                data = os.read(fd, most)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.ending = True
                return
            self.input += data
            self.take_frames()
            if self.rest is None:
                return

    def begin_rest(self, at):
        """An incomplete frame at `at`: if it is of a file, what there is of it is
        written and the rest as it comes, not kept. Returns where the next begins."""
        if len(self.input) - at < HEADER.size:
            return at
        _, _, kind, flags, _, index, _, request, length = HEADER.unpack_from(
            self.input, at
        )
        job = self.jobs.get(request)
        if kind != T_DATA or flags & F_ZLIB or index or not isinstance(job, Put):
            return at
        with memoryview(self.input) as view, view[at + HEADER.size :] as part:
            self.rest = request, flags, length, length - len(part)
            job.write(part)
        return len(self.input)

    def take_rest(self, fd):
        request, flags, length, left = self.rest
        if self.page is None:
            self.page = bytearray(BODY_MAX)
        job = self.jobs.get(request)
        with memoryview(self.page) as view, view[:left] as place:
            count = os.readv(fd, [place])
            if not count:
                self.ending = True
            elif isinstance(job, Put):
                with place[:count] as part:
                    job.write(part)
        self.rest = request, flags, length, left - count
        if left == count:
            self.rest = None
            if isinstance(job, Put):
                job.on_end(flags, length)
                self.flush()

    def widen(self, fd):
        """Files go faster through a wider pipe, if it is one."""
        import fcntl

        try:
            fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_WIDE)
        except OSError:
            pass

    def closing(self):
        """A request may be about the account of a sub-agent that was closed
        before: it waits until that one has gone, or will not go."""
        return any(isinstance(job, SubAgent) and job.kill_at for job in self.leaving)

    def take_frames(self):
        at = 0
        while True:
            head = frame_at(self.input, at)
            if head is None:
                at = self.begin_rest(at)
                break
            kind, flags, index, request, length = head
            if kind in (T_RUN, T_EXEC) and self.closing():
                break
            end = at + HEADER.size + length
            link = flags & F_LINK and kind in (T_RUN, T_EXEC, T_PUT)
            waits = isinstance(self.jobs.get(request), Link)
            if index and kind != T_START and not (link or waits):
                self.on_sub_frame(index, kind, request, self.input[at:end])
            else:
                body = bytes(self.input[at + HEADER.size : end])
                if flags & F_ZLIB:
                    body = inflate(body, kind)
                if link:
                    part = self.input[at:end]
                    part[4] &= ~F_LINK
                    self.on_link((kind, index, request), body, part)
                else:
                    self.on_frame(kind, flags, index, request, body)
            at = end
        del self.input[:at]

    # chains

    def on_link(self, head, body, part):
        request = head[2]
        token, turn, rc, out, err = unpack(unpack(body, 1)[-1], 5)[:5]
        turn = number(turn)
        if request in self.jobs or request in self.links or request == 0:
            raise ProtocolError("request number in use")
        link = self.jobs[request] = Link(self, head, body, part)
        chain = self.chains.get(token)
        if chain is None and turn == 0:
            self.forget_chains()
            chain = self.chains[token] = Chain()
        if chain is None or not chain.takes(turn):
            link.fail("chain", BROKEN)
            return
        chain.held[turn] = link
        chain.foretold[request] = turn, head[1], rc, out, err
        self.links[request] = chain

    def forget_chains(self):
        if len(self.chains) < Chain.MOST:
            return
        for token in [t for t, chain in self.chains.items() if not chain.foretold]:
            del self.chains[token]

    def begin_links(self):
        """Those whose turn it is, as long as beginning one ends it."""
        todo = True
        while todo and self.links:
            todo = [c for c in set(self.links.values()) if c.turn in c.held]
            for chain in todo:
                chain.held.pop(chain.turn).begin()

    def link_said(self, kind, request, body):
        if kind in (T_EXIT, T_FAILED):
            self.links.pop(request).ended(kind, request, body)
        elif kind == T_DATA:
            self.links[request].spilled.add(request)

    def break_links(self, index):
        """A sub-agent has gone: what depends on its requests will not begin. (They
        themselves have failed with it.)"""
        for request, chain in list(self.links.items()):
            if request in chain.foretold and chain.foretold[request][1] == index:
                self.jobs.pop(request, None)
                self.link_said(T_FAILED, request, b"")


    def on_sub_frame(self, index, kind, request, part):
        sub = self.subs.get(index)
        if sub is None or sub.state != "up":
            if kind in (T_RUN, T_EXEC, T_PUT, T_FETCH):
                failure = Failure("agent", "agent", "no such sub-agent")
                self.send(T_FAILED, pack(failure.items), request, 0, index)
            elif kind == T_CANCEL and sub is not None:
                sub.cancel()
            elif kind == T_CLOSE and sub is not None:
                sub.stop()
        elif kind == T_CLOSE and request == 0:
            sub.stop()
        else:
            sub.forward(kind, request, part)

    def on_frame(self, kind, flags, index, request, body):
        if kind in (T_DATA, T_WINDOW, T_CANCEL):
            job = self.jobs.get(request)
            if job is None:
                return  # it has ended meanwhile
            if kind == T_DATA:
                job.on_data(flags, body)
            elif kind == T_WINDOW:
                if len(body) != 4:
                    raise ProtocolError("bad window")
                job.on_window(int.from_bytes(body, "big"))
            else:
                job.cancel()
        elif kind == T_PING:
            if request and request not in self.jobs:
                lost = Failure("agent", "agent", "the agent does not know this request", 1)
                self.fail(request, lost)
            else:
                self.send(T_PONG, body[:64], request, 0, index)
        elif kind in (T_PONG, T_CLOSE):
            pass
        elif kind == T_PAYLOAD:
            items = unpack(body, 2)
            if items[0] not in self.payloads:
                self.payloads[items[0]] = payload_of(items)
        elif kind in (T_START, T_RUN, T_EXEC, T_PUT, T_FETCH):
            self.on_request(kind, index, request, body)
        else:
            raise ProtocolError("frame type %d is not for an agent" % kind)

    def on_request(self, kind, index, request, body):
        if kind != T_START and (request in self.jobs or request == 0):
            raise ProtocolError("request number in use")
        try:
            if kind == T_START:
                if index == 0 or index in self.subs:
                    raise ProtocolError("agent number in use")
                self.subs[index] = SubAgent(self, index, request, body)
            elif kind == T_RUN:
                self.on_run(request, Run(body))
            elif kind == T_EXEC:
                self.on_exec(request, unpack(body, 5))
            elif kind == T_FETCH:
                self.jobs[request] = Fetch(self, request, body)
            else:
                self.on_put(request, body)
        except Failure as failure:
            if kind == T_START:
                self.send(T_FAILED, pack(failure.items), request, 0, index)
            else:
                self.fail(request, failure)
        except OSError as error:
            path = unpack(body, 1)[0] if kind in (T_PUT, T_FETCH) else b"agent"
            self.fail(request, file_failure(error, path, 0))


def main(nonce, interpreters):
    """Called by the bootstrap's loader in a fresh `python -c`."""
    sys.argv = [""]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv = sys.orig_argv[:1]
    sys.modules["__main__"].__file__ = "<stdin>"
    agent = Agent(nonce, interpreters)
    agent.start()
    try:
        agent.loop()
    except ProtocolError:
        agent.killed = True
        agent.shutdown()
    except BaseException as error:
        import traceback

        trace = "".join(traceback.format_tb(error.__traceback__)[-4:])
        agent.log("error", "agent: %r\n%s" % (error, trace))
        agent.killed = True
        agent.shutdown()
    finally:
        os._exit(0)
