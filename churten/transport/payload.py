"""Recognises a pipelined AnsiballZ module, so that it can run in a warm agent instead of a fresh interpreter.

Ansible hands a connection plugin two things for a pipelined module: a shell command that starts an interpreter, and a Python program of 100 to 300 KB
for its stdin. `ModuleCall.from_wrapper` takes the program apart, `unwrap_command` the command. Both know exactly the forms ansible-core writes and
answer None for anything else; the caller then sends command and program on unchanged, which is always right and merely slower.

Nothing here executes the program: values are read with `ast.literal_eval` from the lines where ansible-core puts them.
"""

from __future__ import annotations

import ast
import base64
import binascii
import dataclasses
import functools
import hashlib
import importlib.util
import io
import json
import re
import shlex
import struct
import sys
import typing as t
import zipfile
import zlib
from pathlib import Path

from churten import late
from churten.transport import bootstrap, runtime

_MAIN_219 = b'\n\nif __name__ == "__main__":\n    _ansiballz_main(\n'
_KEYS_219 = {
    b"ansible_module",
    b"module_fqn",
    b"profile",
    b"date_time",
    b"rlimit_nofile",
    b"params",
    b"extensions",
    b"zip_data",
}
_OPTIONAL_219 = {b"secrets"}
_FQN = late.pattern(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_DATE_219 = late.pattern(rb"datetime\.datetime\([0-9, ]+(tzinfo=datetime\.timezone\.utc)?\)")

_END_218 = b"\nif __name__ == '__main__':\n    _ansiballz_main()"
_ZIP_218 = late.pattern(rb"\n    ZIPDATA = (?:'|\"\"\")([A-Za-z0-9+/=]*)(?:'|\"\"\")\n")
_PARAMS_218 = late.pattern(rb"\n    ANSIBALLZ_PARAMS = (.*)\n")
_RUN_218 = late.pattern(
    rb"\n        runpy\.run_module\(mod_name='([\w.]+)', init_globals=dict\(_module_fqn='([\w.]+)', _modlib_path=modlib_path\),\n"
)
_RLIMIT_218 = late.pattern(rb"\n    requested_soft = min\(existing_hard, ([0-9]+)\)\n")
_COVERAGE_218 = (b"import coverage\n", b"find_spec('coverage')")

MAGIC = importlib.util.MAGIC_NUMBER.hex()
_LEVEL = 3  # twice the time makes it 5 % smaller
_ZIP_MAX = 16 << 20  # the protocol's limit for a PAYLOAD frame
_PARAMS_MAX = 2 << 20  # larger ones would be a host's whole share of the pool's memory
_LOCAL_HEADER = 30  # bytes of a zip entry's own header before its name; the last four are the lengths of name and extra field
_zips: dict[bytes, _Zip] = {}

# Modules of core that do their work and keep nothing in their process: several of them may run in one, one after the other (docs/protocol.md, `stays`).
_STAYING = frozenset(
    f"ansible.modules.{name}"
    for name in "assemble async_status blockinfile command copy file find getent lineinfile ping replace slurp stat tempfile".split()
)
_MADE_BY_CORE = frozenset({"ansible/__init__.py", "ansible/module_utils/__init__.py"})  # written into each archive


class _Zip:
    """One module archive: its bytes and the facts of its contents that do not change from run to run."""

    def __init__(self, data: bytes):
        self.data = data
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            self.entries = sorted((i.filename, i.CRC, i.file_size) for i in archive.infolist())
        self.keys: dict[str, str] = {}
        self._is_core: bool | None = None
        self._packed: dict[bool, list[bytes]] = {}

    def packed(self, compiled: bool) -> list[bytes]:
        """Archive and compiled code (or none) as PAYLOAD has them: a third of their size."""
        if compiled not in self._packed:
            self._packed[compiled] = [_pack(self.data), self._code() if compiled else b""]
        return self._packed[compiled]

    def _code(self) -> bytes:
        """Its modules as this Python compiles them, packed (`bootstrap.marshal_payload`). That takes some hundredths of a second: it is kept for later runs."""
        name = bootstrap.code_name(self._contents())
        found = runtime.cache_get(name)
        if found is None:
            found = _pack(bootstrap.marshal_payload(self.data))
            runtime.cache_put(name, found)
        return found

    def _contents(self) -> bytes:
        """A digest of all that is in the archive; its times, which differ in every run, are not."""
        digest = hashlib.sha256()
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.filename):
                name = info.filename.encode()
                digest.update(b"%d %d %d\n" % (len(name), info.compress_type, info.compress_size))
                digest.update(name)
                start = info.header_offset + _LOCAL_HEADER + sum(struct.unpack_from("<HH", self.data, info.header_offset + _LOCAL_HEADER - 4))
                digest.update(self.data[start : start + info.compress_size])
        return digest.digest()

    def key(self, fqn: str) -> str:
        """The content key: the archive's own bytes differ in every run (time stamps), what is in it does not."""
        if fqn not in self.keys:
            whole = json.dumps([fqn, self.entries], separators=(",", ":")).encode()
            self.keys[fqn] = hashlib.sha256(whole).hexdigest()
        return self.keys[fqn]

    def stays(self, fqn: str) -> bool:
        """Whether a process may run this module more than once: it is one of those, and no file is another of the same name (a play may bring such)."""
        if fqn not in _STAYING:
            return False
        return self.is_core()

    def is_core(self) -> bool:
        """Whether every file is as ansible-core installed it."""
        if self._is_core is None:
            self._is_core = all(name in _MADE_BY_CORE or _installed(name) == (crc, size) for name, crc, size in self.entries)
        return self._is_core


def _pack(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + zlib.compress(data, _LEVEL)


def _installed(name: str) -> tuple[int, int] | None:
    """CRC and size of the file of ansible-core that an archive calls `name`."""
    core = sys.modules.get("ansible")
    if core is None:
        return None
    try:
        data = Path(core.__path__[0]).parent.joinpath(name).read_bytes()
    except OSError:
        return None
    return zlib.crc32(data), len(data)


def _zip(text: bytes) -> _Zip:
    """The archive written as `text`; decoded once per process."""
    digest = hashlib.sha256(text).digest()
    found = _zips.get(digest)
    if found is None:
        found = _zips[digest] = _Zip(base64.b64decode(text, validate=True))
    return found


_WRAPPER = "ansible.modules.async_wrapper"
_with_wrapper: dict[tuple[str, str], _Zip | None] = {}  # by the keys of both


def with_wrapper(module: Module, wrapper: Module) -> Module | None:
    """`module` with the files of `wrapper`, core's own async_wrapper, in its archive; None if that is something else, or if they do not go together."""
    if wrapper.fqn != _WRAPPER or wrapper.form != module.form or wrapper.rlimit_nofile != module.rlimit_nofile:
        return None
    keys = module.key, wrapper.key
    if keys not in _with_wrapper:
        _with_wrapper[keys] = _joined(module.archive, wrapper.archive)
    archive = _with_wrapper[keys]
    return None if archive is None else dataclasses.replace(module, archive=archive, key=archive.key(module.fqn))


def _joined(archive: _Zip, wrapper: _Zip) -> _Zip | None:
    if not wrapper.is_core():
        return None
    known = {name: (crc, size) for name, crc, size in archive.entries}
    if any(known.get(name, (crc, size)) != (crc, size) for name, crc, size in wrapper.entries):
        return None
    out = io.BytesIO(archive.data)
    with zipfile.ZipFile(out, "a") as joined, zipfile.ZipFile(io.BytesIO(wrapper.data)) as more:
        for info in more.infolist():
            if info.filename not in known:
                joined.writestr(info, more.read(info))
    return _Zip(out.getvalue())


@dataclasses.dataclass(frozen=True)
class Module:
    """What an agent needs to run a module, beside interpreter and environment; `docs/protocol.md`, RUN."""

    key: str
    archive: _Zip
    fqn: str
    params: bytes  # JSON
    profile: str  # empty: the wire form of core <= 2.18
    rlimit_nofile: int
    form: str  # "219" or "218"
    secrets: str  # JSON list, or empty for none

    def stays(self) -> bool:
        return self.archive.stays(self.fqn)

    def payload(self, magic: str) -> tuple[str, t.Callable[[], list[str | bytes]]]:
        """Key and items of the PAYLOAD frame for an agent whose HELLO says (or will probably say) `magic`: with compiled code if it is for that Python."""
        if magic != MAGIC:
            return self.key, lambda: [self.key, *self.archive.packed(False), ""]
        key = f"{self.key}-{magic}"
        return key, lambda: [key, *self.archive.packed(True), magic]


class ModuleCall(bytes):
    """A wrapper program, as bytes, that also knows what it runs. Accepted by `exec_command` as `in_data`."""

    module: Module
    _build: t.Callable[[], bytes] | None = None  # for one without its program: makes it

    @classmethod
    def light(cls, module: Module, build: t.Callable[[], bytes]) -> ModuleCall:
        """A call that knows what it runs but not yet the program; `program()` builds it when it is needed after all."""
        call = cls(b"churten: the program of this module was not built\n")
        call.module = module
        call._build = build
        return call

    @classmethod
    def from_wrapper(cls, wrapper: bytes) -> ModuleCall | None:
        """Take `wrapper` apart; None if it is not exactly what ansible-core writes."""
        try:
            module = _parse_219(wrapper) or _parse_218(wrapper)
        except (
            ValueError,
            SyntaxError,
            TypeError,
            KeyError,
            MemoryError,
            RecursionError,
            binascii.Error,
            zipfile.BadZipFile,
        ):
            return None
        if module is None:
            return None
        call = cls(wrapper)
        call.module = module
        return call


def program(in_data: bytes | None) -> bytes | None:
    """`in_data` as the built-in plugins want it: plain bytes, with a module's program text built if it was not yet."""
    if not isinstance(in_data, ModuleCall):
        return in_data
    return in_data._build() if in_data._build is not None else bytes(in_data)


def recognise(in_data: bytes | None) -> Module | None:
    """The module in `in_data`, or None when it is anything else."""
    if not in_data:
        return None
    call = in_data if isinstance(in_data, ModuleCall) else ModuleCall.from_wrapper(in_data)
    return call.module if call is not None else None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a string")
    return value


def _literal(text: bytes) -> object:
    return ast.literal_eval(text.decode("utf-8"))


def _is_wrapper(head: bytes) -> bool:
    return head.startswith(b"#!") and b"\n_ANSIBALLZ_WRAPPER = True" in head[:4096]


def _params(value: object) -> bytes:
    """The parameters as JSON bytes, checked to be what a module expects."""
    text = _text(value)
    if not text.startswith('{"ANSIBLE_MODULE_ARGS": {') or not text.endswith("}}"):
        raise ValueError("unknown parameters")
    return text.encode()


def _module(text: bytes, fqn: str, params: bytes, profile: str, rlimit: int, form: str, secrets: str) -> Module | None:
    if not _FQN.fullmatch(fqn) or rlimit < 0:
        return None
    archive = _zip(text)
    if len(archive.data) > _ZIP_MAX - 4096 or len(params) > _PARAMS_MAX:
        return None
    return Module(archive.key(fqn), archive, fqn, params, profile, rlimit, form, secrets)


def _parse_219(wrapper: bytes) -> Module | None:
    """The form of core 2.19 and later: keyword arguments of one call, one per line, at the end of the program."""
    at = wrapper.rfind(_MAIN_219)
    if at < 0 or not wrapper.endswith(b",\n)\n") or not _is_wrapper(wrapper):
        return None
    values: dict[bytes, bytes] = {}
    for line in wrapper[at + len(_MAIN_219) : -3].split(b"\n"):
        name, equals, value = line.partition(b"=")
        if not equals or not value.endswith(b",") or name in values:
            return None
        values[name] = value[:-1]
    if not _KEYS_219 <= set(values) <= _KEYS_219 | _OPTIONAL_219:
        return None
    if values[b"extensions"] != b"{}" or not _DATE_219.fullmatch(values[b"date_time"]):
        return None
    text = values[b"zip_data"]
    if len(text) < 2 or text[:1] != b"'" or text[-1:] != b"'":
        return None
    rlimit = _literal(values[b"rlimit_nofile"])
    if not isinstance(rlimit, int) or isinstance(rlimit, bool):
        return None
    return _module(
        text[1:-1],
        _text(_literal(values[b"module_fqn"])),
        _params(_literal(values[b"params"])),
        _text(_literal(values[b"profile"])),
        rlimit,
        "219",
        _secrets(values.get(b"secrets", b"frozenset()")),
    )


def _secrets(text: bytes) -> str:
    if text == b"frozenset()":
        return ""
    if not text.startswith(b"frozenset({") or not text.endswith(b"})"):
        raise ValueError("unknown secrets")
    found = _literal(text[len(b"frozenset(") : -1])
    if not isinstance(found, set):
        raise ValueError("unknown secrets")
    return json.dumps(sorted(_text(s) for s in found))


def _once(pattern: re.Pattern[bytes], text: bytes) -> re.Match[bytes]:
    found = list(pattern.finditer(text))
    if len(found) != 1:
        raise ValueError("not exactly one")
    return found[0]


def _parse_218(wrapper: bytes) -> Module | None:
    """The form of core 2.18 and earlier: values written into a program text."""
    if not wrapper.endswith((_END_218, _END_218 + b"\n")) or not _is_wrapper(wrapper):
        return None
    archive = _once(_ZIP_218, wrapper)
    code = wrapper[: archive.start()] + b"\n" + wrapper[archive.end() :]
    params = _once(_PARAMS_218, code)
    code = code[: params.start()] + b"\n" + code[params.end() :]
    if any(word in code for word in _COVERAGE_218):
        return None
    run = _once(_RUN_218, code)
    if run.group(1) != run.group(2):
        return None
    rlimit = _once(_RLIMIT_218, code).group(1) if b"\n    import resource\n" in code else b"0"
    return _module(
        archive.group(1), run.group(1).decode(), _params(_literal(params.group(1))), "", int(rlimit), "218", ""
    )


# --- the command -----------------------------------------------------------------------------------------------------------------------------

_ID = "@CHURTEN-ID@"
_SHELLS = {"sh", "bash", "dash", "ash", "ksh"}
_NAME = late.pattern(r"[A-Za-z_]\w*")
# Variables that act when the interpreter starts, which for a warm agent was long ago.
_EARLY = ("PYTHON", "LD_", "MALLOC_", "GLIBC_")
_UTF8 = late.pattern(r"(C|POSIX|.*\.utf-?8(@\w+)?)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that only starts an interpreter for a program on its stdin."""

    interpreter: str
    env: tuple[str, ...]  # K=V, unquoted, in order
    become: str | None  # text before the become plugin's success command, without its random id; None without become
    shell: str  # the innermost shell named


def unwrap_command(cmd: str, become_id: str = "") -> Command | None:
    """Take apart `/bin/sh -c '[K=V ...] <interpreter> [&& sleep 0]'`, plain or around a become command whose id is `become_id`.

    None for every other shape, and for an environment that must be there when the interpreter starts.
    """
    if _ID in cmd:
        return None
    return _unwrap(cmd.replace(become_id, _ID) if become_id else cmd)


def unwrap_job(cmd: str, become_id: str = "") -> tuple[Command, list[str]] | None:
    """Take apart the command that starts an asynchronous job: as `unwrap_command`, but the interpreter gets words: the path of async_wrapper's program, the
    job's number, its time limit, the path of the module's program, and `_`; from 2.22 on, instead of the last two, `false`, this path, the module's interpreter
    and the path again. None for every other shape."""
    if _ID in cmd:
        return None
    words: list[str] = []
    command = _take_apart(cmd.replace(become_id, _ID) if become_id else cmd, words)
    if command is None or not re.fullmatch("j[0-9]+", "".join(words[1:2])) or not re.fullmatch("[0-9]+", "".join(words[2:3])):
        return None
    old, new = words[4:] == ["_"], len(words) == 7 and (words[3], words[5], words[6]) == ("false", command.interpreter, words[4])
    return (command, words) if old or new else None


@functools.lru_cache(maxsize=1024)
def _unwrap(cmd: str) -> Command | None:
    return _take_apart(cmd, None)


def _take_apart(cmd: str, arguments: list[str] | None) -> Command | None:
    """`arguments`: takes the words for the interpreter; None: it must have none."""
    try:
        inner, shell = _shell_command(cmd)
        if inner.endswith(" && sleep 0"):
            inner = inner[: -len(" && sleep 0")]
        if _ID not in inner:
            return _interpreter(inner, None, shell, arguments)
        words = shlex.split(inner)
        if len(words) < 4:
            return None
        last = f"{words[-3]} -c {shlex.quote(words[-1])}"
        marker = f"echo BECOME-SUCCESS-{_ID} ; "
        if not inner.endswith(" " + last) or not words[-1].startswith(marker):
            return None
        command, shell = _shell_command(last)
        return _interpreter(command[len(marker) :], inner[: -len(last)].strip(), shell, arguments)
    except ValueError:
        return None


def _shell_command(text: str) -> tuple[str, str]:
    """The command inside `shell -c '...'`, and the shell; ValueError for any other shape."""
    words = shlex.split(text)
    if len(words) != 3 or words[1] != "-c" or words[0].rpartition("/")[2] not in _SHELLS:
        raise ValueError("not a shell command")
    if f"{words[0]} -c {shlex.quote(words[2])}" != text:
        raise ValueError("quoted in another way")
    return words[2], words[0]


def _interpreter(text: str, become: str | None, shell: str, arguments: list[str] | None) -> Command | None:
    """`text` as environment and one word, or more for `arguments`. What Ansible's shell plugins would not write may mean something else to a shell."""
    words = shlex.split(text)
    env: list[tuple[str, str]] = []
    while words:
        name, equals, value = words[0].partition("=")
        if not equals or not _NAME.fullmatch(name):
            break
        env.append((name, value))
        words.pop(0)
    # A quoted `/usr/bin/env python3` is the name of one program, which no target has: its shell has the words for that.
    if not words or (arguments is None and len(words) != 1) or words[0].startswith("-") or words[0].split() != words[:1]:
        return None
    if text != " ".join([f"{k}={shlex.quote(v)}" for k, v in env] + [shlex.quote(word) for word in words]):
        return None
    if any(_acts_at_start(k, v, words[0]) for k, v in env):
        return None
    if arguments is not None:
        arguments += words[1:]
    return Command(words[0], tuple(f"{k}={v}" for k, v in env), become, shell)


def _acts_at_start(name: str, value: str, interpreter: str) -> bool:
    if name.startswith(_EARLY) or "\0" in value:
        return True
    if name == "PATH":
        return "/" not in interpreter
    if name == "LANG" or name == "LC_ALL" or name == "LC_CTYPE":
        return not _UTF8.fullmatch(value)
    return False
