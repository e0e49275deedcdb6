"""Regular expressions that are compiled when they are first used: to compile all of them takes longer than everything else that is done at the start."""

from __future__ import annotations

import re
import typing as t


class _Pattern:
    def __init__(self, text: t.Any, flags: int) -> None:
        self._text = text
        self._flags = flags

    def __getattr__(self, name: str) -> t.Any:
        found = getattr(re.compile(self._text, self._flags), name)
        setattr(self, name, found)
        return found


def pattern(text: t.AnyStr, flags: int = 0) -> re.Pattern[t.AnyStr]:
    """As `re.compile`, later."""
    return t.cast("re.Pattern[t.AnyStr]", _Pattern(text, flags))
