"""The keywords of tasks, blocks and play contexts, walked without core's detours while one of our strategies runs.

For each task and host core copies the task twice and the play context twice, and validates and dumps them: some 700 keywords. Core does each through
descriptors and by name. Here a class's keywords are listed once, and what they hold is taken from and put into the object's `__dict__`, in C
(`csrc/py_keywords.c`).

- Copies: the same values, containers copied, scalars shared. (Core copies tagged strings too, which nobody can change.)
- Validation (2.19 and later): what a keyword without a template gives is remembered by its value object.
- Dumps of validated objects, and tasks made of them.

Nothing here replaces a function of core that does not look as it is known to: `_is_known` compares the names it uses.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import types
import typing as t
from copy import copy as shallow_copy

from ansible import context
from ansible.playbook.attribute import Attribute, FieldAttribute
from ansible.playbook.base import FieldAttributeBase
from ansible.playbook.block import Block
from ansible.playbook.loop_control import LoopControl
from ansible.playbook.play_context import PlayContext
from ansible.playbook.role_include import IncludeRole
from ansible.playbook.task import Task
from ansible.utils.sentinel import Sentinel

from churten import _core

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
# What core's validator of a name uses.
_NAME = set("ReplacingMarkerBehavior TemplateOptions _marker_behaviors extend name template warning_context".split())


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
    held: bool  # the same, if something is there
    empty: list[t.Any] | None  # validating an empty list gives (2.19 and later) another list like this one, or the same object if it is `_SAME`


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
        sets = getter is _GET_OWN and callable(attribute.default)  # reading it sets it, if nothing is there
        found.append(_Keyword(name, attribute, key, targets, direct, never and not sets, never and direct, _of_empty(cls, name, attribute)))
    return tuple(found)


@_cached
def walk(cls: t.Any) -> _core.Keywords | None:
    """What goes through the keywords of a class; None if there is more to getting and setting them."""
    keywords = _keywords(cls)
    return None if keywords is None else _core.Keywords(tuple(map(_row, keywords)), Sentinel, _SHARED)


def _row(keyword: _Keyword) -> tuple[t.Any, ...]:
    """See `_core.Keywords`."""
    attribute = keyword.attribute
    flags = {
        _core.KEYWORD_DIRECT: keyword.direct,
        _core.KEYWORD_SKIPPED: keyword.skipped,
        _core.KEYWORD_SKIPPED_IF_HELD: keyword.held,
        _core.KEYWORD_STATIC: attribute.static,
        _core.KEYWORD_SAME: keyword.empty is _SAME,
        _core.KEYWORD_OBJECT: attribute.isa == "class",
        _core.KEYWORD_CALLABLE: callable(attribute.default),
    }
    return keyword.name, keyword.key, keyword.targets, sum(flag for flag, true in flags.items() if true), attribute.default, keyword.empty


_SAME: list[t.Any] = []
# What core's validator of an environment does uses these names; it makes one dict of a list of them.
_ENVIRONMENT = set(
    "AnsibleUndefinedVariable AnsibleValueOmittedError C _ACTION_FACT_GATHERING action dict display isinstance template to_native warning".split()
)


def _as_it_is(self: t.Any, attr: t.Any, value: t.Any, templar: t.Any) -> t.Any:
    """What core's validators do that leave a keyword for later."""
    return value


def _of_empty(cls: t.Any, name: str, attribute: t.Any) -> list[t.Any] | None:
    if not (issubclass(cls, (Task, LoopControl)) and getattr(cls, "_post_validate_object", False)) or issubclass(cls, IncludeRole):
        return None
    if attribute.isa != "list" or attribute.static or attribute.required:
        return None
    validator = getattr(cls, f"_post_validate_{name}", None)
    if validator is None:
        return []
    code = t.cast(types.FunctionType, validator).__code__
    if name == "environment" and names_of(code) == _ENVIRONMENT and attribute.listof is None:
        return [{}]
    return _SAME if (code.co_code, code.co_argcount) == (_as_it_is.__code__.co_code, _as_it_is.__code__.co_argcount) else None


def names_of(code: types.CodeType) -> set[str]:
    """The names used by a function, and by those inside of it."""
    return set(code.co_names).union(*(names_of(one) for one in code.co_consts if isinstance(one, types.CodeType)))


_BLANKS: tuple[t.Any, ...] = (Task, Block, LoopControl, PlayContext)
_blanks: dict[type, tuple[t.Any, dict[str, t.Any] | None]] = {}


def _blank(cls: t.Any) -> dict[str, t.Any] | None:
    """The `__dict__` of an object that was just made, keywords included, if making another would give the same (but for `_uuid`)."""
    known = _blanks.get(cls)
    if known is None or known[0] is not context.CLIARGS:  # which play contexts look at
        known = _blanks[cls] = context.CLIARGS, _learn_blank(cls)
    return known[1]


def _learn_blank(cls: t.Any) -> dict[str, t.Any] | None:
    if cls not in _BLANKS or cls.__new__ is not object.__new__:
        return None
    first, second = cls().__dict__, cls().__dict__
    first["_uuid"] = second["_uuid"] = None
    if first != second or not all(isinstance(value, _SHARED) for value in first.values()):
        return None
    return first | {place: first.get(place, Sentinel) for keyword in _keywords(cls) or () for place in keyword.targets}


def _as_deep_as_constructors() -> None:
    """RecursionError where the constructors that are not called would end in one."""

    def second() -> None:
        def third() -> None:
            pass

        third()

    second()


def _copy(stock: t.Callable[[t.Any], t.Any]) -> t.Callable[[t.Any], t.Any]:
    def copy(self: t.Any) -> t.Any:
        keywords = walk(type(self))
        if keywords is None:
            return stock(self)
        old = self.__dict__
        blank = _blank(type(self)) if "_uuid" in old else None
        try:
            if blank is None:
                new_me = self.__class__()
            else:
                new_me = object.__new__(type(self))
                new_me.__dict__ = blank.copy()
                _as_deep_as_constructors()
        except RecursionError:
            return stock(self)  # which says it in core's words
        new = new_me.__dict__
        keywords.copy(old, new, shallow_copy)
        for key in _COPIED:
            if key in old:
                new[key] = old[key]
        return new_me

    return copy


def _dump_attrs(stock: t.Callable[[t.Any], t.Any]) -> t.Callable[[t.Any], t.Any]:
    serializes = "serialize" in t.cast(types.FunctionType, stock).__code__.co_names  # to 2.19

    def of_object(value: t.Any) -> t.Any:
        if not serializes:
            return value.dump_attrs()
        return value.serialize() if hasattr(value, "serialize") else value

    def dump_attrs(self: t.Any) -> t.Any:
        keywords = walk(type(self)) if self._squashed or self._finalized else None
        return stock(self) if keywords is None else keywords.dump(self, self.__dict__, of_object)

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


def keyword_places(cls: t.Any) -> dict[str, tuple[str, ...]] | None:
    """Keyword: the keys that setting it sets in an object's `__dict__`; None if there may be more to it."""
    return _targets(cls) or None


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
        # For each class a keyword's answers, by the number of the value object: that object (so no number is used again), and the result.
        self._known: dict[tuple[type, str], dict[int, tuple[t.Any, t.Any]]] = collections.defaultdict(dict)
        self._walks: dict[type, tuple[_core.Keywords | None, tuple[dict[int, t.Any], ...], bool]] = {}
        self._fixed: dict[tuple[type, str], bool] = {}
        # A keyword that must be no template is looked at, and nothing else.
        self._tells_templates = {"is_template", "warning"} <= set(stock.__code__.co_names)

    def validate_all(self, owner: t.Any, templar: t.Any) -> None:
        """Every keyword of `owner`. A validator may set other keywords, so each is read when its turn comes."""
        cls = type(owner)
        found = self._walks.get(cls)
        if found is None:
            known = tuple([self._known[cls, keyword.name] for keyword in _keywords(cls) or ()])
            found = self._walks[cls] = walk(cls), known, not hasattr(cls, "_get_parent_attribute")
        keywords, known, alone = found
        if keywords is None:
            self._stock_all(owner, templar=templar)
            return
        keywords.validate(owner, owner.__dict__, alone or owner._squashed or owner._finalized, known, templar)
        owner._finalized = True

    def validate(self, owner: t.Any, name: str, *, templar: t.Any) -> t.Any:
        """One keyword of `owner`."""
        value = getattr(owner, name)
        answers = self._known[type(owner), name]
        known = answers.get(id(value))
        if known is not None and known[0] is value:
            return known[1]
        attribute = owner.fattributes[name]
        result = self._stock(owner, name, templar=templar)
        if attribute.static:
            keep = result is Sentinel and name != "vars" and (value is None or _is_plain(value)) and self._tells_templates
        elif value is None:
            keep = not attribute.required
        else:
            keep = _is_plain(value) and self._is_fixed(owner, name, attribute)
            if name == "name":
                keep = keep and result is value  # it is set by its own validator, too
        if keep:
            if len(answers) >= _LIMIT:
                answers.clear()
            answers[id(value)] = (value, result)
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
                and (not hasattr(owner, f"_post_validate_{name}") or (name == "name" and _validates_name(type(owner))))
            )
        return fixed


def _validates_name(cls: t.Any) -> bool:
    """Whether a task's name is validated by templating it and nothing else."""
    return set(cls._post_validate_name.__code__.co_names) == _NAME


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
