"""The strategies where the executor does not load: the extension was built for another Python, a library is missing, ansible-core is unknown to it.

Imports nothing of churten that could fail.
"""

from __future__ import annotations

import typing as t

from ansible.utils.display import Display

_said: set[str] = set()


class Plain:
    """In place of the executor's mixins: the built-in strategy as it is."""

    builtin_name = ""
    problem = ""

    def __init__(self, tqm: t.Any) -> None:
        super().__init__(tqm)  # type: ignore[call-arg]
        if self.builtin_name == "host_pinned":
            self._host_pinned = True

    def run(self, iterator: t.Any, play_context: t.Any) -> t.Any:
        if self.problem not in _said:
            _said.add(self.problem)
            Display().warning(
                f"churten does not load: {self.problem} The built-in strategy {self.builtin_name} runs this play."
            )
        return super().run(iterator, play_context)  # type: ignore[misc]


def without(error: ImportError) -> t.Any:
    """A mixin for strategy plugins that says `error` once and does nothing."""
    return type("Plain", (Plain,), {"problem": f"{error}."})
