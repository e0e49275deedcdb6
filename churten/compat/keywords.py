"""The keywords of tasks, blocks and play contexts, walked without core's detours while one of our strategies runs.

For each task and host core copies the task twice and the play context twice, and validates and dumps them: some 700 keywords. Core does each through
descriptors and by name. Here a class's keywords are listed once, and what they hold is taken from and put into the object's `__dict__`.

- Copies: the same values, containers copied, scalars shared. (Core copies tagged strings too, which nobody can change.)
- Validation (2.19 and later): what a keyword without a template gives is remembered by its value object.
- Dumps of validated objects, and tasks made of them.

Nothing here replaces a function of core that does not look as it is known to: `_is_known` compares the names it uses.
"""

from __future__ import annotations

import contextlib
import functools
import types
import typing as t
from copy import copy as shallow_copy

from ansible.playbook.attribute import Attribute, FieldAttribute
from ansible.playbook.base import FieldAttributeBase
from ansible.playbook.block import Block
from ansible.playbook.loop_control import LoopControl
from ansible.playbook.play_context import PlayContext
from ansible.playbook.role_include import IncludeRole
from ansible.playbook.task import Task
from ansible.utils.sentinel import Sentinel

from .readers import plain_getter

_LIMIT = 10_000
_EMPTY = (list, dict)
_SET: t.Any = Attribute.__set__
_GET: t.Any = FieldAttribute.__get__  # asks blocks, roles and the play too
_GET_OWN: t.Any = Attribute.__get__
_SHARED = (str, int, float, type(None), type)  # never changed in place: a copy may hold the same object

# Function of FieldAttributeBase: the names that the versions of it use which are stood for here.
_KNOWN = {
    "copy": (
        {"AnsibleError", "RuntimeError", "Sentinel", "__class__", "_ds", "_finalized", "_loader", "_uuid", "_validated", "_variable_manager"}
        | {"fattributes", "getattr", "hasattr", "setattr", "shallowcopy"},  # to 2.18
        {"AnsibleError", "RecursionError", "Sentinel", "__class__", "_ds", "_finalized", "_loader", "_origin", "_uuid", "_validated"}
        | {"_variable_manager", "fattributes", "getattr", "hasattr", "setattr", "shallowcopy"},
    ),
    "post_validate": ({"Sentinel", "_finalized", "fattributes", "post_validate_attribute", "setattr"},),  # from 2.19
    "dump_attrs": (
        {"fattributes", "getattr", "hasattr", "isa", "items", "serialize"},  # to 2.19
        {"dump_attrs", "fattributes", "getattr", "isa", "items"},
    ),
    "from_attrs": (
        {"_finalized", "_squashed", "class_type", "deserialize", "dict", "fattributes", "isa", "isinstance", "items", "setattr"},  # to 2.19
        {"class_type", "dict", "fattributes", "from_attrs", "isa", "isinstance", "items", "setattr"},
    ),
}
_COPIED = ("_loader", "_variable_manager", "_origin", "_validated", "_finalized", "_uuid", "_ds")


def _is_known(name: str, function: types.FunctionType) -> bool:
    return set(function.__code__.co_names) in _KNOWN[name]


class _Keyword(t.NamedTuple):
    """One keyword of a class."""

    name: str
    attribute: t.Any
    key: str  # in the object's __dict__
    targets: tuple[str, ...]  # the keys that setting it sets
    direct: bool  # once the object is squashed, reading it is reading `key`, unless nothing is there
    skipped: bool  # validating it gives nothing for objects of this class (2.19 and later)
    empty: int  # validating an empty list gives (2.19 and later) the same object: _SAME; another: _NEW; something else: 0


def _cached(function: t.Callable[[t.Any], t.Any]) -> t.Callable[[t.Any], t.Any]:
    """functools.cache, for mypy's sake: it does not take a class for hashable."""
    return functools.cache(function)


@_cached
def _keywords(cls: t.Any) -> tuple[_Keyword, ...] | None:
    """The keywords of a class in core's order; None if getting and setting them may be more than it looks."""
    if cls.__setattr__ is not object.__setattr__ or cls.__getattribute__ is not object.__getattribute__ or hasattr(cls, "__getattr__"):
        return None
    found = []
    for name, attribute in cls.fattributes.items():
        kind: t.Any = type(attribute)
        key = f"_{name}"
        if kind.__set__ is not _SET or any(key in base.__dict__ for base in cls.__mro__):
            return None
        targets = (f"_{attribute.name}",) if attribute.alias is None else (f"_{attribute.name}", f"_{attribute.alias}")
        getter = plain_getter(kind)
        plain = getter in (_GET, _GET_OWN)
        direct = plain and not hasattr(cls, f"_get_attr_{attribute.name}") and key in targets
        # Blocks and plays: their values are validated where tasks inherit them.
        never = not (getattr(cls, "_post_validate_object", True) or attribute.always_post_validate or attribute.static or attribute.required)
        never = never and not (getter is _GET_OWN and callable(attribute.default))  # reading that sets it
        found.append(_Keyword(name, attribute, key, targets, direct, never, _of_empty(cls, name, attribute)))
    return tuple(found)


_SAME, _NEW = 1, 2


def _as_it_is(self: t.Any, attr: t.Any, value: t.Any, templar: t.Any) -> t.Any:
    """What core's validators do that leave a keyword for later."""
    return value


def _of_empty(cls: t.Any, name: str, attribute: t.Any) -> int:
    if not (issubclass(cls, (Task, LoopControl)) and getattr(cls, "_post_validate_object", False)) or issubclass(cls, IncludeRole):
        return 0
    if attribute.isa != "list" or attribute.static or attribute.required:
        return 0
    validator = getattr(cls, f"_post_validate_{name}", None)
    if validator is None:
        return _NEW
    code, plain = getattr(validator, "__code__", None), _as_it_is.__code__
    return _SAME if code is not None and (code.co_code, code.co_argcount) == (plain.co_code, plain.co_argcount) else 0


def _copy(stock: t.Callable[[t.Any], t.Any]) -> t.Callable[[t.Any], t.Any]:
    def copy(self: t.Any) -> t.Any:
        keywords = _keywords(type(self))
        if keywords is None:
            return stock(self)
        try:
            new_me = self.__class__()
        except RecursionError:
            return stock(self)  # which says it in core's words
        old, new = self.__dict__, new_me.__dict__
        for _, _, key, targets, _, _, _ in keywords:
            value = old.get(key, Sentinel)
            if not isinstance(value, _SHARED):
                value = shallow_copy(value)
            for target in targets:
                new[target] = value
        for key in _COPIED:
            if key in old:
                new[key] = old[key]
        return new_me

    return copy


def _dump_attrs(stock: t.Callable[[t.Any], t.Any]) -> t.Callable[[t.Any], t.Any]:
    serializes = "serialize" in t.cast(types.FunctionType, stock).__code__.co_names  # to 2.19

    def dump_attrs(self: t.Any) -> t.Any:
        keywords = _keywords(type(self)) if self._squashed or self._finalized else None
        if keywords is None:
            return stock(self)
        attrs, held = {}, self.__dict__
        for name, attribute, key, _, direct, _, _ in keywords:
            value = held.get(key, Sentinel) if direct else Sentinel
            if value is Sentinel:
                value = getattr(self, name)
            if attribute.isa == "class":
                if not serializes:
                    value = value.dump_attrs()
                elif hasattr(value, "serialize"):
                    value = value.serialize()
            attrs[name] = value
        return attrs

    return dump_attrs


def _from_attrs(stock: t.Callable[[t.Any, t.Any], None]) -> t.Callable[[t.Any, t.Any], None]:
    def from_attrs(self: t.Any, attrs: dict[str, t.Any]) -> None:
        targets = _targets(type(self))
        held, rest = self.__dict__, {}
        for name, value in attrs.items():
            if name in targets:
                for target in targets[name]:
                    held[target] = value
            else:
                rest[name] = value
        stock(self, rest)

    return from_attrs


@_cached
def _targets(cls: t.Any) -> dict[str, tuple[str, ...]]:
    """What setting a keyword sets, for those that are not objects of their own."""
    return {keyword.name: keyword.targets for keyword in _keywords(cls) or () if keyword.attribute.isa != "class"}


class AttributeMemo:
    """Stands for `FieldAttributeBase.post_validate` and `post_validate_attribute` (core 2.19 and later).

    Remembers, for one attribute and one value *object*, what validating it gave, if that cannot depend on anything else: the value is a scalar without a
    template and the attribute has no validator of its own. Tasks are copied for each host, but their values are the same objects.
    """

    def __init__(self, stock: t.Callable[..., t.Any], stock_all: t.Callable[..., t.Any]) -> None:
        self._stock = stock
        self._stock_all = stock_all
        self._known: dict[tuple[type, int, int], tuple[t.Any, t.Any]] = {}
        self._fixed: dict[tuple[type, str], bool] = {}

    def validate_all(self, owner: t.Any, templar: t.Any) -> None:
        """Every keyword of `owner`."""
        cls = type(owner)
        keywords = _keywords(cls)
        if keywords is None:
            self._stock_all(owner, templar=templar)
            return
        held, known_values = owner.__dict__, self._known
        settled = owner._squashed or owner._finalized or not hasattr(cls, "_get_parent_attribute")
        for name, attribute, key, targets, direct, skipped, empty in keywords:
            if skipped:
                continue
            # A validator may set other keywords, so each is read when its turn comes.
            value = held.get(key, Sentinel) if direct and settled else Sentinel
            if value is Sentinel:
                value = attribute.default if direct and settled and not callable(attribute.default) else getattr(owner, name)
            if attribute.static and type(value) in _EMPTY and not value:
                continue
            if empty and type(value) is list and not value:
                value = value if empty == _SAME else []
                for target in targets:
                    held[target] = value
                continue
            known = known_values.get((cls, id(attribute), id(value)))
            result = known[1] if known is not None and known[0] is value else owner.post_validate_attribute(name, templar=templar)
            if result is not Sentinel:
                for target in targets:
                    held[target] = result
        owner._finalized = True

    def validate(self, owner: t.Any, name: str, *, templar: t.Any) -> t.Any:
        """One keyword of `owner`."""
        attribute = owner.fattributes[name]
        value = getattr(owner, name)
        key = (type(owner), id(attribute), id(value))
        known = self._known.get(key)
        if known is not None and known[0] is value:
            return known[1]
        result = self._stock(owner, name, templar=templar)
        unset = value is None and not attribute.static and not attribute.required
        if unset or (value is not None and _is_plain(value) and self._is_fixed(owner, name, attribute)):
            if len(self._known) >= _LIMIT:
                self._known.clear()
            self._known[key] = (value, result)
        return result

    def _is_fixed(self, owner: t.Any, name: str, attribute: t.Any) -> bool:
        """Whether the outcome for a plain value depends on nothing but the attribute and the value."""
        key = (type(owner), name)
        fixed = self._fixed.get(key)
        if fixed is None:
            fixed = self._fixed[key] = (
                isinstance(owner, (Task, Block, LoopControl, PlayContext))
                and not isinstance(owner, IncludeRole)
                and not attribute.static
                and not attribute.required
                and attribute.isa in (None, "string", "int", "float", "bool", "percent")
                and not hasattr(owner, f"_post_validate_{name}")
            )
        return fixed


def _is_plain(value: t.Any) -> bool:
    """A scalar that no template engine would touch."""
    if isinstance(value, str):
        return "{" not in value and not value.startswith("#jinja2:")
    return isinstance(value, (bool, int, float))


@contextlib.contextmanager
def remembered_attributes() -> t.Iterator[None]:
    """While active, plain keywords are validated once."""
    stock, stock_all = FieldAttributeBase.post_validate_attribute, FieldAttributeBase.post_validate
    memo = AttributeMemo(stock, stock_all)

    def post_validate_attribute(self: t.Any, name: str, *, templar: t.Any) -> t.Any:
        return memo.validate(self, name, templar=templar)

    def post_validate(self: t.Any, templar: t.Any) -> None:
        memo.validate_all(self, templar)

    FieldAttributeBase.post_validate_attribute = post_validate_attribute  # type: ignore[method-assign]
    skips = "_post_validate_object" in t.cast(types.FunctionType, stock).__code__.co_names
    if skips and _is_known("post_validate", t.cast(types.FunctionType, stock_all)):
        FieldAttributeBase.post_validate = post_validate  # type: ignore[method-assign]
    try:
        yield
    finally:
        FieldAttributeBase.post_validate_attribute = stock  # type: ignore[method-assign]
        FieldAttributeBase.post_validate = stock_all  # type: ignore[method-assign]


@contextlib.contextmanager
def quick_copies() -> t.Iterator[None]:
    """While active, tasks, blocks and play contexts are copied and dumped without core's detours."""
    quick: dict[str, t.Callable[..., t.Any]] = {"copy": _copy, "dump_attrs": _dump_attrs, "from_attrs": _from_attrs}
    stock = {name: getattr(FieldAttributeBase, name) for name in quick}
    for name, make in quick.items():
        if _is_known(name, stock[name]):
            setattr(FieldAttributeBase, name, make(stock[name]))
    try:
        yield
    finally:
        for name, function in stock.items():
            setattr(FieldAttributeBase, name, function)
