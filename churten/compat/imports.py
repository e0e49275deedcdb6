"""What files of module_utils import (2.19 and later), looked at once while one of our strategies runs.

For each module that it builds, core parses some forty files of `ansible.module_utils`, nearly the same ones each time: some 40 ms. What it finds in a file
depends on the file's name and content alone. What it found in core's own files is kept on disk for later runs, under a digest of both.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import types
import typing as t
from pathlib import Path

import ansible
from ansible.executor import module_common

from churten.transport import runtime

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


class Kept:
    """What was found in core's own files: of each, two lists of names.

    Only what the finders of 2.19 to 2.22 have: one with other public attributes, or with resources to embed, is not kept.
    """

    _PUBLIC = ({"submodules", "optional_imports", "module_fqn", "is_pkg_init"}, {"submodules", "optional_imports", "module_fqn", "is_pkg_init", "embeds"})
    _MOST = 2000  # some hundred files of one version are all there are

    def __init__(self) -> None:
        self._core = os.path.join(os.path.dirname(ansible.__file__), "")
        self._name = ""
        self._found: dict[str, t.Any] = {}
        self._new: dict[str, t.Any] = {}

    def digest(self, key: tuple[str, str, bytes, bool], source: t.Any) -> str:
        """Under which a file's imports are kept; empty for files that are not core's: parsing may have something to say about them."""
        tag = module_common.Origin.get_tag(source)  # type: ignore[attr-defined]
        if tag is None or not (tag.path or "").startswith(self._core):
            return ""
        name, origin, content, is_pkg_init = key
        return hashlib.sha256(b"\0".join([name.encode(), origin.encode(), b"%d" % is_pkg_init, content])).hexdigest()[:32]

    def get(self, digest: str, finder: type, name: str, is_pkg_init: bool) -> t.Any:
        """A finder that has found, or None."""
        if not self._name:
            self._load()
        try:
            submodules, optional, embeds = self._found[digest]
            found: t.Any = object.__new__(finder)
            found.__dict__.update(submodules=_names(submodules), optional_imports=_names(optional), module_fqn=name, is_pkg_init=is_pkg_init)
            if embeds:
                found.__dict__["embeds"] = set()
        except (KeyError, TypeError, ValueError):
            return None
        return found

    def put(self, digest: str, found: t.Any) -> None:
        public = {name for name in found.__dict__ if not name.startswith("_") and name != "tree"}
        if public in self._PUBLIC and not getattr(found, "embeds", None):
            self._new[digest] = [sorted(found.submodules), sorted(found.optional_imports), "embeds" in public]

    def save(self) -> None:
        """What is new, for later runs, beside what others have kept meanwhile."""
        if self._new:
            self._load()
            merged = {**self._found, **self._new}
            runtime.cache_put(self._name, json.dumps(merged if len(merged) <= self._MOST else self._new).encode())

    def _load(self) -> None:
        finder = Path(module_common.__file__).read_bytes()
        self._name = hashlib.sha256(b"\0".join([b"imports", sys.version.encode(), Path(__file__).read_bytes(), finder])).hexdigest()
        self._found = {}
        with contextlib.suppress(ValueError):
            found = json.loads(runtime.cache_get(self._name) or b"{}")
            self._found = found if isinstance(found, dict) else {}


def _names(found: list[list[str]]) -> set[tuple[str, ...]]:
    return {tuple(parts) for parts in found}


class ImportMemo:
    """Stands for `ModuleDepFinder` and, to 2.20, for `_compile_module_ast`."""

    def __init__(self, finder: t.Any, compiled: t.Callable[[str, t.Any], t.Any]) -> None:
        self._finder = finder
        self._compiled = compiled
        self.kept = Kept()
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
            digest = self.kept.digest(key, source)
            found = self._known[key] = self.kept.get(digest, self._finder, name, bool(is_pkg_init)) if digest else None
        if found is None:
            found = self._look(name, self._compiled(name, source) if isinstance(tree, _Parsed) else tree, is_pkg_init)
            if digest:
                self.kept.put(digest, found)
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
        memo.kept.save()
    finally:
        module_common.ModuleDepFinder, module_common._compile_module_ast = finder, compiled  # type: ignore[attr-defined,misc]
