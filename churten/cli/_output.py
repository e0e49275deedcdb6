"""Where a report goes: the standard output, or a file that is there whole or not at all."""

from __future__ import annotations

import os
import sys
import tempfile
import typing as t


def write(path: str | None, pieces: t.Iterable[str]) -> None:
    """The text to `path` (None or "-": the standard output). A file is written beside its place, 0600, and then takes it. OSError if that fails."""
    if path is None or path == "-":
        for piece in pieces:
            sys.stdout.write(piece)
        sys.stdout.flush()
        return
    if os.path.exists(path) and not os.path.isfile(path):
        if os.path.isdir(path):
            raise IsADirectoryError(None, "it is a directory")
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as device:
            device.writelines(pieces)
        return
    folder = os.path.dirname(os.path.abspath(path))
    descriptor, temporary = tempfile.mkstemp(prefix=".churten-", dir=folder)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(pieces)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
