"""What files of module_utils import (2.19 and later), looked at once while one of our strategies runs.

For each module that it builds, core parses some forty files of `ansible.module_utils`, nearly the same ones each time: some 40 ms. What it finds in a file
depends on the file's name and content alone.
"""

from __future__ import annotations

import contextlib
import types
import typing as t

from ansible.executor import module_common

from .keywords import names_of

_OURS = "ansible.module_utils."
# What core's functions use, as far as this depends on it.
_USED = {"ModuleDepFinder", "optional_imports", "submodules"}
_COMPILE = set("AnsibleError Module Origin PyCF_ONLY_AST SyntaxError UNKNOWN ast cast compile get_tag lineno offset replace str t".split())


class _Parsed:
    """Stands for the tree of a file that was looked at already."""

    def __init__(self, name: str, source: t.Any) -> None:
        self.name = name
        self.source = source


class ImportMemo:
    """Stands for `ModuleDepFinder` and, to 2.20, for `_compile_module_ast`."""

    def __init__(self, finder: t.Callable[..., t.Any], compiled: t.Callable[[str, t.Any], t.Any]) -> None:
        self._finder = finder
        self._compiled = compiled
        self._known: dict[tuple[str, str, bytes, bool], t.Any] = {}

    def compile(self, name: str, source: t.Any) -> t.Any:
        """A tree, to 2.20; for what may have been looked at, it is made when it is needed."""
        return _Parsed(name, source) if name.startswith(_OURS) and isinstance(source, bytes) else self._compiled(name, source)

    def find(self, name: str, tree: t.Any, is_pkg_init: bool = False) -> t.Any:
        """A finder. `tree`: from 2.21 the source."""
        source = tree.source if isinstance(tree, _Parsed) else tree
        if not isinstance(source, bytes) or not name.startswith(_OURS):
            return self._look(name, tree, is_pkg_init)
        key = (name, _origin(source), bytes(source), bool(is_pkg_init))
        found = self._known.get(key)
        if found is None:
            found = self._look(name, self._compiled(name, source) if isinstance(tree, _Parsed) else tree, is_pkg_init)
            for unread in ("_tree", "tree"):
                if unread in found.__dict__:
                    setattr(found, unread, None)  # it is large
            self._known[key] = found
        again: t.Any = object.__new__(type(found))
        again.__dict__.update({key: set(value) if type(value) is set else value for key, value in found.__dict__.items()})
        return again

    def _look(self, *args: t.Any) -> t.Any:
        """Core's class calls itself by its name."""
        ours = module_common.ModuleDepFinder
        module_common.ModuleDepFinder = self._finder  # type: ignore[assignment,misc]
        try:
            return self._finder(*args)
        finally:
            module_common.ModuleDepFinder = ours  # type: ignore[misc]


def _origin(source: t.Any) -> str:
    return str(module_common.Origin.get_tag(source))  # type: ignore[attr-defined]


@contextlib.contextmanager
def remembered_imports() -> t.Iterator[None]:
    """While active, a file of module_utils is parsed once."""
    finder: t.Any = module_common.ModuleDepFinder
    compiled: t.Any = getattr(module_common, "_compile_module_ast", None)
    recursive: t.Any = module_common.recursive_finder
    known = isinstance(finder, type) and isinstance(compiled, types.FunctionType) and set(compiled.__code__.co_names) == _COMPILE
    if not known or not names_of(recursive.__code__) >= _USED:
        yield
        return
    memo = ImportMemo(finder, compiled)
    module_common.ModuleDepFinder = memo.find  # type: ignore[assignment,misc]
    if "_compile_module_ast" in recursive.__code__.co_names:  # to 2.20; later finders make their trees
        module_common._compile_module_ast = memo.compile  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module_common.ModuleDepFinder, module_common._compile_module_ast = finder, compiled  # type: ignore[attr-defined,misc]
