"""What of a result is kept out of the history, beside what ansible-core has censored already (`no_log` of tasks, items and module parameters).

Hidden are values whose name says password, passphrase, secret, token, or private or access key; and, wherever they appear in a text, the passwords of
connections and become (asked for, or set as variables) and everything that came out of a vault: encrypted values and encrypted files of variables.
A secret that a task computes or fetches itself is not known to anybody: such tasks need `no_log`, as for the screen.
"""

from __future__ import annotations

import re
import typing as t

HIDDEN = "********"
SHORTEST = 4  # shorter secrets would blank half of every text
_NAME = re.compile(
    r"(?:^|[_-])(?:pass|password|passwd|passphrase|secret|token|(?:api|private|access|secret)[_-]?key)$|^ansible_\w*pass(?:word)?$", re.I
)
_DEEPEST = 100
_PLAIN = (str, int, float, bool, type(None))


class Hider:
    """Makes contents fit to be kept."""

    def __init__(self, encrypted: t.Callable[[object], bool]) -> None:
        """`encrypted`: whether a value came out of a vault."""
        self._encrypted = encrypted
        self._secrets: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def learn(self, secrets: t.Iterable[str]) -> None:
        """Texts to hide from now on."""
        new = {secret.strip() for secret in secrets}
        new = {secret for secret in new if len(secret) >= SHORTEST} - self._secrets
        if new:
            self._secrets |= new
            longest_first = sorted(self._secrets, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def plain(self, value: t.Any, depth: int = 0) -> t.Any:
        """`value` as plain JSON types, with what must be hidden hidden. Internal keys (`_ansible_...`) are left out."""
        if type(value) not in _PLAIN and not isinstance(value, (t.Mapping, list, tuple)) and self._encrypted(value):
            return HIDDEN
        if isinstance(value, str):
            text = str(value)
            return self._pattern.sub(HIDDEN, text) if self._pattern is not None else text
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if value == value and abs(value) != float("inf") else str(float(value))
        if depth > _DEEPEST:
            return "..."
        if isinstance(value, t.Mapping):
            found = {}
            for key, item in value.items():
                name = self.plain(str(key))
                if name.startswith("_ansible_"):
                    continue
                hidden = isinstance(item, (str, int, float)) and not isinstance(item, bool) and item != "" and _NAME.search(name)
                found[name] = HIDDEN if hidden else self.plain(item, depth + 1)
            return found
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.plain(item, depth + 1) for item in value]
        if isinstance(value, (bytes, bytearray)):
            return self.plain(bytes(value).decode("utf-8", "replace"))
        return self.plain(str(value))


def is_secret_name(name: str) -> bool:
    """Whether a value of this name is hidden."""
    return _NAME.search(name) is not None
