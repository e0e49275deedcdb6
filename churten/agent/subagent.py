# SPDX-License-Identifier: GPL-3.0-or-later
"""START: agents of other accounts."""

import _signal as signal  # type: ignore[import-not-found]  # `signal` itself would import enum at every start
import os
import select
import struct
import time

from churten.agent.child import become_child, exec_child
from churten.agent.frames import (
    BODY_MAX,
    HEADER,
    T_EXEC,
    T_EXIT,
    T_FAILED,
    T_FETCH,
    T_HELLO,
    T_PING,
    T_PONG,
    T_PUT,
    T_RUN,
    T_STARTED,
    Failure,
    ProtocolError,
    frame,
    frame_at,
    number,
    pack,
    text,
    unpack,
)


class SubAgent:
    """START: an agent of another account, begun by the become plugin's command.

    become (waiting for the success marker, answering the prompt) -> ready
    (source written, waiting for READY) -> up (frames are passed on, only the
    agent number changes) -> gone."""

    NOISE_MAX = 64 * 1024

    def __init__(self, agent, index, request, body):
        items = unpack(body)
        if len(items) % 2:
            raise ProtocolError("bad map")
        self.spec = {}
        for key, value in zip(items[::2], items[1::2]):
            self.spec.setdefault(key, []).append(value)
        self.agent, self.index, self.request = agent, index, request
        self.marker = b"\nCHURTEN-" + self.one(b"nonce") + b"-READY\n"
        self.missing = b"CHURTEN-" + self.one(b"nonce") + b"-NOPYTHON"
        self.noise, self.errors = bytearray(b"\n"), bytearray()
        self.out, self.outbuf, self.inbuf = None, bytearray(), bytearray()
        self.state, self.asked, self.kill_at = "become", False, None
        self.command = None
        # Whoever has work to do answers a PING; after that many seconds twice in vain
        # it stands still (0: nobody asks).
        self.patience = number(self.one(b"alive_ms"), 0) / 2000.0
        self.under_way, self.quiet, self.pinged = set(), None, False
        timeout = number(self.one(b"timeout_ms"), 0) / 1000.0
        self.deadline = time.monotonic() + timeout if timeout else None
        self.start()
        if not self.one(b"become_success"):
            self.ready()

    def one(self, key):
        return self.spec.get(key, [b""])[0]

    def start(self):
        agent, pipes = self.agent, []
        command = self.one(b"command")
        try:
            for _ in range(3):
                pipes.append(os.pipe())
            agent.own_fds.update(fd for pair in pipes for fd in pair)
            self.pid = agent.fork()
            if self.pid == 0:
                try:
                    become_child(agent, pipes[0][0], pipes[1][1], pipes[2][1])
                    argv = ["/bin/sh", "-c", os.fsdecode(command)]
                    exec_child(agent, argv, agent.environ, argv[0])
                finally:
                    os._exit(255)
        except OSError as error:
            for pair in pipes:
                for fd in pair:
                    agent.own_fds.discard(fd)
                    os.close(fd)
            raise Failure("agent", "agent", "cannot start a process: %s" % error)
        (in_r, self.stdin), (self.stdout, out_w), (self.stderr, err_w) = pipes
        for fd in (in_r, out_w, err_w):
            agent.close(fd)
        for fd in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(fd, False)
        agent.watch(self.stdout, select.POLLIN, self.on_stdout)
        agent.watch(self.stderr, select.POLLIN, self.on_stderr)

    # before it is up

    def read(self, fd):
        try:
            return os.read(fd, 65536)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def on_stdout(self, fd, events):
        data = self.read(fd)
        if data == b"":
            self.on_close()
        elif data and self.state == "up":
            self.inbuf += data
            self.relay()
        elif data:
            self.noise += data
            self.look()

    def on_stderr(self, fd, events):
        data = self.read(fd)
        if data == b"":
            self.agent.close(fd)
            self.stderr = None
        elif data and self.state != "up":
            self.errors += data
            self.look()

    def look(self):
        if len(self.noise) + len(self.errors) > self.NOISE_MAX:
            self.fail("agent", "agent", "the start printed too much")
            return
        if self.state == "become":
            self.look_for_success()
        if self.state == "ready":
            at = self.noise.find(self.marker)
            if at >= 0:
                self.state = "up"
                self.inbuf += self.noise[at + len(self.marker) :]
                del self.noise[:], self.errors[:]
                self.spec = {}
                self.relay()
            elif self.missing in self.noise:
                self.fail("no_python", "agent", "no Python found on the target")

    def look_for_success(self):
        success, prompt = self.one(b"become_success"), self.one(b"become_prompt")
        for seen in (self.noise, self.errors):
            for line in bytes(seen).splitlines():
                if success in line:
                    self.ready()
                    return
        # (as stock: who has a password for the prompt heeds nothing before it)
        waits = prompt and self.one(b"become_password") and not self.asked
        for key, kind in () if waits and not self.prompted() else (
            (b"become_wrong", "become_password_wrong"),
            (b"become_missing", "become_password_missing"),
        ):
            for words in self.spec.get(key, []):
                if words and (words in self.noise or words in self.errors):
                    self.fail(kind, "become", self.said())
                    return
        if prompt and not self.asked and self.prompted():
            if not self.spec.get(b"become_password"):
                self.fail("become_password_missing", "become", self.said())
                return
            self.asked = True
            self.outbuf += self.one(b"become_password") + b"\n"
            self.spec[b"become_password"] = [b""]
            self.write()

    def prompted(self):
        prompt = self.one(b"become_prompt")
        return prompt in self.noise or prompt in self.errors

    def ready(self):
        self.state = "ready"
        self.outbuf += self.one(b"input")
        self.write()

    def said(self):
        """What the become command printed, for the message."""
        lines = (bytes(self.errors) + b"\n" + bytes(self.noise)).strip()
        return text(lines[-2048:])

    # frames

    def relay(self):
        at = 0
        try:
            while True:
                head = frame_at(self.inbuf, at)
                if head is None:
                    break
                kind, flags, index, request, length = head
                end = at + HEADER.size + length
                if index:
                    raise ProtocolError("agent of an agent of an agent")
                if kind == T_HELLO and self.request is not None:
                    self.on_hello(bytes(self.inbuf[at + HEADER.size : end]))
                elif kind != T_PONG or request:
                    if kind in (T_EXIT, T_FAILED):
                        self.under_way.discard(request)
                    part = self.inbuf[at:end]
                    struct.pack_into(">H", part, 6, self.index)
                    self.agent.out += part
                    if request in self.agent.links:
                        self.agent.link_said(kind, request, bytes(part[HEADER.size :]))
                at = end
        except ProtocolError as error:
            self.gone("agent", "protocol error of the sub-agent: %s" % error)
            return
        del self.inbuf[:at]
        self.quiet, self.pinged = None, False
        self.listen()

    def listen(self):
        if self.patience and self.under_way and self.quiet is None:
            self.quiet = time.monotonic() + self.patience

    def on_quiet(self, now):
        if self.pinged:
            silent = int(2 * self.patience)
            self.gone("unreachable", "no answer for %d seconds" % silent)
            return
        self.pinged, self.quiet = True, now + self.patience
        self.forward(T_PING, 0, bytearray(frame(T_PING, b"churten")))

    def on_hello(self, body):
        items = unpack(body)
        self.agent.send(
            T_STARTED, pack(items + [b"reused", b"0"]), self.request, 0, self.index
        )
        self.request = self.deadline = None

    def forward(self, kind, request, header_and_body):
        struct.pack_into(">H", header_and_body, 6, 0)
        self.outbuf += header_and_body
        if kind in (T_RUN, T_EXEC, T_PUT, T_FETCH):
            self.under_way.add(request)
            self.listen()
        self.write()

    def write(self, fd=None, events=0):
        if self.stdin is None:
            return
        while self.outbuf:
            try:
                count = os.write(self.stdin, bytes(self.outbuf[:BODY_MAX]))
            except BlockingIOError:
                self.agent.watch(self.stdin, select.POLLOUT, self.write)
                return
            except OSError:
                self.outbuf.clear()
                break
            del self.outbuf[:count]
        self.agent.unwatch(self.stdin)

    # the end

    def on_close(self):
        """Its stdout ended: it is dying or dead. Let its last words come."""
        self.agent.close(self.stdout)
        self.stdout = None
        self.close_stdin()
        if self.kill_at is None:
            self.kill_at = time.monotonic() + 1.0

    def on_sigchld(self):
        if self.pid is None:
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return
        self.pid = None
        for fd in (self.stderr, self.stdout):
            for _ in range(16):
                if fd is not None and fd in (self.stderr, self.stdout):
                    (self.on_stderr if fd == self.stderr else self.on_stdout)(fd, 0)
        if self.state == "gone":
            return
        rc = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        if self.state == "up":
            self.gone("agent", "the sub-agent ended with status %d" % rc)
        elif self.state == "become":
            said = self.said() or "become ended with status %d" % rc
            self.fail("become", "become", said)
        else:
            said = "the agent's interpreter ended with status %d: %s" % (
                rc,
                self.said(),
            )
            self.fail("agent", "agent", said)

    def next_time(self):
        times = [t for t in (self.deadline, self.kill_at, self.quiet) if t is not None]
        return min(times) if times else None

    def on_time(self, now):
        if self.quiet is not None and now >= self.quiet:
            self.on_quiet(now)
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            what = "become" if self.state == "become" else "agent"
            self.fail(what, what, "no answer in time: %s" % self.said())
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = None
            if self.pid is not None:
                self.kill(signal.SIGKILL)

    def kill(self, signum):
        for action in (os.killpg, os.kill):
            try:
                action(self.pid, signum)
            except OSError:  # another account's, or no group yet
                pass

    def fail(self, kind, layer, message):
        """Not up yet: answers START."""
        if self.request is not None:
            failure = Failure(kind, layer, message)
            self.agent.send(
                T_FAILED, pack(failure.items), self.request, 0, self.index
            )
            self.request = None
        self.stop()

    def gone(self, kind, message):
        """Was up: everything it had under way has failed."""
        if self.request is not None:
            self.fail(kind, "agent", message)
            return
        failure = Failure(kind, "agent", message, 1)
        self.agent.send(T_FAILED, pack(failure.items), 0, 0, self.index)
        self.stop()

    def cancel(self):
        self.fail("cancelled", "agent", "cancelled")

    def close_stdin(self):
        if self.stdin is not None:
            self.agent.close(self.stdin)
            self.stdin = None

    def stop(self):
        """Closes its stdin, which ends it; kills what is left after 3 s. One that
        is not up yet knows nothing of that and gets TERM."""
        if self.state != "up" and self.pid is not None:
            self.kill(signal.SIGTERM)
        self.state, self.deadline, self.quiet = "gone", None, None
        self.agent.subs.pop(self.index, None)
        self.agent.break_links(self.index)
        self.close_stdin()
        for fd in (self.stdout, self.stderr):
            if fd is not None:
                self.agent.close(fd)
        self.stdout = self.stderr = None
        if self.pid is not None:
            self.kill_at = time.monotonic() + 3.0
            self.agent.leaving.append(self)
