"""`Task.squash` without a walk through blocks, roles and the play for each keyword.

A task takes what it does not say itself from the blocks, roles and the play around it. Core asks all of them anew for each of some 35 keywords of each
task on each host, and nearly always finds nothing. Here it is noted once per task which keywords are said anywhere around it; for all others the answer is
the task's own value, or the default. Those that are said, and those that are put together from several places (`extend`) if the task or anything around
it says them, are left to core.

Nothing is replaced if core's functions do not look as they are known to.
"""

from __future__ import annotations

import contextlib
import functools
import types
import typing as t

from ansible.playbook.attribute import Attribute, FieldAttribute
from ansible.playbook.base import FieldAttributeBase
from ansible.playbook.block import Block
from ansible.playbook.task import Task
from ansible.utils.sentinel import Sentinel

from .readers import plain_getter

_GET: t.Any = FieldAttribute.__get__
_GET_OWN: t.Any = Attribute.__get__
_SET: t.Any = Attribute.__set__
_TASK_PARENT: t.Any = Task._get_parent_attribute
_BLOCK_PARENT: t.Any = Block._get_parent_attribute
_SQUASH = FieldAttributeBase.squash

_KNOWN: tuple[tuple[t.Any, set[str]], ...] = (
    (_SQUASH, {"_squashed", "fattributes", "getattr", "setattr"}),
    (_TASK_PARENT, set("KeyError Sentinel _extend_value _get_parent_attribute _parent extend fattributes getattr hasattr prepend".split())),
    (
        _BLOCK_PARENT,
        set(
            "AttributeError KeyError Sentinel _extend_value _get_parent_attribute _parent _play _role extend fattributes get_dep_chain getattr hasattr "
            "prepend reverse".split()
        ),
    ),
    (_GET, {"AttributeError", "Sentinel", "_get_parent_attribute", "callable", "default", "getattr", "hasattr", "name"}),
    (_GET_OWN, {"Sentinel", "callable", "default", "getattr", "hasattr", "name", "setattr"}),
)


def is_known() -> bool:
    """Whether the running core's way of inheriting is the one that is stood for."""
    return all(set(function.__code__.co_names) == names for function, names in _KNOWN)


class _Inherited(t.NamedTuple):
    """One keyword of a class of tasks."""

    name: str
    key: str  # in the __dict__ of the task, and of what is around it
    default: t.Any
    targets: tuple[str, ...]  # the keys that setting it sets
    taken: bool  # the task's own value is the answer
    quick: bool  # so is the default, unless it is said elsewhere
    own: bool  # nobody else is asked


def _cached(function: t.Callable[[t.Any], t.Any]) -> t.Callable[[t.Any], t.Any]:
    """functools.cache, for mypy's sake: it does not take a class for hashable."""
    return functools.cache(function)


@_cached
def _keywords(cls: t.Any) -> tuple[_Inherited, ...] | None:
    """The keywords of a class of tasks in core's order; None if it inherits in a way of its own."""
    plain = cls.__setattr__ is object.__setattr__ and cls.__getattribute__ is object.__getattribute__ and not hasattr(cls, "__getattr__")
    if not plain or cls.squash is not _quick_squash or cls._get_parent_attribute is not _TASK_PARENT:
        return None
    found = []
    for name, attribute in cls.fattributes.items():
        kind: t.Any = type(attribute)
        key = f"_{attribute.name}"
        targets = (key,) if attribute.alias is None else (key, f"_{attribute.alias}")
        if kind.__set__ is not _SET or any(target in base.__dict__ for base in cls.__mro__ for target in targets):
            return None
        getter = plain_getter(kind)
        own = getter is _GET_OWN
        plain = (own or getter is _GET) and not hasattr(cls, f"_get_attr_{attribute.name}")
        taken = plain and not getattr(attribute, "extend", False)
        # Put together from nothing it is an empty list, and so must be the default.
        quick = taken or (plain and attribute.default is list)
        found.append(_Inherited(name, key, attribute.default, targets, taken, quick, own))
    return tuple(found)


@_cached
def _class_names(cls: t.Any) -> frozenset[str]:
    """What every object of the class answers to."""
    return frozenset(name for base in cls.__mro__ for name in base.__dict__ if name[:1] == "_" and name[:2] != "__")


def _said_around(task: t.Any) -> set[str] | None:
    """The keys of keywords that anything around the task may say; None if there is something that inherits in a way of its own."""
    said: set[str] = set()
    thing = task._parent
    while thing is not None:
        asks = type(thing)._get_parent_attribute
        if asks is _BLOCK_PARENT:
            around = [thing, thing._role, thing._play, *(thing.get_dep_chain() or ())]
        elif asks is _TASK_PARENT:
            around = [thing]
        else:
            return None
        for one in around:
            if one is not None:
                cls: t.Any = type(one)
                if cls.__getattribute__ is not object.__getattribute__ or hasattr(cls, "__getattr__"):
                    return None
                said |= _class_names(cls)
                said.update([key for key, value in one.__dict__.items() if value is not Sentinel])
        thing = thing._parent
    return said


def _quick_squash(self: t.Any) -> None:
    """See the module's text."""
    if self._squashed:
        return
    keywords = _keywords(type(self)) if isinstance(self, Task) and not self._finalized else None
    said = _said_around(self) if keywords is not None else None
    if keywords is None or said is None:
        _SQUASH(self)
        return
    held = self.__dict__
    for name, key, default, targets, taken, quick, own in keywords:
        value = held.get(key, Sentinel)
        if value is Sentinel and quick and (own or key not in said):
            value = default() if callable(default) else default
        elif value is Sentinel or not taken:
            value = getattr(self, name)
        for target in targets:
            held[target] = value
    self._squashed = True


@contextlib.contextmanager
def quick_squashes() -> t.Iterator[None]:
    """While active, tasks learn what they inherit in one go."""
    if FieldAttributeBase.squash is not _SQUASH or not is_known():
        yield
        return
    FieldAttributeBase.squash = _quick_squash  # type: ignore[method-assign]
    try:
        yield
    finally:
        FieldAttributeBase.squash = t.cast(types.FunctionType, _SQUASH)  # type: ignore[method-assign]
