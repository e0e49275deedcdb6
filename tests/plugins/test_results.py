"""What callbacks get of a result: the native values that core makes, whoever makes them."""

import sys

import pytest
from ansible.utils import vars as utils_vars

from churten import _core, compat
from churten.compat import results

since_219 = pytest.mark.skipif(compat.core_version() < (2, 19), reason="earlier lines make no native values")
PLAIN = {"rc": 0, "stdout": "é\udcff", "changed": True, "delta": 1.5, "none": None, 3: [{}, [], [{"x": [1, "2"]}]], None: 1, True: 2, 2.5: 3}


def test_only_native_values_are_copied():
    class Text(str):
        pass

    class Dict(dict):
        pass

    assert _core.native_copy({}) == {} and _core.native_copy([]) == [] and _core.native_copy("x") == "x"
    for odd in (Text("x"), Dict(), (1,), {1}, b"x", object(), 1j):
        for value in (odd, [odd], {"a": odd}, {"a": [{"b": odd}]}):
            assert _core.native_copy(value) is NotImplemented, value
    for odd in (Text("k"), (1,), b"k"):
        assert _core.native_copy({odd: 1}) is NotImplemented
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        _core.native_copy(deep)


def test_nothing_is_shared_and_nothing_is_kept():
    inner, leaf = [1], "a leaf that is its own object"
    value = {"a": inner, "b": inner, "c": [leaf, {leaf: inner}]}
    before = sys.getrefcount(inner), sys.getrefcount(leaf)
    for _ in range(50):
        copy = _core.native_copy(value)
        assert repr(copy) == repr(value) and list(copy) == list(value)
        assert copy is not value and copy["a"] is not inner and copy["a"] is not copy["b"] and copy["c"][0] is leaf
        assert _core.native_copy([leaf, inner, (leaf, inner)]) is NotImplemented
    del copy
    assert (sys.getrefcount(inner), sys.getrefcount(leaf)) == before


@since_219
def test_core_is_known():
    stock = utils_vars.transform_to_native_types
    assert results.makes_native_as_known(stock)
    with results.quick_results():
        assert utils_vars.transform_to_native_types is not stock
    assert utils_vars.transform_to_native_types is stock


@since_219
def test_the_same_as_core():
    from ansible._internal._datatag._tags import Origin, TrustedAsTemplate
    from ansible.module_utils._internal import _datatag

    tag = Origin(path="/x")
    tagged = {
        tag.tag("k"): TrustedAsTemplate().tag("v"),
        "list": tag.tag([tag.tag(1), "x", (1, 2), {1}]),
        "dict": tag.tag({"a": tag.tag(2.5), "b": None}),
    }

    def shown(value):
        if isinstance(value, dict):
            return type(value), [(shown(k), shown(v)) for k, v in value.items()]
        return type(value), [shown(one) for one in value] if isinstance(value, (list, tuple, set)) else value

    for value in (PLAIN, tagged, [PLAIN, tagged], "x", 1, tag.tag("y"), {"d": {}}):
        stock = [utils_vars.transform_to_native_types(value), utils_vars.transform_to_native_types(value, redact=False)]
        with results.quick_results():
            ours = [utils_vars.transform_to_native_types(value), utils_vars.transform_to_native_types(value, redact=False)]
        assert shown(ours) == shown(stock)
        assert not any(isinstance(one, _datatag.AnsibleTaggedObject) for one in ours)
    with results.quick_results(), pytest.raises(Exception, match="unsupported"):
        utils_vars.transform_to_native_types({"a": object()})
