"""The fact cache behind the cache plugin `churten.core.jsonfile`: the built-in jsonfile's files, decoded once, written atomically.

Names, contents and modes of the files are those of the running ansible-core's own jsonfile plugin (`churten.compat.cache`), so the two can be swapped at
any time. What differs, always for the better:

- a file that cannot be written whole keeps its old content (the built-in renames a truncated file over it); facts stay in memory for this run;
- a corrupt, special, linked or too large file is a miss with one warning, and is left alone; the built-in deletes it and aborts the run;
- a host name never leads out of the cache directory;
- a process decodes a file once; from ansible-core 2.19 on the built-in decodes it at every read;
- a value that is set again unchanged only gets a new modification time: ansible-core 2.22 sets every host's facts after every task.

The C part (csrc/facts.c, csrc/py_facts.c) takes plain values; what it refuses goes through core's own encoder and decoder, with the same result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
import typing as t

from .compat import cache as compat

LIMIT = 64 * 1024 * 1024
MODE = 0o644
_MISSING = object()


@dataclasses.dataclass(slots=True)
class _Entry:
    value: object = _MISSING
    data: bytes | None = None  # what `value` is decoded from when somebody asks
    digest: bytes = b""  # of the file's content
    written: tuple[int, ...] | None = None  # identity of the file we wrote


class _Miss(Exception):
    """The file says nothing usable; the reason for the user."""


def open_store(plugin: t.Any, wrapped: bool, warn: t.Callable[[str], object]) -> Store:
    """The store of one plugin instance. `wrapped`: it serves an inventory plugin, and core (2.19 and later) has wrapped keys and values already."""
    persist = bool(plugin.get_option("persist_metadata")) if compat.has_persist_metadata() else True
    interposed = wrapped and persist and compat.has_interposer()
    return Store(plugin, compat.form_for(persist, interposed), interposed, wrapped, warn=warn)


class Store:
    """Get and set by host name. One per plugin instance and process; forks go on with what they inherited."""

    def __init__(
        self, plugin: t.Any, form: compat.Form, interposed: bool, wrapped: bool, warn: t.Callable[[str], object]
    ) -> None:
        from . import _core

        self._core = _core
        self._plugin = plugin
        self._form = form
        self._require_dict = not wrapped
        self._warn = warn
        self._memory: dict[str, _Entry] = {}
        self._warned: set[str] = set()
        self.interposed = interposed  # what core asks for as `_persistent`
        self._fast = form.fast
        # Core copies a host's facts before anything may change them; what an inventory plugin does with its data nobody knows.
        self._share = None if wrapped else _core.FactsShare()

    def get(self, key: str) -> object:
        """The value, read and decoded at most once. KeyError for a miss."""
        entry = self._memory.get(key)
        if entry is None:
            if key == "" or self.expired(key):
                raise KeyError(key)
            entry = self._memory[key] = _Entry(self._load(key))
        elif entry.data is not None:
            entry.value = self._decode(entry.data)
            entry.data = None
        return entry.value

    def set(self, key: str, value: object) -> None:
        """Remember the value and write its file. An error of the encoder is raised as core would, one of the file only warned about."""
        before = self._memory.get(key) or _Entry()
        if self._form.keeps_object:
            self._memory[key] = _Entry(value)
        try:
            data, plain = self._encode(value)
        except BaseException:
            if not self._form.keeps_object:
                self._memory.pop(key, None)  # the caller may have changed the object that was there: back to the file
            raise
        entry = _Entry(digest=hashlib.blake2b(data, digest_size=16).digest())
        same = entry.digest == before.digest
        if self._form.keeps_object or (same and plain and value is before.value):
            entry.value = value  # decoding would only make another one just like it
        else:
            entry.data = data
        self._memory[key] = entry
        try:
            path = self._path(key)
            if not same or before.written is None or not _refreshed(path, before.written):
                self._core.facts_write(path, data, MODE)
            entry.written = _identity(path)
        except (_Miss, OSError, ValueError) as ex:
            reason = os.strerror(ex.errno) if isinstance(ex, OSError) and ex.errno else str(ex)
            self._warn_once(
                "write " + reason,
                f"fact cache: {self._shown(key)} was not written, the old file stays as it was: {reason}",
            )

    def contains(self, key: str) -> bool:
        """Whether `get` would return a value."""
        try:
            self.get(key)
        except KeyError:
            return False
        return True

    def expired(self, key: str) -> bool:
        """Whether the file is older than the timeout; then what was read from it is forgotten too."""
        if self._too_old(self._full(key)):
            self._memory.pop(key, None)
            return True
        return False

    def keys(self) -> list[str]:
        """Host names of the files that are not too old."""
        mark = self._form.key_prefix
        names = [name[len(mark) :] for name in self._names() if name.startswith(mark)]
        return [name for name in names if not self.expired(name)]

    def delete(self, key: str) -> None:
        """Forget the value and remove its file."""
        self._memory.pop(key, None)
        self._remove(self._full(key))

    def flush(self) -> None:
        """Remove every file of this prefix, also those of other ansible-core lines, as the built-in does."""
        self._memory.clear()
        for name in self._names():
            if not self._too_old(name):
                self._remove(name)

    def _full(self, key: str) -> str:
        return self._form.key_prefix + key

    def _names(self) -> list[str]:
        prefix = self._plugin.get_option("_prefix") or ""
        return [
            name[len(prefix) :]
            for name in os.listdir(compat.directory(self._plugin))
            if name.startswith(prefix) and not name.startswith(".")
        ]

    def _too_old(self, name: str) -> bool:
        timeout = compat.timeout_s(self._plugin)
        if timeout == 0:
            return False
        try:
            return time.time() - os.lstat(self._inside(name)).st_mtime > timeout
        except (OSError, ValueError, _Miss):
            return False

    def _remove(self, name: str) -> None:
        try:
            os.remove(self._inside(name))
        except (OSError, ValueError, _Miss):
            pass

    def _path(self, key: str) -> str:
        return self._inside(self._full(key))

    def _inside(self, name: str) -> str:
        """The path of a file of this directory; _Miss if the name would lead out of it."""
        directory = compat.directory(self._plugin)
        path = compat.file_name(self._plugin, name)
        rest = path[len(directory) :].lstrip("/")
        if "/" in rest or rest in ("", ".", ".."):
            parent = os.path.realpath(os.path.dirname(path))
            root = os.path.realpath(directory)
            if rest in ("", ".", "..") or ".." in rest.split("/") or os.path.commonpath([parent, root]) != root:
                raise _Miss("the name leads out of the cache directory")
        return path

    def _load(self, key: str) -> object:
        try:
            return self._read(self._path(key))
        except FileNotFoundError:
            pass
        except (_Miss, OSError, ValueError) as ex:
            reason = (ex.strerror if isinstance(ex, OSError) else None) or str(ex)
            self._warn_once("read " + key, f"fact cache: {self._shown(key)} is not used: {reason}")
        raise KeyError(key)

    def _read(self, path: str) -> object:
        try:
            data = self._core.facts_read(path, LIMIT)
        except self._core.Error:
            large = os.path.isfile(path) and not os.path.islink(path)
            raise _Miss(f"larger than {LIMIT // 2**20} MiB" if large else "not a regular file") from None
        try:
            value = self._decode(data)
        except Exception as ex:
            raise _Miss(f"not a valid cache file of this ansible-core ({type(ex).__name__})") from ex
        if self._require_dict and not isinstance(value, dict):
            raise _Miss("not a JSON object")
        return value

    def _encode(self, value: object) -> tuple[bytes, bool]:
        form = self._form
        if self._fast:
            try:
                return self._core.facts_encode(value, form.style, form.str_types, form.key_types, form.leaf)
            except Exception:
                pass  # not plain, or an error that core has to word
        return form.encode(value), False

    def _decode(self, data: bytes) -> object:
        form = self._form
        if self._fast:
            try:
                return self._core.facts_decode(data, form.style == "envelope", form.hook_keys, form.hook, self._share)
            except Exception:
                pass
        return form.decode(data)

    def _shown(self, key: str) -> str:
        try:
            return repr(compat.file_name(self._plugin, self._full(key)))
        except ValueError:
            return repr(key)

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            self._warn(message)


def _identity(path: str) -> tuple[int, ...]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _refreshed(path: str, written: tuple[int, ...]) -> bool:
    """Make the file new again if it still is the one that was written."""
    try:
        if _identity(path) != written:
            return False
        os.utime(path, follow_symlinks=False)
    except OSError:
        return False
    return True
