# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that depend on the one before (LINK)."""

from churten.agent.frames import BODY_MAX, T_EXIT, WINDOW, Failure, ProtocolError, unpack

BROKEN = "a request before it did not end as foretold"


class Link:
    """A request that is not to begin before another has ended well; until then it
    keeps what comes for it."""

    def __init__(self, agent, head, body, part):
        self.agent, self.body, self.part = agent, body, part
        self.kind, self.index, self.request = head
        self.data, self.size = [], 0

    def begin(self):
        agent, request = self.agent, self.request
        del agent.jobs[request]
        if self.index:
            agent.on_sub_frame(self.index, self.kind, request, self.part)
            return
        agent.on_request(self.kind, 0, request, self.body)
        for flags, body in self.data:
            if request in agent.jobs:
                agent.jobs[request].on_data(flags, body)

    def on_data(self, flags, body):
        self.size += len(body)
        if self.size > WINDOW + BODY_MAX:
            raise ProtocolError("window passed")
        self.data.append((flags, body))

    def on_window(self, count):
        pass

    def fail(self, kind, message):
        self.agent.fail(self.request, Failure(kind, "agent", message), self.index)

    def cancel(self):
        self.fail("cancelled", "cancelled before it began")

    def drop(self):
        pass


class Chain:
    """Requests that go out together though each depends on the one before: number n
    begins when n - 1 has ended exactly as its client foretold. If one ends in any
    other way, none after it begins. One whose turn came begins at the end of the
    agent's turn, not amid the end of another request."""

    MOST = 256  # kept, beside those that have something under way

    def __init__(self):
        self.turn = 0  # the number that may begin
        self.held = {}  # number -> Link
        self.foretold = {}  # request -> (number, agent, rc, stdout, stderr); rc empty: any
        self.spilled = set()  # requests with output that did not come in EXIT
        self.broken = None  # the first number that did not end as foretold

    def takes(self, turn):
        if self.broken is not None and turn > self.broken:
            return False
        return turn >= self.turn and turn not in self.held

    def ended(self, kind, request, body):
        turn, _, rc, out, err = self.foretold.pop(request)
        self.held.pop(turn, None)
        if kind == T_EXIT and (not rc or self.is_foretold(request, body, rc, out, err)):
            self.turn = turn + 1
            return
        if self.broken is None or turn < self.broken:
            self.broken = turn
        for later in sorted(n for n in self.held if n > turn):
            if later in self.held:
                self.held.pop(later).fail("chain", BROKEN)

    def is_foretold(self, request, body, rc, out, err):
        items = unpack(body, 6)
        if request in self.spilled or (items[1], items[5]) != (b"0", b"0"):
            return False
        return (items[0], items[3], items[4]) == (rc, out, err)
