"""A parser of arguments where options may stand between the others, as they may in other programs: `compare OLD --limit 3 NEW`."""

from __future__ import annotations

import argparse
import typing as t


class MixedParser(argparse.ArgumentParser):
    """argparse alone gives an optional argument up at the first option behind the arguments before it."""

    _inside = False

    def parse_known_args(self, args: t.Any = None, namespace: t.Any = None) -> tuple[argparse.Namespace, list[str]]:  # type: ignore[override]
        """What a parent parser calls."""
        if self._inside:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False
