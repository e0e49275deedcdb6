"""Facts on their way into a task's variables: core deep-copies them twice and searches them for internal keys, for every task on every host.

For facts of 60 KB that is 2.4 ms per task and host, far more than reading them. What comes out depends on the facts alone: the same values, under names
that depend on the names alone, less what must not be there. So for a facts object that was looked at once, the outcome is a C copy under the names that core
gave before: fresh containers each time, as from core.

Remembered are only plain facts (exact dicts and lists, no container twice, no internal keys inside), of the cache plugins that hand out the same object until
it is set again, and until core sets or clears that host's facts. Anything else takes core's way.
"""

from __future__ import annotations

import contextlib
import typing as t

from ansible import constants as C
from ansible.vars import manager

from churten import _core

_SAME_OBJECT = ("memory", "ansible.builtin.memory", "ansible.legacy.memory", "churten.core.jsonfile")
_LIMIT = 100_000

Names = tuple[tuple[str, str], ...]  # new name, name in the facts


class FactsMemo:
    """Stands for `namespace_facts` and `clean_facts` of core's variable manager."""

    def __init__(self, namespace: t.Callable[[t.Any], t.Any], clean: t.Callable[[t.Any], t.Any]) -> None:
        self._namespace = namespace
        self._clean = clean
        self._seen: dict[int, tuple[t.Any, Names | None, Names | None]] = {}  # by id: the facts themselves, so no id is used again
        self._names: dict[tuple[str, ...], tuple[Names, Names]] = {}
        self._nothing: t.Any = None  # what core makes of no facts

    def namespace(self, facts: t.Any) -> t.Any:
        """As core's: `{"ansible_facts": facts under short names}`."""
        names = self._known(facts)[1]
        if names is None:
            return self._namespace(facts)
        copy = _core.isolate(facts)
        return {"ansible_facts": {new: copy[old] for new, old in names}}

    def clean(self, facts: t.Any) -> t.Any:
        """As core's: the facts that may become variables."""
        if type(facts) is dict and not facts:
            return self._clean_nothing()
        names = self._known(facts)[2]
        if names is None:
            return self._clean(facts)
        copy = _core.isolate(facts)
        return {new: copy[old] for new, old in names}

    def _clean_nothing(self) -> t.Any:
        """Core looks through all connection plugins even for a host without facts."""
        if self._nothing is None:
            self._nothing = self._clean({})
        return _core.isolate(self._nothing)

    def forget(self, facts: t.Any) -> None:
        """The facts will change."""
        self._seen.pop(id(facts), None)

    def _known(self, facts: t.Any) -> tuple[t.Any, Names | None, Names | None]:
        found = self._seen.get(id(facts))
        if found is None:
            if not facts:
                return None, None, None
            if len(self._seen) >= _LIMIT:
                self._seen.clear()
            found = self._seen[id(facts)] = facts, *(self._both(tuple(facts)) if _core.is_plain(facts) else (None, None))
        return found

    def _both(self, keys: tuple[str, ...]) -> tuple[Names, Names]:
        """Core's answers for facts whose values are their own names."""
        found = self._names.get(keys)
        if found is None:
            skeleton = {key: key for key in keys}
            found = tuple(self._namespace(skeleton)["ansible_facts"].items()), tuple(self._clean(dict(skeleton)).items())
            self._names[keys] = found
        return found


@contextlib.contextmanager
def remembered_facts() -> t.Iterator[None]:
    """While active, unchanged facts are searched once."""
    kept = {name: getattr(manager, name, None) for name in ("namespace_facts", "clean_facts")}
    cls = manager.VariableManager
    stock = {name: getattr(cls, name, None) for name in ("set_host_facts", "clear_facts")}
    if C.CACHE_PLUGIN not in _SAME_OBJECT or None in (*kept.values(), *stock.values()):
        yield
        return
    memo = FactsMemo(kept["namespace_facts"], kept["clean_facts"])  # type: ignore[arg-type]

    def forgetting(method: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
        def changed(self: t.Any, host: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
            try:
                memo.forget(self._fact_cache.get(host))
            except KeyError:
                pass
            return method(self, host, *args, **kwargs)

        return changed

    manager.namespace_facts, manager.clean_facts = memo.namespace, memo.clean
    for name, method in stock.items():
        setattr(cls, name, forgetting(t.cast("t.Callable[..., t.Any]", method)))
    try:
        yield
    finally:
        manager.namespace_facts, manager.clean_facts = kept["namespace_facts"], kept["clean_facts"]
        for name, method in stock.items():
            setattr(cls, name, method)
