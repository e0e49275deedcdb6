"""Results on their way to callbacks, by C: core copies each in Python, to 2.20 once for every callback plugin and with internal keys taken out; from 2.19 on it
goes through it once more to make every value a native one, which of native values makes a copy.

A callback of ours that looks at nothing but whose result it is and what became of it gets the result itself, with no copy made for it at all.
"""

from __future__ import annotations

import contextlib
import threading
import typing as t
from collections.abc import MutableMapping, MutableSequence

from ansible.errors import AnsibleError
from ansible.utils import vars as utils_vars

from churten import _core

try:
    from ansible.errors import AnsibleCallbackError
except ImportError:  # core before 2.19
    AnsibleCallbackError = AnsibleError

try:
    from ansible.executor import task_result
except ImportError:  # core 2.21 and later copy otherwise
    task_result = None  # type: ignore[assignment]
try:
    from ansible._internal import _json
except ImportError:  # before 2.19
    _json = None  # type: ignore[assignment]

_NAMES = ("module_response_deepcopy", "strip_internal_keys")
_NEEDED = ("_callback_plugins", "_callback_lock", "_callback_dispatch_error_handler")
_CONTAINERS = (MutableMapping, MutableSequence)
# The names that core's functions use, as far as they are stood for here.
_NATIVE = frozenset("AnsibleVariableVisitor DECRYPT EncryptedStringBehavior REDACT _json visit".split())
_EARLY = frozenset("TrustedAsTemplate _AnsibleTaggedStr _sentinel str tag trusted_as_template".split())
_VISIT = frozenset(
    "AnsibleTagHelper AnsibleTaggedObject AnsibleVariableTypeError DECRYPT EncryptedString EncryptedStringBehavior FAIL Iterable Origin PRESERVE REDACT "
    "_ANSIBLE_ALLOWED_MAPPING_VAR_TYPES _ANSIBLE_ALLOWED_NON_SCALAR_COLLECTION_VAR_TYPES _ANSIBLE_ALLOWED_VAR_TYPES _current _datatag _early_visit _internal "
    "_native_copy _sentinel _template_engine _transform _type_transform_mapping apply_transforms bool cast convert_custom_scalars convert_mapping_to_dict "
    "convert_sequence_to_list convert_to_native_values encrypted_string_behavior enumerate float from_value int is_intermediate_iterable "
    "is_intermediate_mapping is_tagged_on isinstance items origin str t tag tag_copy transform type".split()
)
_SAMPLE = {"a": [1, 2.5, True, None, {"b": ["x", {}, []]}], 3: "y"}


@contextlib.contextmanager
def quick_results() -> t.Iterator[None]:
    """While active, results are copied for callbacks by C."""
    with _copies(), _natives():
        yield


@contextlib.contextmanager
def _copies() -> t.Iterator[None]:
    stock = [getattr(task_result, name, None) for name in _NAMES]
    if None in stock:
        yield
        return
    copy, strip = t.cast("list[t.Callable[..., t.Any]]", stock)

    def module_response_deepcopy(v: t.Any) -> t.Any:
        return _core.response_copy(v, copy)

    def strip_internal_keys(dirty: t.Any, exceptions: t.Any = None) -> t.Any:
        _core.response_strip(dirty, () if exceptions is None else exceptions, _CONTAINERS, strip)
        return dirty

    for name, mine in zip(_NAMES, (module_response_deepcopy, strip_internal_keys), strict=True):
        setattr(task_result, name, mine)
    try:
        yield
    finally:
        for name, function in zip(_NAMES, stock, strict=True):
            setattr(task_result, name, function)


@contextlib.contextmanager
def uncopied_results(tqm: t.Any) -> t.Iterator[None]:
    """While active, callback plugins get their methods in `UNCOPIED` called with the strategy's own result, after all other plugins had theirs.

    They must not change it. Their methods in `UNNEEDED` are not called. Core's loop passes by such a plugin, but for its other methods.
    Only where core knows each plugin's methods beforehand (2.19 and later); elsewhere nothing is different.
    """
    takers: dict[str, list[tuple[t.Any, t.Callable[..., object]]]] = {}
    others: set[str] = set()
    before: list[tuple[t.Any, t.Any]] = []
    passed: list[t.Any] = []
    every = tqm._callback_plugins if all(hasattr(tqm, name) for name in _NEEDED) else []
    for plugin in every:
        methods = getattr(plugin, "_implemented_callback_methods", None)
        mine = frozenset(getattr(plugin, "UNCOPIED", ()))
        if not mine or not isinstance(methods, frozenset) or not mine <= methods:
            continue
        before.append((plugin, methods))
        rest = plugin._implemented_callback_methods = methods - mine - frozenset(getattr(plugin, "UNNEEDED", ()))
        if "v2_on_any" not in rest:
            passed.append(plugin)
            others |= rest
        for name in mine:
            takers.setdefault(name, []).append((plugin, getattr(plugin, name)))
    if not takers:
        yield
        return
    stock, lock, turns = tqm.send_callback, tqm._callback_lock, threading.RLock()
    few = [plugin for plugin in every if plugin not in passed]

    def send_callback(method_name: str, *args: t.Any, **kwargs: t.Any) -> None:
        if method_name in others:
            with turns:  # two threads may tell of items; one that tells of something else does no harm
                tqm._callback_plugins = every
                try:
                    stock(method_name, *args, **kwargs)
                finally:
                    tqm._callback_plugins = few
        else:
            stock(method_name, *args, **kwargs)
        if method_name not in takers:
            return
        for plugin, method in takers[method_name]:
            if plugin.disabled:
                continue
            with lock:
                try:
                    method(*args, **kwargs)
                except Exception as ex:
                    with tqm._callback_dispatch_error_handler.handle(AnsibleCallbackError):  # as core would
                        raise AnsibleCallbackError(f"Callback dispatch {method_name!r} failed for plugin {plugin._load_name!r}.") from ex

    tqm.send_callback = send_callback
    tqm._callback_plugins = few
    try:
        yield
    finally:
        tqm.send_callback = stock
        tqm._callback_plugins = every
        for plugin, methods in before:
            plugin._implemented_callback_methods = methods


@contextlib.contextmanager
def _natives() -> t.Iterator[None]:
    stock = getattr(utils_vars, "transform_to_native_types", None)
    if stock is None or not makes_native_as_known(stock):
        yield
        return

    def transform_to_native_types(value: object, redact: bool = True) -> t.Any:
        copy = _core.native_copy(value)
        return stock(value, redact) if copy is NotImplemented else copy

    utils_vars.transform_to_native_types = transform_to_native_types
    try:
        yield
    finally:
        utils_vars.transform_to_native_types = stock


def makes_native_as_known(stock: t.Any) -> bool:
    """Whether core's function is the one that is known, and copies native values."""
    visitor = getattr(_json, "AnsibleVariableVisitor", None)
    parts: list[tuple[str, t.Any]] = [("_early_visit", _EARLY), ("_visit", _VISIT), ("_visit_key", {"visit_keys"})]
    used = [(stock, _NATIVE), *((getattr(visitor, name, len), names) for name, names in parts)]
    inlined = {"_visit", "_visit_key"}  # comprehensions, from Python 3.12 on
    if any(set(getattr(getattr(function, "__code__", None), "co_names", ())) - inlined != names for function, names in used):
        return False
    return repr(stock(_SAMPLE)) == repr(_SAMPLE)
