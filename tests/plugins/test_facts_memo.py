"""Facts become variables as core makes them, whether they are remembered or not; and what was changed is never remembered."""

import copy

import pytest
from ansible import constants as C
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.vars import manager
from hypothesis import given, settings
from hypothesis import strategies as st
from playing import play

from churten._core import is_plain
from churten.compat import facts_memo
from churten.compat.facts_memo import FactsMemo, remembered_facts

init_plugin_loader([])
NAMES = st.sampled_from(
    "ansible_hostname hostname ansible_local ansible_python_interpreter ansible_ssh_host_key_rsa_public ansible_connection _ansible_facts_gathered "
    "ansible_eth0 ansible_docker_bridge ansible_ssh_user ansible_become_pass failed module_setup ansible_ ansible_a.b x".split()
)
INNER = NAMES | st.text(max_size=3) | st.integers()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3) | st.tuples(st.integers()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(INNER, inner, max_size=3),
    max_leaves=8,
)


def same(one, two):
    """Equal, with equal types and order, and no container in common."""
    assert type(one) is type(two) and one == two
    if isinstance(one, dict):
        assert one is not two and list(one) == list(two)
        for key in one:
            same(one[key], two[key])
    elif isinstance(one, list):
        assert one is not two
        for a, b in zip(one, two, strict=True):
            same(a, b)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_the_same_as_core(facts):
    memo = FactsMemo(manager.namespace_facts, manager.clean_facts)
    before = copy.deepcopy(facts)
    for _ in range(3):
        same(memo.namespace(facts), manager.namespace_facts(facts))
        same(memo.clean(facts), manager.clean_facts(facts))
    for value in memo.clean(facts).values():  # what a template does to its variables
        if isinstance(value, dict):
            value["changed"] = 1
    assert facts == before


def test_no_facts_are_each_time_another_dict():
    memo = FactsMemo(manager.namespace_facts, manager.clean_facts)
    first = memo.clean({})
    first["changed"] = 1
    assert memo.clean({}) == {}


def test_what_is_not_plain():
    shared = []
    odd = type("Odd", (dict,), {})()
    for facts in ({"a": (1,)}, {"a": [{1}]}, {"a": shared, "b": [shared]}, {"a": {"b": {"_ansible_x": 1}}}, {1: 2}, odd, {"a": odd}):
        assert not is_plain(facts)
        memo = FactsMemo(manager.namespace_facts, lambda facts: "core's")
        assert memo.clean(facts) == "core's"
    assert is_plain({"_ansible_top": 1, "a": [{"b": []}], "c": {}})


SHARED = (tuple, set, frozenset, bytearray)


def plain_by_words(facts):
    """What is_plain says, told in Python."""
    if type(facts) is not dict or any(type(key) is not str for key in facts):
        return False
    seen, todo = {id(facts)}, list(facts.values())
    while todo:
        value = todo.pop()
        if isinstance(value, SHARED):
            return False
        if not isinstance(value, (dict, list)):
            continue
        if id(value) in seen or type(value) not in (dict, list):
            return False
        seen.add(id(value))
        if type(value) is dict and any(isinstance(key, str) and key.startswith("_ansible_") for key in value):
            return False
        todo += value.values() if type(value) is dict else value
    return True


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(NAMES | st.integers(), VALUES | st.just([]).map(lambda one: [one, one]) | st.sets(st.integers()), max_size=4))
def test_plain_is_what_it_says(facts):
    assert is_plain(facts) == plain_by_words(facts)


def test_too_deep_is_not_plain():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert not is_plain({"a": deep})
    while deep:  # taken apart from the outside: freeing it at once would be as deep
        deep = deep[0]


@pytest.fixture
def variables(monkeypatch):
    """A variable manager with core's memory cache, while facts are remembered."""
    monkeypatch.setattr(C, "CACHE_PLUGIN", "memory")
    stock = manager.VariableManager.set_host_facts, manager.clean_facts
    with remembered_facts():
        yield manager.VariableManager(loader=DataLoader())
    assert (manager.VariableManager.set_host_facts, manager.clean_facts) == stock


def test_what_changed_is_looked_at_again(variables):
    memo = manager.clean_facts.__self__

    def seen():
        facts = variables._fact_cache.get("h")
        return memo.clean(facts), memo.namespace(facts)["ansible_facts"]

    variables.set_host_facts("h", {"ansible_a": {"b": 1}, "ansible_c": 1})
    assert seen() == ({"ansible_a": {"b": 1}, "ansible_c": 1}, {"a": {"b": 1}, "c": 1})
    object_before = variables._fact_cache.get("h")
    variables.set_host_facts("h", {"ansible_c": {"_ansible_inside": 1, "d": 2}, "ansible_new": 3})
    assert variables._fact_cache.get("h") is object_before, "core changes it in place"
    assert seen() == ({"ansible_a": {"b": 1}, "ansible_c": {"d": 2}, "ansible_new": 3}, {"a": {"b": 1}, "c": {"_ansible_inside": 1, "d": 2}, "new": 3})
    variables.clear_facts("h")
    variables.set_host_facts("h", {"ansible_e": 1})
    assert seen() == ({"ansible_e": 1}, {"e": 1})


def test_only_with_caches_that_keep_their_objects(monkeypatch):
    monkeypatch.setattr(C, "CACHE_PLUGIN", "ansible.builtin.jsonfile")
    stock = manager.clean_facts
    with remembered_facts():
        assert manager.clean_facts is stock


@pytest.mark.parametrize("cache", ["memory", "churten.core.jsonfile"])
def test_in_a_play(tmp_path, cache):
    """Facts that are set, changed by templates, set again and cleared: every task sees what it would see with core's own functions."""
    assert "memory" in facts_memo._SAME_OBJECT
    show = "v={{ fact | default('none') }} {{ ansible_facts.fact | default('none') }} {{ hostvars['h2'].fact | default('none') }}"
    text = f"""
- hosts: all
  gather_facts: false
  strategy: churten.core.linear
  tasks:
    - set_fact: {{fact: [1, {{k: "{{{{ inventory_hostname }}}}"}}], cacheable: true}}
    - debug: {{msg: "{show}"}}
    - debug: {{msg: "{{% set _ = fact.append(2) %}}{{% set _ = ansible_facts.fact.append(3) %}}{show}"}}
    - debug: {{msg: "{show}"}}
    - set_fact: {{fact: two, cacheable: true}}
      when: inventory_hostname == 'h1'
    - debug: {{msg: "{show}"}}
    - meta: clear_facts
    - debug: {{msg: "{{{{ ansible_facts.fact | default('gone') }}}}"}}
"""
    seen = []
    for strategy in ("churten.core.linear", "linear"):
        where = tmp_path / strategy
        where.mkdir()
        more = {"ANSIBLE_CACHE_PLUGIN": cache, "ANSIBLE_CACHE_PLUGIN_CONNECTION": where / "facts"}
        done = play(where, text.replace("churten.core.linear", strategy), hosts=("h1", "h2"), ANSIBLE_DEPRECATION_WARNINGS="0", **more)
        seen.append(sorted(line for line in done.stdout.splitlines() if '"msg"' in line))
    assert seen[0] == seen[1] and any("gone" in line for line in seen[0]) and any("two" in line for line in seen[0])
