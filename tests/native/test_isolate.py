"""churten._core.isolate: what a fiber gets shares no container with the controller."""

import collections
import gc
import sys

import pytest
from ansible._internal._datatag._tags import Origin, TrustedAsTemplate

from churten import _core


def test_containers_are_copied_and_leaves_shared():
    leaf = object()
    source = {"list": [1, {"deep": [leaf]}], "set": {1, 2}, "tuple": ([1],)}
    copy = _core.isolate(source)
    assert copy == source
    copy["list"][1]["deep"].append(2)
    copy["set"].add(3)
    copy["tuple"][0].append(2)
    assert source == {"list": [1, {"deep": [leaf]}], "set": {1, 2}, "tuple": ([1],)}
    assert copy["list"][1]["deep"][0] is leaf


def test_aliases_and_cycles_stay():
    shared = [1]
    source = {"a": shared, "b": shared, "t": (shared,)}
    source["self"] = source
    copy = _core.isolate(source)
    assert copy["a"] is copy["b"] is copy["t"][0]
    assert copy["self"] is copy
    assert copy["a"] is not shared


def test_tagged_containers_keep_type_and_tags():
    inner = TrustedAsTemplate().tag([Origin(description="here").tag("text")])
    source = TrustedAsTemplate().tag({"key": inner})
    copy = _core.isolate(source)
    assert type(copy) is type(source)
    assert TrustedAsTemplate.is_tagged_on(copy) and TrustedAsTemplate.is_tagged_on(copy["key"])
    assert copy == source
    copy["key"].append(1)
    assert len(source["key"]) == 1
    assert copy["key"][0] is inner[0]


@pytest.mark.parametrize("make", [collections.OrderedDict, lambda **kw: collections.defaultdict(list, **kw)])
def test_other_dict_classes_keep_their_class(make):
    source = make(a=[1])
    copy = _core.isolate(source)
    assert type(copy) is type(source)
    copy["a"].append(2)
    assert source["a"] == [1]
    if isinstance(source, collections.defaultdict):
        assert copy["new"] == []


def test_list_subclass():
    class Mine(list):
        pass

    source = Mine([[1]])
    source.mark = "kept"
    copy = _core.isolate(source)
    assert type(copy) is Mine and copy.mark == "kept" and copy[0] is not source[0]


def test_too_deep_is_an_error_not_a_crash():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        _core.isolate(deep)
    while deep:  # take it apart without recursion
        deep = deep[0]


def test_no_reference_is_lost_or_kept():
    leaf = object()
    source = {"x": [leaf] * 10, "y": {"z": (leaf,)}}
    before = sys.getrefcount(leaf)
    for _ in range(100):
        _core.isolate(source)
    gc.collect()
    assert sys.getrefcount(leaf) == before


def test_many_containers_grow_the_memo():
    source = [{"n": i, "l": [i]} for i in range(20_000)]
    assert _core.isolate(source) == source
