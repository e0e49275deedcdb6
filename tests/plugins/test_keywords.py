"""Copies, dumps and validations of keywords beside core's own: the same values of the same types, and nothing shared that can be changed."""

import contextlib
import copy
import sys

import pytest
from ansible import constants as C
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.attribute import Attribute, FieldAttribute
from ansible.playbook.base import FieldAttributeBase
from ansible.playbook.play import Play
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar
from ansible.utils.sentinel import Sentinel
from ansible.vars.manager import VariableManager

from churten import _core, compat
from churten.compat import keywords, readers

PLAY = {
    "name": "the {{ play }}",
    "hosts": "localhost",
    "gather_facts": False,
    "environment": {"A": "1", "B": "{{ b }}"},
    "tags": ["outer"],
    "become": True,
    "tasks": [
        {"name": "plain", "command": "/bin/true"},
        {"name": "the {{ name }}", "command": "echo {{ b }}", "register": "r", "when": ["b is defined", "true"], "changed_when": "false"},
        {
            "name": "around",
            "environment": [{"C": "{{ b }}"}],
            "any_errors_fatal": True,
            "block": [
                {"debug": {"msg": "x"}, "loop": [1, 2], "loop_control": {"label": "l", "pause": 0.5}, "vars": {"v": ["{{ b }}"]}, "throttle": 2},
                {"command": "/bin/true", "async": 10, "poll": 1, "retries": "{{ n }}", "delay": 1, "until": "r is success", "no_log": True},
                {"ping": {}, "delegate_to": "other", "ignore_errors": "{{ yes }}", "become_user": "{{ b }}", "tags": "one,two", "timeout": 3},
            ],
            "rescue": [{"meta": "noop"}],
        },
    ],
    "handlers": [{"name": "h", "debug": {"msg": "x"}, "listen": ["a", "b"]}],
}
VARIABLES = {"b": "bee", "n": 3, "yes": True, "name": "named", "play": "P", "r": {"failed": False}}


@pytest.fixture(scope="module")
def play():
    with contextlib.suppress(Exception):  # once per process
        init_plugin_loader()
    loader = DataLoader()
    return Play.load(copy.deepcopy(PLAY), variable_manager=VariableManager(loader=loader), loader=loader)


def things(play):
    """Every task, handler and block of the play, the play, and a play context."""
    found = [play, PlayContext(play=play)]
    for block in [*play.tasks, *play.handlers]:
        stack = [block]
        while stack:
            one = stack.pop()
            found.append(one)
            stack += [*getattr(one, "block", []), *getattr(one, "rescue", []), *getattr(one, "always", [])]
    assert len(found) >= 12
    return found


def shown(value):
    """Values and types, down to the leaves."""
    if isinstance(value, dict):
        return type(value), {key: shown(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [shown(one) for one in value]
    if isinstance(value, FieldAttributeBase):
        return type(value), shown(value.dump_attrs()) if hasattr(value, "_squashed") else None
    return type(value), value


def state(thing):
    return {key: shown(value) for key, value in thing.__dict__.items() if key not in ("_loader", "_variable_manager", "_parent", "_play", "_ds")}


def leaves(value):
    yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        yield from leaves(one)


def test_core_is_known():
    """On every supported line all of it is in use; what is not known to us would silently be slow."""
    since_219 = compat.core_version() >= (2, 19)
    for name in ("copy", "dump_attrs", "from_attrs", *(["post_validate"] if since_219 else [])):
        assert keywords._is_known(name, getattr(FieldAttributeBase, name)), name
    assert keywords._keywords(Task) and keywords._keywords(PlayContext)
    stock = {name: getattr(FieldAttributeBase, name) for name in ("copy", "dump_attrs", "from_attrs", "post_validate")}
    with keywords.quick_copies():
        assert FieldAttributeBase.copy is not stock["copy"]
    assert all(getattr(FieldAttributeBase, name) is function for name, function in stock.items())


def test_copies(play):
    for thing in things(play):
        stock = thing.copy()
        with keywords.quick_copies():
            ours = thing.copy()
        assert state(ours) == state(stock), thing
        assert [key for key in ours.__dict__ if key not in stock.__dict__] == []
        for keyword in keywords._keywords(type(thing)) or ():
            was, now = thing.__dict__.get(keyword.key, Sentinel), ours.__dict__[keyword.key]
            if isinstance(was, (list, dict)):
                assert now is not was, (thing, keyword.name)


def test_dumps_and_what_is_made_of_them(play):
    for thing in things(play):
        if not isinstance(thing, Task):
            continue
        mine = thing.copy()
        mine.squash()
        stock = mine.dump_attrs()
        made = Task()
        made.from_attrs(stock)
        with keywords.quick_copies():
            ours = mine.dump_attrs()
            made_ours = Task()
            made_ours.from_attrs(ours)
        assert shown(ours) == shown(stock)
        made_ours._uuid = made._uuid
        assert state(made_ours) == state(made)


@pytest.mark.skipif(compat.core_version() < (2, 19), reason="earlier lines validate in one function, which is left alone")
def test_validation(play):
    def validated(thing, squashed):
        mine = thing.copy()
        if squashed and hasattr(mine, "squash"):
            mine.squash()
        try:
            mine.post_validate(Templar(loader=play._loader, variables=dict(VARIABLES)))
        except Exception as ex:
            return repr(ex)
        return state(mine)

    for thing in things(play):
        for squashed in (False, True):
            stock = validated(thing, squashed)
            with keywords.remembered_attributes():
                first, second = validated(thing, squashed), validated(thing, squashed)
            assert first == stock, thing
            assert second == stock, thing


def test_a_keyword_without_a_value_is_still_refused():
    """What is remembered or left out is never an error of core's."""
    task = Task.load({"command": "/bin/true", "retries": "many"}, loader=DataLoader(), variable_manager=None)
    templar = Templar(loader=DataLoader(), variables={})
    task.squash()
    with pytest.raises(Exception) as stock:
        task.copy().post_validate(templar)
    if compat.core_version() >= (2, 19):
        with keywords.remembered_attributes(), pytest.raises(Exception) as ours:
            task.copy().post_validate(templar)
        assert str(ours.value) == str(stock.value)


def test_reading(play):
    """Every keyword of every object, squashed or not, there or not, reads as ever; what is read for the first time is kept as ever."""

    def read(thing):
        out = {}
        for name, attribute in type(thing).fattributes.items():
            try:
                out[name] = shown(getattr(thing, name)), shown(type(attribute).__get__(attribute, thing, type(thing)))
            except Exception as ex:
                out[name] = repr(ex)
        return out, sorted(thing.__dict__)

    def several():
        for thing in things(play):
            yield thing
            bare = thing.copy()
            for name in list(type(thing).fattributes)[::3]:
                bare.__dict__.pop(f"_{name}", None)
            yield bare
            if hasattr(thing, "squash"):
                squashed = thing.copy()
                squashed.squash()
                yield squashed

    stock = [read(thing) for thing in several()]
    with readers.quick_reads():
        assert isinstance(FieldAttribute.__dict__["__get__"], _core.Reader) and isinstance(Attribute.__dict__["__get__"], _core.Reader)
        assert [read(thing) for thing in several()] == stock
        assert [read(thing) for thing in several()] == stock
        assert isinstance(Task.connection, str) or Task.connection is None
    assert not isinstance(FieldAttribute.__get__, _core.Reader) and not isinstance(Attribute.__get__, _core.Reader)


@pytest.mark.parametrize("connection", ["smart", "persistent", "ssh", "local", None])
def test_the_connection_reads_as_ever(play, connection):
    """Up to 2.20 two of its values mean another."""

    def read():
        task, context = Task.load({"command": "/bin/true"}, loader=play._loader), PlayContext(play=play)
        for one in (task, context):
            one._connection = connection
        found = [task.connection, context.connection]
        task._squashed = context._finalized = True
        return [*found, task.connection, context.connection]

    stock = read()
    kinds = {type(attribute) for attribute in Task.fattributes.values()}
    with readers.quick_reads():
        assert read() == stock
        assert all(isinstance(kind.__get__, _core.Reader) for kind in kinds)
    assert not any(isinstance(kind.__get__, _core.Reader) for kind in kinds)


def test_a_class_that_reads_in_its_own_way_does():
    class Own(Task):
        def _get_attr_delay(self):
            return 77

        _retries = 5

    with readers.quick_reads():
        task = Own().load_data({"command": "/bin/true", "delay": 3, "poll": 4}, loader=DataLoader(), variable_manager=None)
        assert (task.delay, task.retries, task.poll) == (77, 5, 4)
        task._poll = Sentinel
        assert task.poll == C.DEFAULT_POLL_INTERVAL
        del task._poll
        assert task.poll == C.DEFAULT_POLL_INTERVAL


def test_a_reader_keeps_nothing():
    class Thing:
        pass

    def stock(attribute, thing, cls):
        return "stock"

    attribute, thing, value = object(), Thing(), object()
    calls = []

    def keys(cls):
        calls.append(cls)
        return {id(attribute): "_x"}

    reader = _core.Reader(stock, ("_a", "_b"), keys, Sentinel)
    before = sys.getrefcount(value), sys.getrefcount(stock), sys.getrefcount(thing)
    thing._x = value
    for _ in range(100):
        assert reader(attribute, thing, Thing) == "stock"
    thing._b = True
    for _ in range(100):
        assert reader(attribute, thing, Thing) is value
        assert reader(object(), thing, Thing) == "stock"
        assert reader(attribute, None, Thing) == "stock"
    thing._x = Sentinel
    assert reader(attribute, thing, Thing) == "stock"
    del thing._x
    assert reader(attribute, thing, Thing) == "stock"
    assert calls == [Thing]
    assert (sys.getrefcount(value), sys.getrefcount(stock), sys.getrefcount(thing)) == before
    careful = _core.Reader(stock, (), keys, Sentinel, ("smart", "other"))
    for thing._x, read in (("smart", "stock"), ("other", "stock"), ("ssh", "ssh"), (None, None), (value, value)):
        assert careful(attribute, thing, Thing) is read or read == "stock"
        assert (careful(attribute, thing, Thing) == "stock") == (read == "stock")
    with pytest.raises(TypeError):
        _core.Reader(stock, (), keys, Sentinel, (1,))
    broken = _core.Reader(stock, (), lambda cls: 1 / 0, Sentinel)
    with pytest.raises(ZeroDivisionError):
        broken(attribute, thing, Thing)
    with pytest.raises(TypeError):
        _core.Reader(stock, (), lambda cls: None, Sentinel)(attribute, thing, Thing)
    assert _core.Reader(stock, (), keys, Sentinel)(attribute, 5, int) == "stock"


def test_what_goes_through_keywords_keeps_nothing():
    """One row of each kind: what is set where, and nobody holds anything afterwards."""
    flag = {name: getattr(_core, f"KEYWORD_{name}") for name in "DIRECT SKIPPED SKIPPED_IF_HELD STATIC SAME OBJECT CALLABLE TAKEN QUICK OWN".split()}
    value, default, nothing = object(), object(), Sentinel

    class Thing:
        plain = value

        def __init__(self):
            self.asked = []

        def post_validate_attribute(self, name, *, templar):
            self.asked.append((name, templar))
            return nothing if name == "none" else name.upper()

    def walk(*rows, shared=()):
        return _core.Keywords(rows, nothing, shared)

    def row(name, *flags, places=None, default=default, empty=None):
        return name, f"_{name}", places or (f"_{name}",), sum(flag[one] for one in flags), default, empty

    thing = Thing()
    counts = [sys.getrefcount(one) for one in (value, default, thing)]
    rows = [
        row("skipped", "SKIPPED"),
        row("held", "SKIPPED_IF_HELD", "DIRECT"),
        row("static", "STATIC", "DIRECT"),
        row("same", "SAME", "DIRECT", empty=[]),
        row("env", "DIRECT", empty=[{}]),
        row("known", "DIRECT"),
        row("unset", "DIRECT"),
        row("none", "DIRECT"),
        row("alias", "DIRECT", places=("_a", "_b")),
    ]
    empty = []
    for _ in range(50):
        held = {"_held": value, "_static": {}, "_same": empty, "_env": [], "_known": value, "_unset": nothing, "_none": 1, "_alias": value}
        known = tuple({id(value): (value, "was known")} if name == "known" else {} for name, *_ in rows)
        walk(*rows).validate(thing, held, True, known, "T")
        assert held == {**held, "_env": [{}], "_known": "was known", "_unset": "UNSET", "_none": 1, "_a": "ALIAS", "_b": "ALIAS"}
        assert held["_same"] is empty and held["_held"] is value and thing.asked == [("unset", "T"), ("none", "T"), ("alias", "T")]
        assert walk(row("plain", "DIRECT")).dump(thing, {"_plain": default}, str) == {"plain": default}
        assert walk(row("plain", "DIRECT", "OBJECT")).dump(thing, {"_plain": nothing}, lambda one: one is value) == {"plain": True}
        new = {}
        walk(row("a"), row("b"), row("c", places=("_x", "_y")), row("d"), shared=(object,)).copy({"_a": [1], "_c": value, "_d": 2}, new, str)
        assert new == {"_a": [1], "_b": nothing, "_x": value, "_y": value, "_d": 2}
        held = {"_taken": 1, "_plain": 1}
        around = [{"_said": 1, "_unsaid": nothing}, frozenset({"_named"})]
        thing.said = thing.named = "said"
        walk(
            row("taken", "TAKEN", "QUICK"),
            row("unsaid", "TAKEN", "QUICK"),
            row("fresh", "QUICK", "CALLABLE", default=list),
            row("said", "TAKEN", "QUICK"),
            row("named", "TAKEN", "QUICK"),
            row("plain", "QUICK"),
        ).squash(thing, held, around)
        assert held == {"_taken": 1, "_unsaid": default, "_fresh": [], "_said": "said", "_named": "said", "_plain": value}
        walk(row("said", "TAKEN", "QUICK", "OWN")).squash(thing, held := {}, around)
        assert held == {"_said": default}
        thing.__dict__ = {"asked": []}
    held = new = known = rows = None
    assert [sys.getrefcount(one) for one in (value, default, thing)] == counts
    with pytest.raises(AttributeError):
        walk(row("missing")).validate(thing, {}, True, ({},), "T")
    for wrong in (("a",), [1], ("a", "_a", ["_a"], 0, None, None), ("a", "_a", ("_a",), 0, None, ())):
        with pytest.raises(TypeError):
            walk(wrong)
    with pytest.raises(TypeError):
        walk(row("a")).validate(thing, {}, True, (), "T")
    with pytest.raises(TypeError):
        walk(row("a")).validate(thing, {}, True, (1,), "T")
    with pytest.raises(TypeError):
        walk(row("a")).squash(thing, {}, ())
    with pytest.raises(TypeError):
        walk(row("a")).dump(thing, [], str)
