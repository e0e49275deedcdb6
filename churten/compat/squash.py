"""`Task.squash` without a walk through blocks, roles and the play for each keyword.

A task takes what it does not say itself from the blocks, roles and the play around it. Core asks all of them anew for each of some 35 keywords of each
task on each host, and nearly always finds nothing. Here it is looked (`csrc/py_keywords.c`) whether a keyword is said anywhere around the task; for all others
the answer is the task's own value, or the default. Those that are said, and those that are put together from several places (`extend`) if the task or anything
around it says them, are left to core.

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

from churten import _core

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


def _cached(function: t.Callable[[t.Any], t.Any]) -> t.Callable[[t.Any], t.Any]:
    """functools.cache, for mypy's sake: it does not take a class for hashable."""
    return functools.cache(function)


@_cached
def _keywords(cls: t.Any) -> _core.Keywords | None:
    rows = _rows(cls)
    return None if rows is None else _core.Keywords(rows, Sentinel, ())


def _rows(cls: t.Any) -> tuple[t.Any, ...] | None:
    """The keywords of a class of tasks in core's order, for `_core.Keywords`; None if it inherits in a way of its own."""
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
        extend = getattr(attribute, "extend", False)
        taken = plain and not extend
        flags = {
            _core.KEYWORD_TAKEN: taken,  # the task's own value is the answer
            # So is the default, unless it is said elsewhere. Put together from nothing it is an empty list.
            _core.KEYWORD_QUICK: plain,
            _core.KEYWORD_OWN: own,  # nobody else is asked
            _core.KEYWORD_CALLABLE: extend or callable(attribute.default),
        }
        default = list if extend else attribute.default
        found.append((name, key, targets, sum(flag for flag, true in flags.items() if true), default, None))
    return tuple(found)


@_cached
def _class_names(cls: t.Any) -> frozenset[str]:
    """What every object of the class answers to."""
    return frozenset(name for base in cls.__mro__ for name in base.__dict__ if name[:1] == "_" and name[:2] != "__")


@_cached
def _is_plain(cls: t.Any) -> bool:
    return cls.__getattribute__ is object.__getattribute__ and not hasattr(cls, "__getattr__")


def _around(task: t.Any) -> list[t.Any] | None:
    """What may say keywords beside the task, as `_core.Keywords.squash` takes it; None if there is something that inherits in a way of its own."""
    found: list[t.Any] = []
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
                cls = type(one)
                if not _is_plain(cls):
                    return None
                found += one.__dict__, _class_names(cls)
        thing = thing._parent
    return found


def _has_parent(task: t.Any) -> bool:
    """Whether core asks anybody beside the task; if not, nothing is put together."""
    parent = task._parent
    if parent is not None and not getattr(parent, "statically_loaded", True):
        parent = parent._parent
    return parent is not None


def _quick_squash(self: t.Any) -> None:
    """See the module's text."""
    if self._squashed:
        return
    keywords = _keywords(type(self)) if isinstance(self, Task) and not self._finalized else None
    around = _around(self) if keywords is not None and _has_parent(self) else None
    if keywords is None or around is None:
        _SQUASH(self)
        return
    keywords.squash(self, self.__dict__, around)
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
