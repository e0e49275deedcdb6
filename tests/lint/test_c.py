"""Layers, size and forbidden functions of the C core."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# One foreign library per file.
HOME = {"<libssh/": {"ssh.h"}, "<jansson.h>": {"facts.c"}, "<zlib.h>": {"zip.c"}, "Python.h": {"py.h"}}
BANNED = "gets strcpy strcat sprintf vsprintf strtok system popen alloca tmpnam tempnam mktemp".split()
CALL = re.compile(r"(?<![\w.>])(" + "|".join(BANNED) + r")\s*\(")
MAX_FILE = 700
MAX_FUNCTION = 80


def code(text):
    """The text without comments, strings and character constants; lines keep their numbers."""
    pattern = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
    return re.sub(pattern, lambda m: '""' + "\n" * m[0].count("\n"), text, flags=re.S)


def functions(text):
    """(line, length) of every function: its braces stand alone at the start of a line."""
    lines = code(text).splitlines()
    start = None
    for number, line in enumerate(lines, 1):
        if line == "{":
            start = number
        elif line == "}" and start is not None:
            yield start, number - start + 1
            start = None


def test_the_checks_see_what_they_should():
    text = '/* gets(x) */ "gets(x)"\nvoid\nf(void)\n{\n    a.gets(1);\n    ch_gets(2);\n    strcpy (x, y);\n}\n'
    assert CALL.findall(code(text)) == ["strcpy"]
    assert list(functions(text)) == [(4, 5)]


def test_foreign_headers_stay_in_their_files(c_files):
    wrong = [p.name for p in c_files if '#include "ssh.h"' in p.read_text() and not p.name.startswith("ssh")]
    for path in c_files:
        for line in path.read_text().splitlines():
            for header, homes in HOME.items():
                if line.lstrip().startswith("#") and "include" in line and header in line and path.name not in homes:
                    wrong.append(f"{path.name}: {line}")
    assert wrong == []


def test_only_py_files_know_python(c_files):
    wrong = [p.name for p in c_files if '#include "py.h"' in p.read_text() and not p.name.startswith("py")]
    assert wrong == []


def test_banned_functions(c_files):
    wrong = []
    for path in c_files:
        for number, line in enumerate(code(path.read_text()).splitlines(), 1):
            wrong += [f"{path.name}:{number}: {name}" for name in CALL.findall(line)]
    assert wrong == []


def test_sizes(c_files):
    wrong = []
    for path in c_files:
        text = path.read_text()
        if text.count("\n") > MAX_FILE:
            wrong.append(f"{path.name}: {text.count(chr(10))} lines")
        wrong += [f"{path.name}:{line}: function of {n} lines" for line, n in functions(text) if n > MAX_FUNCTION]
    assert wrong == []


def test_the_extension_exports_its_init_function_only():
    built = sorted((ROOT / "churten").glob("_core*.so"))
    assert built, "not built: run `make dev`"
    if shutil.which("nm") is None:
        pytest.skip("no nm (binutils)")
    for path in built:
        done = subprocess.run(["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True)
        names = {line.split()[-1] for line in done.stdout.splitlines()}
        assert names - {"_init", "_fini"} == {"PyInit__core"}, path.name


def test_the_pool_does_not_link_python():
    pool = ROOT / "churten" / "churten-pool"
    assert pool.exists(), "not built: run `make dev`"
    assert pool.stat().st_mode & 0o777 == 0o755
    done = subprocess.run(["nm", "-D", "--undefined-only", str(pool)], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if " Py" in line or " _Py" in line] == []
