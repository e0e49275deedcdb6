"""What the facts of many hosts have in common is in memory once, and nobody can tell but by looking at addresses."""

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playing import play

from churten import _core


def decoded(value, share):
    return _core.facts_decode(json.dumps(value).encode(), False, ("__ansible_type",), dict, share)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.sampled_from([0, 1, 300, 2**40, 0.0, -0.0, 1.0, 0.25, "a", "x" * 40, "ü" * 20]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.dictionaries(st.sampled_from("abcd"), PLAIN, max_size=4), min_size=2, max_size=6))
def test_facts_that_share_parts_are_still_the_same(all_facts):
    share = _core.FactsShare()
    found = [decoded(facts, share) for facts in all_facts]
    for facts, made in zip(all_facts, found, strict=True):
        assert repr(made) == repr(facts)  # types, order and the sign of a zero, too
        assert _core.is_plain(made)  # no container twice in one host's facts
    assert len({id(made) for made in found}) == len(found)  # core adds names to the root


def test_equal_parts_of_facts_are_in_memory_once():
    share = _core.FactsShare()
    features = {"rx": "off [fixed]", "long": "y" * 100, "speeds": [10, 1000, 0.5], "none": None}
    first, second = (decoded({"eth0": dict(features), "eth1": dict(features), "own": {"n": n}}, share) for n in (1, 2))
    assert first["eth0"] is second["eth0"] and first["eth1"] is second["eth1"]
    assert first["eth0"] is not first["eth1"] and first["own"] is not second["own"]
    other = decoded({"eth0": dict(features, speeds=[10, 1000.0, 0.5])}, share)
    assert other["eth0"] is not first["eth0"] and type(other["eth0"]["speeds"][1]) is float
    tagged = decoded({"a": {"__ansible_type": "x"}, "b": [{"__ansible_type": "x"}]}, share)
    again = decoded({"a": {"__ansible_type": "x"}, "b": [{"__ansible_type": "x"}]}, share)
    assert tagged == again and tagged["a"] is not again["a"] and tagged["b"] is not again["b"]
    many = [decoded([{"same": 1}] * 500, share) for _ in range(2)]
    assert all(len({id(one) for one in items}) == 500 for items in many)
    counts = []
    for n in range(10):
        decoded({"eth0": dict(features), "own": n}, share)
        counts.append(sys.getrefcount(first["eth0"]))
    assert len(set(counts)) == 1
    with pytest.raises(TypeError, match="FactsShare"):
        decoded({}, {})


SET = """
- {hosts: all, gather_facts: false, tasks: [{set_fact: {tree: {deep: {a: 1, b: [1, 2]}}, cacheable: true}}]}
"""
CHANGE = """
- hosts: all
  gather_facts: false
  strategy: STRATEGY
  tasks:
    - name: "in the controller {{ ansible_facts.tree.deep.update({'named': 1}) }} {{ tree.deep.b.append(3) }}"
      debug: {msg: "{{ tree.deep.update({'seen': inventory_hostname}) }} {{ ansible_facts.tree.deep.b.append(4) }}"}
      when: inventory_hostname == "h1"
    - debug: {msg: "{{ [tree, ansible_facts.tree] }}"}
    - {set_fact: {tree: {deep: {a: 2}}, cacheable: true}, when: inventory_hostname == "h2"}
    - debug: {msg: "{{ [tree, ansible_facts.tree] }}"}
"""


@pytest.mark.parametrize("strategy", ["linear", "churten.core.linear"])
def test_what_one_host_does_to_its_facts_no_other_host_sees(tmp_path, strategy):
    shown = {}
    for plugin in ("ansible.builtin.jsonfile", "churten.core.jsonfile"):
        where = tmp_path / plugin
        where.mkdir()
        env = {"ANSIBLE_CACHE_PLUGIN_CONNECTION": where / "facts", "ANSIBLE_CACHE_PLUGIN": plugin}
        play(where, SET, hosts=("h1", "h2"), **env)
        shown[plugin] = play(where, CHANGE.replace("STRATEGY", strategy), hosts=("h1", "h2"), **env).stdout
    assert shown["churten.core.jsonfile"] == shown["ansible.builtin.jsonfile"]
    assert '"a": 2' in shown["churten.core.jsonfile"]
