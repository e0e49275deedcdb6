"""A line of the timing log is the same whether C or Python makes it; results are copied for callbacks by C as core copies them."""

import copy
import json
import math
from collections import OrderedDict, UserDict, deque
from json.encoder import encode_basestring_ascii as quote

import pytest
from ansible.vars import clean
from hypothesis import example, given, settings
from hypothesis import strategies as st

from churten import _core
from churten.compat import results
from churten.timings import log
from churten.timings.log import python_line

TEXT = st.text(max_size=12) | st.sampled_from(["plain name", 'a"b', "a\\b", "\x7f", "ü", "\ud800", ""])
MAYBE = st.none() | TEXT
SECONDS = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-100, 1e6) | st.integers(-5, 10**12) | st.integers(0, 1 << 40).map(lambda n: n / 4096)
TIME = st.none() | SECONDS
WHOLE = st.none() | st.integers()
WORD = st.none() | st.sampled_from(["fiber", "2026-11-21T10:11:12.345Z"])
MOMENTS = st.none() | st.dictionaries(st.sampled_from(["slot", "processed", "sent"]), SECONDS)
VALUES = st.tuples(TEXT, TEXT, WHOLE, WORD, SECONDS, SECONDS, TIME, TIME, TIME, TIME, WORD, WHOLE, MAYBE, WHOLE, MAYBE, TIME, MOMENTS)
TIES = ("h", "ok", None, None, 0.0078125, -0.0, 0.5e-6, 1.5e-6, 2.0**-21, 0.9999995, None, None, None, 1, None, 2.0**40, {"slot": 1.0000005})


@settings(max_examples=500, deadline=None, database=None)
@given(VALUES)
@example(TIES)
def test_a_line_is_the_same_from_c(values):
    made = _core.timing_line('{"v":1', values, quote)
    assert made == python_line('{"v":1', values, quote)
    if all(not isinstance(value, float) or math.isfinite(value) for value in (*values, *(values[-1] or {}).values())):
        assert json.loads(made + "}")["host"] == values[0]


def test_the_log_uses_c():
    assert log.line is _core.timing_line


@pytest.mark.parametrize("wrong", [((), 1), ("a", ()), ("a", tuple(range(16))), ("a", (None,) * 16 + (3,)), ("a", ("h", "ok", 1, 1) + (None,) * 13)])
def test_what_is_no_result_is_refused(wrong):
    with pytest.raises(TypeError):
        _core.timing_line(*wrong, quote)


class Text(str):
    pass


class Odd(dict):
    def copy(self):
        return Odd(super().copy(), copied=True)


KEYS = st.sampled_from(["_ansible_x", "_ansible_no_log", "_ansibl", "rc", "_ansible_ü", Text("_ansible_y"), 7, None, ("_ansible_",)]) | st.text(max_size=3)
ODD = st.sampled_from([(1, [2]), Text("t"), b"b", bytearray(b"c"), {1, 2}, object()])
PARTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3) | ODD,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=2).map(OrderedDict)
        | st.dictionaries(KEYS, inner, max_size=2).map(Odd)
        | st.dictionaries(KEYS, inner, max_size=2).map(UserDict)
        | st.lists(inner, max_size=2).map(deque)
    ),
    max_leaves=12,
)


def same(one, two):
    """Equal in types, order and values."""
    assert type(one) is type(two)
    if isinstance(one, (dict, UserDict)):
        assert list(one) == list(two)
        for key in one:
            same(one[key], two[key])
    elif isinstance(one, (list, deque)):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            same(a, b)
    else:
        assert one == two


def containers(value):
    """Identities of what core copies."""
    if isinstance(value, (dict, list)):
        yield id(value)
        for part in value.values() if isinstance(value, dict) else value:
            yield from containers(part)


@settings(max_examples=500, deadline=None, database=None)
@given(st.dictionaries(KEYS, PARTS, max_size=5))
def test_results_are_copied_as_by_core(result):
    mine = _core.response_copy(result, clean.module_response_deepcopy)
    core = clean.module_response_deepcopy(result)
    same(mine, core)
    assert not set(containers(mine)) & set(containers(result))
    exceptions = ("_ansible_no_log",)
    before = copy.copy(mine)
    _core.response_strip(mine, exceptions, results._CONTAINERS, clean.strip_internal_keys)
    same(mine, clean.strip_internal_keys(core, exceptions=exceptions))
    assert list(before) == list(result)


def test_what_core_refuses_to_strip_is_refused():
    with pytest.raises(Exception, match="Cannot strip invalid keys"):
        _core.response_strip("text", (), results._CONTAINERS, clean.strip_internal_keys)
    with pytest.raises(RecursionError):
        loop = []
        loop.append(loop)
        _core.response_copy(loop, clean.module_response_deepcopy)


def test_callbacks_get_the_copies_only_while_one_of_our_strategies_runs():
    from ansible.executor import task_result

    stock = getattr(task_result, "strip_internal_keys", None)
    with results.quick_results():
        assert stock is None or task_result.strip_internal_keys is not stock
    assert getattr(task_result, "strip_internal_keys", None) is stock
