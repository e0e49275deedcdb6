"""Starting an agent: the command line and the bytes for its stdin.

One remote command finds the interpreter, starts it once and writes nothing to the
target's disk. The command must pass through any login shell as it is, so it holds
no single quote, backslash, exclamation mark or newline inside its single quotes.
What the interpreter reads from its stdin (`start_input`):

    stage   STAGE_SIZE bytes of Python that any version since 2.7 can parse
    nonce   32 bytes
    sizes   two numbers of 8 digits: of the source and of the code that follow
    source  zlib: the parts of churten/agent as one program, without comments and docstrings
    magic   4 bytes: which interpreters the code is for
    code    zlib: the same, compiled, without line numbers (a target of our own
            Python version saves compiling, which costs more than its start)

`marshal_payload` does the same favour for a module's payload (PAYLOAD frame).
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import io
import marshal
import os
import re
import sys
import tokenize
import types
import zipfile
import zlib
from collections.abc import Sequence
from importlib.abc import SourceLoader
from pathlib import Path

from churten import agent, late
from churten.transport import runtime

STAGE_SIZE = 640

# Reads exactly SIZE bytes, then runs the stage. No quotes: it stands inside two
# kinds of them already.
LOADER = (
    "import os,sys;"
    "f=lambda b:b if len(b)==SIZE else f(b+(os.read(0,SIZE-len(b))or sys.exit(1)));"
    "d=f(bytes());exec(d[:STAGE])"
)

STAGE = """\
n=d[STAGE:STAGE+32]
if sys.version_info<(3,6):
 sys.stdout.write("\\nCHURTEN-%s-NOPYTHON\\n"%n.decode());sys.stdout.flush();sys.exit(0)
import zlib,marshal
from _frozen_importlib_external import MAGIC_NUMBER as m
a=STAGE+48
b=a+int(d[STAGE+32:a-8])
if m==d[b:b+4] and not sys.flags.optimize:c=marshal.loads(zlib.decompress(d[b+4:]))
else:c=compile(zlib.decompress(d[a:b]),"<churten agent>","exec",0,True)
g={"__name__":"churten_agent","__builtins__":__builtins__}
i=sys.argv[1] if len(sys.argv)>1 else ""
del d,f,a,b
exec(c,g)
g["main"](n,i)
"""

_WORD = late.pattern(r"[\w./+:@%=,~-]+\Z", re.ASCII)
_NONCE = late.pattern(r"[0-9a-f]{32}\Z")


PARTS = [Path(__file__).parent.parent / "agent" / f"{name}.py" for name in agent.PARTS]


def _agent_source() -> str:
    return join_parts([path.read_text(encoding="utf-8") for path in PARTS])


def join_parts(sources: Sequence[str]) -> str:
    """The parts of the agent as one program, line after line: but what a part imports from others, and what was imported before, is blank."""
    known: set[str] = set()
    parts = []
    for source in sources:
        lines = strip_source(source).removesuffix("\n").split("\n")
        for node in ast.parse(source).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)) and _is_needless(node, known):
                end = node.end_lineno or node.lineno
                lines[node.lineno - 1 : end] = [""] * (end - node.lineno + 1)
        parts += lines
    return "\n".join(parts) + "\n"


def place(line: int) -> str:
    """The file and line that a line of the program was, for a traceback of a target (of this very version)."""
    for path in PARTS:
        count = path.read_text(encoding="utf-8").count("\n")
        if line <= count:
            return f"{path.name}:{line}"
        line -= count
    raise ValueError("the agent has not so many lines")


def _is_needless(node: ast.Import | ast.ImportFrom, known: set[str]) -> bool:
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("churten.agent."):
        return True
    text = ast.unparse(node)
    if text in known:
        return True
    known.add(text)
    return False


def strip_source(source: str) -> str:
    """The same program without comments and docstrings; lines keep their numbers."""
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            continue
        first = node.body[0]
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            indent = lines[first.lineno - 1][: first.col_offset]
            for at in range(first.lineno - 1, first.end_lineno or first.lineno):
                lines[at] = ""
            lines[first.lineno - 1] = indent + "0"
    text = "\n".join(lines)
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    return "\n".join(lines)


def _without_lines(code: types.CodeType) -> types.CodeType:
    """Line and column tables are half of a code object: every instruction is on the first line instead. An empty table
    will not do: inspect.stack(), which modules use, wants a line for every frame below."""
    consts = tuple(
        _without_lines(item) if isinstance(item, types.CodeType) else item
        for item in code.co_consts
    )
    return code.replace(co_linetable=_one_line(len(code.co_code)), co_consts=consts)


def _one_line(size: int) -> bytes:
    """A line table that puts `size` bytes of code on one line (CPython: Objects/locations.md, lnotab_notes.txt)."""
    if sys.version_info >= (3, 11):
        # Entries for up to 8 code units: 0x80 | 13 (a line, no columns) << 3 | units - 1, then the line's delta.
        whole, rest = divmod(size // 2, 8)
        return b"\xef\x00" * whole + (bytes([0xE8 | rest - 1, 0]) if rest else b"")
    whole, rest = divmod(size, 254)
    return b"\xfe\x00" * whole + (bytes([rest, 0]) if rest else b"")


BUILT = Path(__file__).parent.parent / "agent.start"  # made by setup.py


@functools.lru_cache(maxsize=1)
def _input_parts() -> tuple[bytes, bytes]:
    """What stands before and after the nonce: as it was built, if from these sources for this Python; else made once and kept in the pool's directory."""
    digest = _digest()
    with contextlib.suppress(OSError):
        if whole := _checked(digest, BUILT.read_bytes()):
            return whole[:STAGE_SIZE], whole[STAGE_SIZE:]
    if kept := runtime.cache_get(digest):
        return kept[:STAGE_SIZE], kept[STAGE_SIZE:]
    before, after = _make_parts()
    runtime.cache_put(digest, before + after)
    return before, after


def _digest() -> str:
    """What the input is made of: this program, the agent's source, and the version of the compiled code."""
    inputs = [path.read_bytes() for path in (Path(__file__), Path(agent.__file__), *PARTS)] + [importlib.util.MAGIC_NUMBER]
    return hashlib.sha256(b"\0".join(inputs)).hexdigest()


def _with_check(digest: str, whole: bytes) -> bytes:
    return hashlib.sha256(digest.encode() + whole).hexdigest().encode() + whole


def _checked(digest: str, text: bytes) -> bytes:
    """What was kept as `_with_check` made it; empty if it is damaged or made of something else."""
    whole = text[64:]
    return whole if text == _with_check(digest, whole) else b""


def build(path: Path) -> None:
    """Write `BUILT` to `path`: compiling the agent takes ten times as long as everything else that a start needs of it."""
    path.write_bytes(_with_check(_digest(), b"".join(_make_parts())))


def _make_parts() -> tuple[bytes, bytes]:
    source = _agent_source()
    code = compile(source, "<churten agent>", "exec", 0, True, 0)
    packed = zlib.compress(source.encode(), 9)
    compiled = zlib.compress(marshal.dumps(_without_lines(code)), 9)
    stage = STAGE.replace("STAGE", str(STAGE_SIZE)).encode()
    if len(stage) > STAGE_SIZE:
        raise AssertionError("STAGE_SIZE is too small")
    sizes = b"%08d%08d" % (len(packed), len(compiled))
    return (
        stage.ljust(STAGE_SIZE, b"\n"),
        sizes + packed + importlib.util.MAGIC_NUMBER + compiled,
    )


def start_input(nonce: str) -> bytes:
    """`input` of the START map: the agent for any interpreter since 3.6."""
    if not _NONCE.match(nonce):
        raise ValueError("a nonce is 32 hex digits")
    before, after = _input_parts()
    return before + nonce.encode() + after


def _loader() -> str:
    before, after = _input_parts()
    size = len(before) + 32 + len(after)
    return LOADER.replace("SIZE", str(size)).replace("STAGE", str(STAGE_SIZE))


def _words(interpreter: str) -> str:
    """The interpreter as shell words. ValueError if it is not plain words: the
    caller leaves such a host to the stock command."""
    words = interpreter.split()
    if not words or not all(_WORD.match(word) for word in words):
        raise ValueError(f"not a plain interpreter: {interpreter!r}")
    return " ".join(words)


def login_command(interpreter: str | Sequence[str], nonce: str) -> str:
    """`command` of a login agent's START map.

    interpreter: a path or words as ansible_python_interpreter has them, or the list
    of candidates for discovery, in order: the first that `command -v` knows is
    started and HELLO brings all that were found. Prints the NOPYTHON line if there
    is none."""
    if not _NONCE.match(nonce):
        raise ValueError("a nonce is 32 hex digits")
    start = f'-c "{_loader()}"'
    if isinstance(interpreter, str):
        words = _words(interpreter)
        first = words.split(" ")[0]
        find = f"command -v {first} >/dev/null 2>&1 && exec {words} {start};"
    else:
        names = " ".join(_words(name) for name in interpreter)
        find = (
            f"i=$(for p in {names};do command -v $p;done);"
            f'for p in $i;do exec $p {start} "$i";done;'
        )
    return f"/bin/sh -c '{find}echo;echo CHURTEN-{nonce}-NOPYTHON'"


def sub_command(interpreter: str) -> str:
    """The command a become plugin is given to wrap (build_become_command): `command`
    of a sub-agent's START map is what it returns."""
    return f"{_words(interpreter)} -c '{_loader()}'"


class _Kept(SourceLoader):
    """Code of the file `name` of a payload as this Python compiled it when ansible-core was installed: its `.pyc` in the installation."""

    def __init__(self, root: str, name: str) -> None:
        self.root = root
        self.name = name

    def get_filename(self, _fullname: str) -> str:
        return self.name

    def get_data(self, path: str) -> bytes:  # type: ignore[override]
        data = Path(self.root, path).read_bytes()
        if path != self.name and data[4:8] != bytes(4):
            raise OSError("compiled code that nobody compares with its source")
        return data

    def path_stats(self, path: str) -> dict[str, float]:  # type: ignore[override]
        found = os.stat(os.path.join(self.root, path))
        return {"mtime": found.st_mtime, "size": found.st_size}


def _kept_code(name: str, source: bytes) -> types.CodeType | None:
    """The code of `source`, the file `name` of a payload, if it is installed here and was compiled already; None: compile it.

    A `.pyc` knows its source by size and second of change: one made in that very second says nothing.
    """
    core = sys.modules.get("ansible")
    if core is None or sys.flags.optimize or not name.startswith("ansible/"):
        return None
    root = os.path.dirname(core.__path__[0])
    kept = os.path.join(root, importlib.util.cache_from_source(name))
    loader = _Kept(root, name)
    try:
        if int(os.stat(kept).st_mtime) <= loader.path_stats(name)["mtime"] or loader.get_data(name) != source:
            return None
        return loader.get_code(name)
    except (OSError, ImportError, EOFError, TypeError, ValueError):
        return None


# Modules share most of their files: (name, CRC, size) -> marshalled code, empty
# if this Python cannot compile it.
_compiled: dict[tuple[str, int, int], bytes] = {}


def code_name(contents: bytes) -> str:
    """Under which name `runtime.cache_get` has what `marshal_payload` makes of a payload with these contents (a digest)."""
    return hashlib.sha256(b"\0".join([b"code", Path(__file__).read_bytes(), sys.version.encode(), contents])).hexdigest()


def marshal_payload(zip_bytes: bytes) -> bytes:
    """Third item of a PAYLOAD frame: the payload's modules compiled for targets
    whose HELLO has `magic` equal to ours (importlib.util.MAGIC_NUMBER.hex()); for
    others leave the item out. It is marshal of {module: (is_package, marshal of its
    code)}; a file this Python cannot compile is left out, the target then says so."""
    modules = {}
    with zipfile.ZipFile(io.BytesIO(zip_bytes)) as payload:
        for name in payload.namelist():
            if not name.endswith(".py"):
                continue
            info = payload.getinfo(name)
            known = name, info.CRC, info.file_size
            if known not in _compiled:
                try:
                    source = payload.read(name)
                    code = _kept_code(name, source) or compile(source, name, "exec", 0, True, 0)
                    _compiled[known] = marshal.dumps(code)
                except (SyntaxError, ValueError):
                    _compiled[known] = b""
            if not _compiled[known]:
                continue
            package = name.endswith("/__init__.py")
            module = name[: -len("/__init__.py" if package else ".py")]
            modules[module.replace("/", ".")] = (package, _compiled[known])
    return marshal.dumps(modules, 2)
