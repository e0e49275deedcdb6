"""Keywords of tasks, blocks and play contexts are read in C while one of our strategies runs: some 300 for each task and host.

A keyword that is there is in the object's `__dict__`. Core's descriptors make up its name, ask whether the class has a function of its own to read it, and
whether the object is squashed or validated, before they look there. What is not there, and all that blocks, roles or the play may say, is left to them.
"""

from __future__ import annotations

import contextlib
import types
import typing as t

from ansible.playbook import attribute as core
from ansible.playbook.attribute import Attribute, FieldAttribute
from ansible.utils.sentinel import Sentinel

from churten import _core

# To 2.20: looks whether it is one of two values, and imports two modules for each look.
_CONNECTION: t.Any = getattr(core, "ConnectionFieldAttribute", None)
_CONNECTION_NAMES = set("__get__ ansible.module_utils.compat.paramiko ansible.utils.ssh_functions check_for_controlpersist super".split())

# The descriptors, the names they use, and the object's flags of which one must be set.
_KNOWN: tuple[tuple[t.Any, set[str], tuple[str, ...]], ...] = (
    (FieldAttribute, {"AttributeError", "Sentinel", "_get_parent_attribute", "callable", "default", "getattr", "hasattr", "name"}, ("_squashed", "_finalized")),
    (Attribute, {"Sentinel", "callable", "default", "getattr", "hasattr", "name", "setattr"}, ()),
)


def plain_getter(kind: t.Any) -> t.Any:
    """Core's `__get__` of a class of attributes, whoever stands for it."""
    return getattr(kind.__get__, "stock", kind.__get__)


@contextlib.contextmanager
def quick_reads() -> t.Iterator[None]:
    """While active, keywords that are there are read in C."""
    stock: list[tuple[t.Any, t.Any, tuple[str, ...], tuple[str, ...]]]
    stock = [(kind, kind.__get__, flags, ()) for kind, names, flags in _KNOWN if _names(kind.__get__) == names]
    own = _CONNECTION is not None and "__get__" in _CONNECTION.__dict__
    if own and _names(_CONNECTION.__get__) - {"paramiko", "_paramiko"} == _CONNECTION_NAMES:
        stock += [(_CONNECTION, _CONNECTION.__get__, flags, ("smart", "persistent")) for kind, _, flags, _ in stock if kind is FieldAttribute]
    for kind, getter, flags, but in stock:
        kind.__get__ = _core.Reader(getter, flags, _places, Sentinel, but)
    try:
        yield
    finally:
        for kind, getter, _, _ in stock:
            kind.__get__ = getter


def _names(function: types.FunctionType) -> set[str]:
    return set(function.__code__.co_names)


def _places(cls: t.Any) -> dict[t.Any, str]:
    """See `_core.Reader`."""
    if cls.__getattribute__ is not object.__getattribute__ or hasattr(cls, "__getattr__") or not hasattr(cls, "fattributes"):
        return {}
    places: dict[t.Any, str] = {}
    for attribute in cls.fattributes.values():
        key = f"_{attribute.name}"
        if not hasattr(cls, f"_get_attr_{attribute.name}") and not any(key in base.__dict__ for base in cls.__mro__):
            places[id(attribute)] = key
    if places and not hasattr(cls, "_get_parent_attribute"):
        places[None] = ""  # nobody else has a say
    return places
