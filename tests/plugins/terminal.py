"""A terminal for tests: a command on a pseudo-terminal of its own session, what it wrote, and what the screen showed when."""

import contextlib
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pyte
from playing import MAIN, environment


class Terminal:
    """A screen. `text` is all bytes that came; `shots` are what the screen showed, one for each change."""

    def __init__(self, columns=100, rows=40):
        self.columns, self.rows = columns, rows
        self.screen = pyte.HistoryScreen(columns, rows, history=5000, ratio=1)
        self.stream = pyte.ByteStream(self.screen)
        self.text = b""
        self.shots = []
        self.code = None

    def play(self, where, *words, until=None, react=None, deadline_s=120, stderr=None, **more):
        """ansible-playbook with these words. `react(self)` is called after each change; what it answers is typed, or sent if it is a signal."""
        master, slave = pty.openpty()
        import fcntl

        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", self.rows, self.columns, 0, 0))
        env = environment(where, **({"TERM": "xterm"} | more))
        env = {k: v for k, v in env.items() if k not in ("CI", "COLUMNS", "LINES") or k in more}

        def own_terminal():
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

        code = MAIN.format("playbook", "playbook")
        child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)],
            cwd=where, env=env, stdin=slave, stdout=slave, stderr=slave if stderr is None else stderr, preexec_fn=own_terminal,
        )  # fmt: skip
        os.close(slave)
        try:
            self._follow(child, master, react, time.monotonic() + deadline_s)
            self.code = child.wait(30)
        finally:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            os.close(master)
        return self

    def _follow(self, child, master, react, deadline):
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 0.2)[0]:
                if child.poll() is not None:
                    return
                continue
            try:
                data = os.read(master, 65536)
            except OSError:
                return
            if not data:
                return
            self.text += data
            self.stream.feed(data)
            self.shots.append(self.lines())
            answer = react(self) if react else None
            if isinstance(answer, signal.Signals):
                os.kill(child.pid, answer)
            elif answer:
                os.write(master, answer)
        raise AssertionError("the play did not end:\n" + "\n".join(self.lines()))

    def lines(self):
        """What is on the screen and was above it."""
        above = ["".join(line[x].data for x in range(self.columns)).rstrip() for line in self.screen.history.top]
        shown = above + [line.rstrip() for line in self.screen.display]
        while shown and not shown[-1]:
            shown.pop()
        return shown
