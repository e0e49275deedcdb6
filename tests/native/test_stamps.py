"""churten._core.Stamps and Tally from Python: use, misuse, reference counts."""

import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from churten import _core


class Reference:
    """What a request does to a record."""

    def __init__(self):
        self.connect_begin = self.connect_end = self.sent = self.remote_begin = self.remote_end = None
        self.connect_s = self.remote_s = self.ran_s = 0.0
        self.spans = []

    def request(self, begin, sent, end, ran):
        known = begin if self.connect_end is None else self.connect_end
        earliest, sent = min(max(sent, begin), end), min(max(sent, known), end)
        self.connect_begin = begin if self.connect_begin is None else min(self.connect_begin, begin)
        late = min(ran, end - earliest) - (end - sent)
        if late > 0:
            sent -= late
            self.connect_s = max(0.0, self.connect_s - late)
            known = sent
        self.connect_end = max(sent, known)
        self.connect_s += max(0.0, sent - max(begin, known))
        if end > sent:
            if self.remote_begin is None:
                self.remote_begin = sent
            self.sent = sent
            self.remote_end = end
            self.remote_s += end - sent
            self.ran_s += min(ran, end - sent)
        self.spans.append((begin, sent, end))


TIME = st.floats(0, 100) | st.integers(0, 8).map(float)


@settings(max_examples=300, deadline=None, database=None)
@given(st.lists(st.tuples(TIME, TIME, TIME, TIME), max_size=8))
def test_requests_add_up_as_they_should(requests):
    mine, reference = _core.Stamps(), Reference()
    for request in requests:
        mine.request(*request)
        reference.request(*request)
    assert {name: getattr(mine, name) for name in vars(reference)} == vars(reference)
    assert mine.seen == bool(requests) == mine.phased
    count, connect, remote = mine.since(2)
    assert count == len(requests)
    assert connect == pytest.approx(sum(sent - begin for begin, sent, _ in reference.spans[2:]))
    assert remote == pytest.approx(sum(end - sent for _, sent, end in reference.spans[2:]))


def test_attributes():
    record = _core.Stamps(3)
    assert record.eligible == 3.0 and record.slot is record.worker is record.engine is None
    record.slot, record.worker, record.engine, record.lost = 4.5, 7, "fork", True
    assert (record.slot, record.worker, record.engine, record.lost, record.phased) == (4.5, 7, "fork", True, False)
    record.slot = record.worker = None
    assert record.slot is record.worker is None
    for name, wrong in (("slot", "now"), ("worker", 1.5), ("lost", 3)):
        with pytest.raises(TypeError):
            setattr(record, name, wrong)
    for wrong in ((), (1.0, 2.0, 3.0), (1.0, 2.0, 3.0, None)):
        with pytest.raises(TypeError):
            record.request(*wrong)
    with pytest.raises(TypeError):
        _core.Stamps("now")


def test_fill():
    record = _core.Stamps(1.0)
    record.slot, record.engine, record.worker = 1.5, "fiber", 2
    record.request(2.0, 2.25, 4.25, 1.0)
    result = types.SimpleNamespace()
    record.fill(result, 3.0, 4.5, 1.0)
    assert vars(result) == {
        "engine": "fiber", "worker": 2, "source": "executor", "queue": 0.5, "connect": 0.25, "remote": 2.0, "ran": 1.0, "controller": 0.75,
        "t": {"eligible": 0.0, "slot": 0.5, "connect_begin": 1.0, "connect_end": 1.25, "sent": 1.25, "remote_begin": 1.25, "remote_end": 3.25,
              "processed": 3.5},
    }  # fmt: skip
    _core.Stamps().fill(result, 3.0, 4.5, 1.0)
    assert result.source == "callbacks" and result.t == {"processed": 3.5}
    assert {result.engine, result.worker, result.queue, result.connect, result.remote, result.ran, result.controller} == {None}
    with pytest.raises(AttributeError):
        record.fill(3, 3.0, 4.5, 1.0)
    with pytest.raises(TypeError):
        record.fill(result, 3.0)


def test_a_tally():
    tally = _core.Tally("name", None, times=True, hosts=True, phases=True)
    assert (tally.count, tally.worst, tally.max_s, tally.max_host) == (0, -1, -1.0, "")
    tally.add(1.0, 2.0, 1, "a", (None, 0.5, None, 1))
    tally.add(0.5, 3.0, 0, "b", (None, 0.25, 2.0, 1.5))
    assert (tally.name, tally.path, tally.count, tally.sum_s, tally.first_s, tally.last_s) == ("name", None, 2, 5.0, 0.5, 3.5)
    assert (tally.max_s, tally.max_host, tally.worst, tally.times, tally.hosts) == (3.0, "b", 1, [2.0, 3.0], {"a", "b"})
    assert tally.phases == {"queue": None, "connect": 0.75, "remote": 2.0, "controller": 2.5}
    plain = _core.Tally("name", "a:1")
    assert plain.times is plain.hosts is plain.phases is None and plain.path == "a:1"
    plain.add(1, 2, 3, "h", None)
    for wrong in ((), (1, 2, 3, 4, None), (1, 2, "a", "h", None), ("a", 2, 3, "h", None)):
        with pytest.raises(TypeError):
            plain.add(*wrong)
    with pytest.raises(TypeError):
        tally.add(1, 2, 3, "h", (1, 2, 3))
    with pytest.raises(TypeError):
        _core.Tally(3)


class Named(_core.Tally):
    __slots__ = ()


def test_nothing_is_kept():
    # Too long to be shared with other texts, and made here.
    host, engine = "".join(["host"] * 9), "".join(["engine"] * 9)
    result = types.SimpleNamespace()
    kept = (_core.Stamps, _core.Tally, Named, host, engine)

    def use():
        for _ in range(1000):
            record = _core.Stamps(1.0)
            record.engine, record.worker = engine, 5
            for _ in range(3):
                record.request(1.0, 2.0, 3.0, 1.0)
            assert len(record.spans) == 3
            record.fill(result, 1.0, 2.0, 0.0)
            for cls in (_core.Tally, Named):
                tally = cls(host, engine, times=True, hosts=True, phases=True)
                for _ in range(9):
                    tally.add(1.0, 2.0, 1, host, (None, 1.0, 2.0, 3.0))
                assert len(tally.times) == 9 and tally.phases and tally.hosts and tally.max_host
        result.__dict__.clear()
        del record, tally
        return [sys.getrefcount(one) for one in kept]

    use()  # the interpreter's own caches may take a reference
    assert use() == use()
