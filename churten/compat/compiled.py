"""The code of templates, and which filters are Jinja's own, kept while one of our strategies runs (2.19 and later).

Core makes Python code of a template each time it is rendered: the same file for each host, the same condition for each host and item. The code is a function
of the text, of settings of Jinja's environment (delimiters, white space), and of how the filters and tests that it names want to be called; of nothing else,
because core's environment computes nothing ahead (`optimized` is off, and `finalize` wants a context). With all of these in the key the kept code is what
would be made again. It is run in an environment of its own, as ever. A text that does not compile, extensions of Jinja, and all environments but core's own
go core's way.

Filters and tests that Jinja brings along are found last: core looks through its own collection for each of them, in each rendering. That they are not there is
remembered for as long as its loader keeps what it has loaded.
"""

from __future__ import annotations

import collections
import contextlib
import typing as t

import jinja2
from ansible._internal._templating import _jinja_bits
from ansible.module_utils._internal._datatag import AnsibleTagHelper, _AnsibleTaggedStr
from ansible.plugins.loader import Jinja2Loader, PluginLoadContext, get_with_context_result
from jinja2.environment import TemplateExpression
from jinja2.nodes import Filter, Template, Test
from jinja2.utils import _PassArg

_KEPT = 1000  # templates
_LONGEST = 1 << 18  # characters
_SETTINGS = (
    "block_start_string block_end_string variable_start_string variable_end_string comment_start_string comment_end_string line_statement_prefix "
    "line_comment_prefix trim_blocks lstrip_blocks newline_sequence keep_trailing_newline autoescape is_async sandboxed intercepted_binops intercepted_unops "
    "finalize code_generator_class"
).split()
_TEXTS = (str, _AnsibleTaggedStr)
_Plugins = tuple[tuple[bool, str, t.Any], ...]


class Kept:
    """The code of the last `_KEPT` templates."""

    def __init__(self) -> None:
        self._found: collections.OrderedDict[t.Any, tuple[t.Any, _Plugins]] = collections.OrderedDict()

    def get(self, env: t.Any, key: t.Any) -> t.Any:
        """The code, if it would come out the same today; None otherwise."""
        found = self._found.get(key)
        if found is None:
            return None
        code, plugins = found
        try:
            if any(_wants(env, is_filter, name) is not wanted for is_filter, name, wanted in plugins):
                return None
        except Exception:
            return None  # the compiler meets it, too
        self._found.move_to_end(key)
        return code

    def put(self, env: t.Any, key: t.Any, tree: Template, code: t.Any) -> None:
        """Keep what `tree` was made into."""
        named = {(isinstance(node, Filter), node.name) for node in tree.find_all((Filter, Test))}
        self._found[key] = code, tuple([(*one, _wants(env, *one)) for one in named])
        if len(self._found) > _KEPT:
            self._found.popitem(last=False)


def _wants(env: t.Any, is_filter: bool, name: str) -> t.Any:
    """What a filter or test gets beside its arguments; _wants if there is none, as for the compiler."""
    function = (env.filters if is_filter else env.tests).get(name)
    return _wants if function is None else _PassArg.from_obj(function)


def _key(env: t.Any, kind: str, source: t.Any) -> t.Any:
    """All that the code depends on, but the plugins; None where that is not known."""
    if type(env) is not _jinja_bits.AnsibleEnvironment or type(source) not in _TEXTS or len(source) > _LONGEST:
        return None
    if env.extensions or env.optimized or env._debuggable_template_source or _PassArg.from_obj(env.finalize) is not _PassArg.context or "autoescape" in source:
        return None
    context = _jinja_bits._TemplateCompileContext.current(optional=True)
    escapes = None if context is None else context.escape_backslashes
    text = AnsibleTagHelper.as_native_type(source)
    return kind, text, escapes, _jinja_bits._TemplateConfig.allow_embedded_templates, *[getattr(env, name) for name in _SETTINGS]


def is_known() -> bool:
    """Whether core's environment compiles as it is known to."""
    env = _jinja_bits.AnsibleEnvironment
    names = [name for kind in env.__mro__ if kind is not jinja2.Environment for name in vars(kind)]
    own = {"compile", "_generate", "_tokenize", "make_globals"} & set(names)
    return not own and all(hasattr(env, name) for name in ("compile_expression", "_debuggable_template_source"))


@contextlib.contextmanager
def kept_code() -> t.Iterator[None]:
    """While active, equal templates are compiled once."""
    if not is_known():
        yield
        return
    env: t.Any = _jinja_bits.AnsibleEnvironment
    stock, stock_expression = env.compile, env.compile_expression
    kept = Kept()
    made: list[tuple[Template, t.Any]] = []  # what an expression is compiled into on its way

    def compile(self: t.Any, source: t.Any, name: t.Any = None, filename: t.Any = None, raw: bool = False, defer_init: bool = False) -> t.Any:
        if name is not None or filename is not None or raw or defer_init:
            return stock(self, source, name, filename, raw, defer_init)
        if isinstance(source, Template):
            code = stock(self, source)
            made[:] = [(source, code)]
            return code
        key = _key(self, "template", source)
        if key is None:
            return stock(self, source)
        code = kept.get(self, key)
        if code is None:
            with contextlib.suppress(Exception):
                tree = self._parse(source, None, None)
                code = stock(self, tree)
                kept.put(self, key, tree, code)
        # What does not compile is told in core's own words, and outside of any handler: an error's context is shown.
        return stock(self, source) if code is None else code

    def compile_expression(self: t.Any, source: t.Any, undefined_to_none: bool = True) -> t.Any:
        key = _key(self, "expression", source)
        if key is None:
            return stock_expression(self, source, undefined_to_none)
        code = kept.get(self, key)
        if code is not None:
            return TemplateExpression(self.template_class.from_code(self, code, self.make_globals(None), None), undefined_to_none)
        made.clear()
        expression = stock_expression(self, source, undefined_to_none)
        with contextlib.suppress(Exception):
            if len(made) == 1:
                kept.put(self, key, *made[0])
        made.clear()
        return expression

    env.compile, env.compile_expression = compile, compile_expression
    try:
        yield
    finally:
        del env.compile
        env.compile_expression = stock_expression


@contextlib.contextmanager
def absent_plugins() -> t.Iterator[None]:
    """While active, a filter or test that core has not is searched for once."""
    if not {"_cached_non_collection_wrappers", "_ensure_non_collection_wrappers"} <= set(Jinja2Loader.get_with_context.__code__.co_names):
        yield
        return
    stock: t.Any = Jinja2Loader.get_with_context
    absent: dict[tuple[int, str], t.Any] = {}  # what the loader had loaded when it was not there

    def get_with_context(self: t.Any, name: str, *args: t.Any, **kwargs: t.Any) -> t.Any:
        if args or kwargs or "." in name:
            return stock(self, name, *args, **kwargs)
        loaded = self._cached_non_collection_wrappers
        if loaded and absent.get((id(self), name)) is loaded:
            return get_with_context_result(None, PluginLoadContext(self.type, self.package))
        found = stock(self, name)
        if found.object is None:
            absent[id(self), name] = self._cached_non_collection_wrappers
        return found

    Jinja2Loader.get_with_context = get_with_context  # type: ignore[method-assign]
    try:
        yield
    finally:
        Jinja2Loader.get_with_context = stock  # type: ignore[method-assign]
