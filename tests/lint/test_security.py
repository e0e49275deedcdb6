"""The rules of docs/security.md that can be read off the source; and that every promise in it names a test that exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECURITY = ROOT / "docs" / "security.md"
# Module -> the files that may use it, and for what.
DANGEROUS = {
    "pickle": {
        "churten/compat/base.py": "results of this process, to be as a worker's would be",
        "churten/compat/core_218.py": "as above",
        "churten/compat/core_219.py": "as above",
        "churten/compat/core_222.py": "as above",
        "churten/compat/memo.py": "whether a value of the controller can be remembered",
    },
    "marshal": {
        "churten/transport/bootstrap.py": "the controller compiles a module for the target",
        "churten/agent/library.py": "code that came from the controller",
    },
    "shelve": {},
    "dill": {},
}
CALLS = {"eval": set(), "exec": set(), "compile": {"churten/agent/library.py", "churten/transport/bootstrap.py", "churten/compat/modules.py"}}
# Function of the C library -> files of csrc/ that may call it.
C_CALLS = {
    "fork": {"pool_main.c", "proc.c"},
    "vfork": set(),
    "system": set(),
    "popen": set(),
    "execv": set(),
    "execvp": {"proc.c"},
    "getaddrinfo": {"resolve.c"},
    "listen": {"pool_main.c"},
    "setuid": set(),
    "seteuid": set(),
    "ssh_send_keepalive": set(),
    "ssh_userauth_publickey_auto": set(),
    "ssh_session_is_known_server": set(),
    "ssh_options_parse_config": set(),
    "ssh_scp_new": set(),
    "sftp_new": set(),
    "ssh_channel_open_forward": set(),
    "ssh_channel_request_x11": set(),
    "ssh_channel_request_auth_agent": set(),
    "ssh_channel_listen_forward": set(),
    "ssh_event_add_connector": set(),
}


MAKES = r"(?<![\w.>_])(open|openat|socket|accept4|epoll_create1|eventfd|signalfd|pipe2|timerfd_create|dup|pipe|accept|fopen)\s*\("


def sources(files, *folders):
    return [(p, p.relative_to(ROOT).as_posix()) for p in files if p.suffix == ".py" and any(p.is_relative_to(ROOT / f) for f in folders)]


def bare(path):
    """The text without comments and strings; lines keep their numbers."""
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', lambda m: '""' + "\n" * m[0].count("\n"), path.read_text(), flags=re.S)


def used(tree):
    """Names of modules imported and of plain functions called."""
    modules, calls = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            calls.add(node.func.id)
    return modules, calls


def test_the_checks_see_what_they_should():
    modules, calls = used(ast.parse("import os.path, pickle\nfrom marshal import loads\neval('1')\nre.compile('x')\n"))
    assert modules == {"os", "pickle", "marshal"} and calls == {"eval"}


def test_nothing_is_unpickled_or_executed(files):
    """R1."""
    wrong = []
    for path, name in sources(files, "churten", "plugins"):
        modules, calls = used(ast.parse(path.read_text()))
        wrong += [f"{name}: {m}" for m, homes in DANGEROUS.items() if m in modules and name not in homes]
        wrong += [f"{name}: {c}()" for c, homes in CALLS.items() if c in calls and name not in homes]
    assert wrong == []


def test_no_network_and_no_telemetry(files):
    """R19: only the agent's modules and ssh speak to anybody; and of the history what a user starts by hand."""
    by_hand = {"churten/history/ara.py", "churten/history/serve.py", "churten/history/pages.py", "churten/cli/_history_out.py"}
    network = {"urllib", "http", "requests", "ftplib", "smtplib", "socketserver", "xmlrpc", "asyncio", "ssl"}
    found = {(name, m) for path, name in sources(files, "churten", "plugins") for m in used(ast.parse(path.read_text()))[0] & network}
    assert {one for one in found if not one[0].startswith("churten/agent/") and one[0] not in by_hand} == set()


def test_temporary_files_cannot_be_guessed(files):
    """R16."""
    for path, name in sources(files, "churten", "plugins"):
        assert "mktemp(" not in path.read_text(), name


def test_what_the_pool_may_call(c_files):
    """R8, R14, R19, and the parts of libssh that we keep away from."""
    wrong = []
    for path in c_files:
        text = bare(path)
        for name, homes in C_CALLS.items():
            if path.name not in homes and re.search(rf"(?<![\w.>]){name}\s*\(", text):
                wrong.append(f"{path.name}: {name}()")
    assert wrong == []


def test_only_the_log_asks_for_the_time_of_day(c_files):
    """Deadlines must not jump with the clock."""
    found = {p.name for p in c_files if re.search(r"CLOCK_REALTIME|gettimeofday\s*\(|(?<![\w.>])time\s*\(", p.read_text())}
    assert found <= {"log.c"}


def test_every_descriptor_is_made_close_on_exec(c_files):
    """R5, R16: a descriptor that a child could inherit is a leak."""
    wrong = []
    for path in c_files:
        text = bare(path)
        for match in re.finditer(MAKES, text):
            call = text[match.start() : text.index(";", match.start())]
            if match[1] in ("dup", "pipe", "accept", "fopen") or "CLOEXEC" not in call:
                wrong.append(f"{path.name}:{text.count(chr(10), 0, match.start()) + 1}: {call.split(chr(10))[0]}")
    assert wrong == []


def test_every_promise_names_a_test_that_exists():
    text = SECURITY.read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) >= 30
    for path, test in named:
        assert (ROOT / path).is_file(), path
        assert not test or re.search(rf"^def {test}\(", (ROOT / path).read_text(), re.M), f"{path}::{test}"


def test_every_rule_has_its_line():
    rules = re.findall(r"^\| (R\d+) \|.*`tests/", SECURITY.read_text(), re.M)
    assert rules == [f"R{n}" for n in range(1, 21)]
