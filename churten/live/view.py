"""The live view on a terminal: a few lines below the output, which are never there while anything else is written.

Everything Ansible prints goes through its Display object; so that object's `display` is replaced for the time of a play by one that takes the lines away,
prints, and puts them back. What it prints is untouched: the same bytes in the same order as without a view.

A thread draws them anew, four times a second while tasks run, and not at all when nothing changes. It writes to the descriptor itself, holds only the
lock of this object, and nobody who holds that lock waits for another one. Since stock strategies fork while it runs, a fork waits for that lock,
and in the child nothing is ever drawn.

The cursor rests at the beginning of the lines, so that whatever else writes to the terminal overwrites them, and what it wrote stays readable. They are not
there while somebody is asked something (asking.py finds out about those who ask on their own), while a line has no end yet, while the process is in
the background, and while the terminal takes no output (Ctrl-S).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import threading
import time
import typing as t

from .asking import Asking

INTERVAL_S = 0.25
_CLEAR = b"\r\x1b[J"
_CLEAR_AFTER = b"\x1b[J"  # what somebody else wrote stays
_PROMPTS = ("prompt", "prompt_until", "do_var_prompt")


class View:
    """Lines of `render(columns)` below what `display` prints to the terminal `fd`, from `show` to `hide`."""

    def __init__(self, display: t.Any, fd: int, render: t.Callable[[int], list[str]]) -> None:
        self._display = display
        self._fd = fd
        self._render = render
        self._lock = threading.Lock()
        self._lines = b""  # as they were drawn last
        self._drawn = False
        self._busy = 0  # others that are writing, or asking somebody
        self._held = False  # the last line has no end yet
        self._shown = False
        self._pid = os.getpid()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._asking = Asking(fd)
        self._ready = select.poll()
        self._ready.register(fd, select.POLLOUT)
        _views.append(self)

    def show(self) -> None:
        """Begin; harmless if it has begun."""
        if self._shown:
            return
        self._shown = True
        self._display.display = self._around(self._display.display, ends_line=True)
        for name in _PROMPTS:
            if hasattr(self._display, name):
                setattr(self._display, name, self._around(getattr(self._display, name), ends_line=False))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="churten-live", daemon=True)
            self._thread.start()
        self._wake.set()

    def hide(self) -> None:
        """Take the lines away, and everything else back."""
        if not self._shown:
            return
        self._shown = False
        for name in ("display", *_PROMPTS):
            # The class's own is found again when the object has none.
            self._display.__dict__.pop(name, None)
        with self._lock:
            self._erase()
            self._lines = b""

    @contextlib.contextmanager
    def aside(self, ends_line: bool) -> t.Iterator[None]:
        """No lines inside. They come back at once if what happened inside ended its line, else after the next output."""
        with self._lock:
            self._erase()
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                self._held = not ends_line
                if self._lines and not self._hidden():
                    self._put()

    def _around(self, function: t.Callable[..., t.Any], ends_line: bool) -> t.Callable[..., t.Any]:
        def wrapped(*args: t.Any, **kwargs: t.Any) -> t.Any:
            if not self._shown or os.getpid() != self._pid:
                return function(*args, **kwargs)
            with self.aside(ends_line and kwargs.get("newline", True)):
                return function(*args, **kwargs)

        return wrapped

    # --- with the lock ---

    def _hidden(self) -> bool:
        return not self._shown or self._busy > 0 or self._held or os.getpid() != self._pid

    def _erase(self) -> None:
        if self._drawn:
            self._drawn = False
            self._write(_CLEAR_AFTER if self._asking() else _CLEAR)

    def _put(self) -> None:
        if self._ready.poll(0) and self._in_foreground() and not self._asking():
            self._write(_CLEAR + self._lines if self._drawn else self._lines)
            self._drawn = True

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._fd, data)

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return True  # not our controlling terminal: nobody can have sent us to the background

    # --- the thread ---

    def _run(self) -> None:
        while True:
            if not self._shown:
                self._wake.wait()
                self._wake.clear()
            try:
                lines = self._compose()
            except Exception:
                return  # a view is not worth a play
            with self._lock:
                if not self._hidden() and (lines != self._lines or not self._drawn):
                    self._lines = lines
                    if lines and not self._asking():
                        self._put()
                    else:
                        self._erase()
            time.sleep(INTERVAL_S)

    def _compose(self) -> bytes:
        columns, rows = os.get_terminal_size(self._fd)
        # The last column stays free: a terminal may wrap after it.
        lines = self._render(columns - 1)[: max(0, rows // 3)] if columns >= 20 else []
        if not lines:
            return b""
        up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
        return ("\n".join(lines) + "\r" + up).encode("utf-8", "replace")


_views: list[View] = []


def _before_fork() -> None:
    for view in _views:
        view._lock.acquire()


def _after_fork() -> None:
    for view in _views:
        view._lock.release()


@atexit.register
def _at_exit() -> None:
    for view in _views:
        if view._pid == os.getpid():
            view.hide()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
