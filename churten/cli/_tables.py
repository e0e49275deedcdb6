"""Tables in plain text: names to the left, figures to the right, as wide as the terminal; all of a name where there is no terminal."""

from __future__ import annotations

import shutil
import sys
import typing as t

from churten.timings.workers import one_line


def table(head: t.Sequence[str], rows: t.Sequence[t.Sequence[object]], stretch: int = 0) -> t.Iterator[str]:
    """Lines of a table. Columns whose heading begins with '<' are text. `stretch`: the column that is cut when the terminal is too narrow."""
    left = [name.startswith("<") for name in head]
    texts = [[name.lstrip("<") for name in head]] + [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(head))]
    if sys.stdout.isatty():
        spare = shutil.get_terminal_size((80, 24)).columns - sum(widths) - 2 * (len(widths) - 1)
        if spare < 0:
            widths[stretch] = max(12, widths[stretch] + spare)
    for row in texts:
        cells = []
        for i, text in enumerate(row):
            if len(text) > widths[i]:
                text = text[: widths[i] - 1] + "…"
            cells.append(text.ljust(widths[i]) if left[i] else text.rjust(widths[i]))
        yield "  ".join(cells).rstrip()


def seconds(value: float | None) -> str:
    """12.34s, or nothing when unknown."""
    return "" if value is None else f"{value:.2f}s"


def percent(value: float | None) -> str:
    """12 %, -3 %, nothing when unknown."""
    return "" if value is None else f"{round(100 * value)} %"


def bar(share: float, width: int) -> str:
    """A bar of `width` columns at share 1."""
    return "#" * max(0, min(width, round(share * width)))


def spark(values: t.Iterable[float | None]) -> str:
    """A small curve, one character per value; a space where there is none."""
    found = list(values)
    most = max((value for value in found if value is not None), default=0.0) or 1.0
    return "".join(" " if value is None else "▁▂▃▄▅▆▇█"[min(7, int(8 * value / most))] for value in found)


def _text(cell: object) -> str:
    return one_line("" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell))
