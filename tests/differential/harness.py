# SPDX-License-Identifier: GPL-3.0-or-later
"""The same play under stock Ansible and under churten, compared; stock is the oracle.

A play is a folder plays/NN-name with playbook.yml and whatever belongs to it. `Runner.run(play, mode)` copies it to a
work folder (the same path in every mode, so paths never differ), empties the lab hosts' folders and the account's
home, runs ansible-playbook with the recorder callback, and returns an `Outcome`: events per host, recap, exit code,
output, files on the hosts and on the controller, and what is left behind. `compare(oracle, other)` lists every
difference. Values that differ between two stock runs are replaced first; KEYS and TEXTS below are the complete list.

meta.yml of a play (all optional):
  hosts: 2          how many lab hosts          forks: 5
  playbooks: [...]  default [playbook.yml]      args: [...]   more words for ansible-playbook
  env: {K: V}       environment                 modes: [...]  pairs to run; default churten-free, conn-linear
  exit: 0           exit code stock must give (any: cores differ)  recap: {lab001: {ok: 3, ...}}  numbers stock must give
  ordered: bool     stdout compared byte by byte (default: one host)
  vars: {k: v}      inventory variables of the group lab
  ignore: {key path glob: reason}   values of this play that are not comparable
  build: [cc, ...]  a command run in the work folder before the play
  stdout: false     stdout is not compared (very verbose runs)
  stdin: text       what the user types, through a pipe
  forbidden: [...]  texts that must be in no output of any run
  since: "2.18"     the first core that knows what the play uses; it is skipped on older ones
  skip: {mode: ["2.22", reason]}    not in this mode from this core on
  quick: true       part of `make test` in mode churten-free; a list names the modes
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fnmatch
import hashlib
import http.server
import json
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PLAYS = HERE / "plays"
RUN_SECONDS = 180

# ---- what is not compared, and why ------------------------------------------------------------------------------------
# (names of dictionary keys, replacement, reason): the scalar below such a key is replaced, None and absence are kept.
KEYS: list[tuple[str, str, str]] = [
    ("start end delta", "<time>", "when a command ran and how long it took"),
    ("atime mtime ctime", "<time>", "file times"),
    ("elapsed", "<time>", "how long wait_for, uri and get_url took"),
    ("started finished_at", "<time>", "async job times"),
    ("ansible_job_id", "<job>", "the job id holds a random number and a pid"),
    ("inode", "<inode>", "inode numbers are given by the file system"),
    ("date last_modified", "<time>", "headers of the test's web server"),
    ("cookie nonce", "<random>", "random by nature"),
    ("pid ppid child_pid", "<pid>", "process ids"),
    ("block_available block_used size_available inode_available inode_used", "<free>", "free space of mounts moves all the time"),
]
# Facts that move while the machine runs; whole value replaced.
FACTS = (
    "ansible_date_time date_time ansible_uptime_seconds uptime_seconds ansible_memfree_mb memfree_mb ansible_memory_mb "
    "memory_mb ansible_swapfree_mb swapfree_mb ansible_loadavg loadavg ansible_entropy"
).split()
# Lists that core makes of a set (facts, the tags of a task): sorted.
SETS = "ansible_interfaces interfaces ansible_virtualization_tech_guest ansible_virtualization_tech_host tags".split()
# What the harness itself sets differently per mode; seen in the environment of local tasks.
OURS = ("ANSIBLE_STRATEGY", "ANSIBLE_COLLECTIONS_PATH", "PYTHONPATH", "CHURTEN_POOL_DIR")
# (regular expression, replacement, reason): applied to every string and to stdout, stderr and file contents.
TEXTS: list[tuple[str, str, str]] = [
    (r"ansible-tmp-\d+\.\d+-\d+-\d+", "ansible-tmp-<n>", "remote temp folder: time, pid, random"),
    (r"ansible-local-\w+(/\.[a-z0-9_]{8}\b)?", "ansible-local-<n>", "controller temp folder: pid, random"),
    (r"\bansible_[a-z_.]+_payload_[a-z0-9_]{8}", "ansible_payload_<n>", "module's temp folder: random"),
    (r"\b(ansible-moduletmp)-[\d.]+-[a-z0-9_]{8}", r"\1-<n>", "module's tmpdir: time, random"),
    (r"\.ansible_tmp[a-z0-9_]{8}", ".ansible_tmp<n>", "temp file beside the target of a copy"),
    (r"\b(tmp|source-)[a-z0-9_]{8}\b(?!-)", r"\1<n>", "tempfile names"),
    (r"\bj?\d{9,12}\.\d{2,8}\b", "<job>", "async job id"),
    (r"\.\d{2,7}\.\d{4}-\d\d-\d\d@\d\d:\d\d:\d\d~", ".<n>.<time>~", "backup file: pid and time"),
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d([.,]\d+)?", "<time>", "clock times"),
    (r"\b\d:\d\d:\d\d\.\d{6}\b", "<time>", "delta of a command"),
    (r"\b(\d{1,3}(?:\.\d{1,3}){3}) \d{4,5} (\d{1,3}(?:\.\d{1,3}){3} \d+)", r"\1 <port> \2", "SSH_CONNECTION: client port"),
    (r"\b(\d{1,3}(?:\.\d{1,3}){3}) \d{4,5} (2200)\b", r"\1 <port> \2", "SSH_CLIENT: client port"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<uuid>", "object ids: random"),
    (r"\A\.[a-z0-9_]{8}\Z", ".<n>", "_original_basename of a copy with content: tempfile"),
    (r"(maximum recursion depth exceeded) (in \w+|while calling a Python object)", r"\1", "which function was the last depends on the stack below"),
    (r"Paused for [\d.]+ ", "Paused for <time> ", "pause says how long it was"),
    (r"0x[0-9a-f]{8,16}", "0x<address>", "addresses in repr()"),
    (r"\b[a-z]{16,40}(?=\s*; /|\W*BECOME)", "<become>", "become marker: random"),
    (r"BECOME-SUCCESS-[a-z]+", "BECOME-SUCCESS-<random>", "become marker: random"),
]
# The same, for cores up to the given one.
LINE_TEXTS: list[tuple[tuple[int, int], str, str, str]] = [
    (
        (2, 18),
        r'  File \\*"<stdin>\\*", line \d+, in (<module>|_ansiballz_main|invoke_module|main)(\\+n|\n)',
        "",
        "a trace begins with the lines of the wrapper program (docs/differences.md)",
    ),
    ((2, 18), r"\bansible_[\w.]+_payload\.zip", "ansible_payload.zip", "an agent keeps one, named after its first module (docs/differences.md)"),
    ((9, 99), r"\bansible_[\w.]+_payload\.zip(?=/ansible/modules/async_wrapper)", "ansible_payload.zip", "as above: traces of async_wrapper"),
    (
        (2, 18),
        r'  File \\*"[^"\n]*/AnsiballZ_\w+\.py\\*", line \d+, in (<module>|_ansiballz_main|invoke_module|main)(\\+n|\n)(    [^\n]*?\2)?',
        "",
        "the same trace of a job, whose program is a file",
    ),
    (
        (2, 18),
        r'  File \\*"[^"\n]*/churten/[^"\n]*?\\*", line \d+, in \w+(\n|\\+n)    .*?\1( +[\^~]+ *\1)?',
        "",
        "the trace of an error in the controller is part of the result, and has churten's lines too",
    ),
    (
        (2, 18),
        r"(?:An unhandled exception occurred while templating '[^']*'\. Error was a <class '[\w.]+'>, original message: ){2,}",
        "<templating, again and again> ",
        "how often an endless template is entered depends on how deep the stack was",
    ),
    (
        (2, 18),
        r"over ssh: (?:\[Errno 32\] Broken pipe\. \[Errno 32\] Broken pipe|ssh: [^\n]*?(?:Connection refused|not known)(?:\\+r\\+n|\r\n))",
        "over ssh: <ssh ended>",
        "stock says one or the other of a host that refuses, depending on whether ssh or ansible is faster",
    ),
    (
        (2, 18),
        r"Interrupted at <frame at [^<>]*(<\w+>[^<>]*)?> called from",
        "Interrupted at <where it waits> called from",
        "a task timeout says in which line of Python it waited",
    ),
]
# Only for modes whose name starts with the first word: (mode prefix, regex, replacement, reason).
MODE_TEXTS: list[tuple[str, str, str, str]] = [
    ("conn-", r"""(["'])ansible_connection\1: (["'])churten\.core\.ssh\2, """, "", "the variable that is this mode, where a task shows all variables"),
    (
        "churten-",
        r"\[DEPRECATION WARNING\]: [^\n]*strategy plugins? (?:[^\[]|\[(?!WARN|DEPR|ERR))*",
        "",
        "core says of every third-party strategy that it will not be supported for ever",
    ),
    (
        "",
        r"\[WARNING\]: Deprecation warnings can be disabled[^\n]*\n",
        "",
        "follows the first deprecation, and churten's runs always have one",
    ),
]
# An agent keeps such a folder as long as it lives; that none outlives it is test_plays.test_nothing_is_left.
AGENT_FOLDER = re.compile(r"ansible_[\w.]+_payload_[0-9a-f]{8}\Z")
# Stock leaves one for every module that a signal ended; churten removes it.
PAYLOAD_FOLDER = re.compile(r"ansible_[\w.]+_payload_[a-z0-9_]{8}\Z")
LONG = 300_000  # longer texts are compared as they are: no play has anything to replace in them
KEY_RULES = {name: text for names, text, _ in KEYS for name in names.split()}
TEXT_RULES = [(re.compile(pattern), text) for pattern, text, _ in TEXTS]
# Also as the text of a module, inside the JSON of a result.
JSON_RULE = re.compile(r'(\\*")(%s)\1: ("(?:[^"\\]|\\.)*"|-?[\d.e+-]+)' % "|".join(KEY_RULES))


def normal_text(text: str) -> str:
    """`text` with everything replaced that differs between two stock runs."""
    if not 9 <= len(text) <= LONG:
        return text  # no rule matches a shorter text
    text = JSON_RULE.sub(lambda m: f"{m[1]}{m[2]}{m[1]}: {m[1]}{KEY_RULES[m[2]]}{m[1]}", text)
    for pattern, replacement in TEXT_RULES:
        text = pattern.sub(replacement, text)
    return text


def normal(value: Any, key: str = "") -> Any:
    """JSON data with everything replaced that differs between two stock runs."""
    if isinstance(value, dict):
        if key in ("ansible_env", "env"):
            value = {k: v for k, v in value.items() if k not in OURS}
        if "inode" in value and "version" in value:
            value = {**value, "version": "<generation of the inode>"}
        return {normal_text(k): "<moving fact>" if k in FACTS else normal(v, k) for k, v in value.items()}
    if isinstance(value, list):
        if key in SETS and all(isinstance(v, str) for v in value):
            value = sorted(value)
        return [normal(v) for v in value]
    if key in KEY_RULES and value is not None and not isinstance(value, bool):
        return KEY_RULES[key]
    return normal_text(value) if isinstance(value, str) else value


# ---- plays and modes ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mode:
    """How a play is run. `oracle`: the mode its outcome must equal; None for the oracles themselves."""

    name: str
    oracle: str | None
    strategy: str
    connection: str = ""
    churten: bool = False

    @property
    def linear(self) -> bool:
        return self.strategy.endswith("linear")


MODES = {
    mode.name: mode
    for mode in (
        Mode("stock-free", None, "free"),
        Mode("stock-linear", None, "linear"),
        Mode("again-free", "stock-free", "free"),
        Mode("again-linear", "stock-linear", "linear"),
        Mode("churten-free", "stock-free", "churten.core.free", churten=True),
        Mode("churten-linear", "stock-linear", "churten.core.linear", churten=True),
        Mode("conn-linear", "stock-linear", "linear", "churten.core.ssh", churten=True),
        Mode("conn-free", "stock-free", "free", "churten.core.ssh", churten=True),
    )
}
DEFAULT_MODES = ("churten-free", "conn-linear")
# A play that is about linear says so with `modes: [linear]`, one about free with `modes: [free]`.
FAMILIES = {"linear": ("churten-linear", "conn-linear", "again-linear"), "free": ("churten-free", "conn-free", "again-free")}


@dataclasses.dataclass
class Play:
    """A folder of plays/ with its meta.yml."""

    name: str
    path: Path
    meta: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Play:
        file = path / "meta.yml"
        meta = yaml.safe_load(file.read_text()) if file.exists() else {}
        known = "hosts forks playbooks args env modes exit recap ordered vars ignore quick stdin stdout forbidden build since skip".split()
        unknown = set(meta or {}) - set(known)
        if unknown:
            raise ValueError(f"{file}: unknown keys {sorted(unknown)}")
        return cls(path.name, path, meta or {})

    @property
    def hosts(self) -> int:
        return int(self.meta.get("hosts", 1))

    @property
    def since(self) -> tuple[int, ...]:
        return tuple(map(int, str(self.meta.get("since", "2.16")).split(".")))

    def skipped(self, mode: str, core: tuple[int, int]) -> str:
        """Why the play is not run in `mode` on this core, or empty."""
        since, why = (self.meta.get("skip") or {}).get(mode, ("9.9", ""))
        return str(why) if core >= tuple(map(int, str(since).split("."))) else ""

    def runs_in(self, mode: Mode) -> bool:
        wanted = self.meta.get("modes")
        if not wanted:
            return True
        return any(mode.name in FAMILIES.get(word, (word,)) for word in wanted)


def all_plays() -> list[Play]:
    """Every play, by name."""
    return [Play.load(path) for path in sorted(PLAYS.iterdir()) if (path / "playbook.yml").exists()]


# ---- what a run leaves ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Outcome:
    """All that is compared of one run, already normalised."""

    mode: str
    rc: int
    hosts: dict[str, list[dict[str, Any]]]  # events per host, in order
    course: list[dict[str, Any]]  # events of no host: playbooks, plays, task starts, stats
    state: dict[str, Any]  # what the variable manager held at the end
    stdout: str
    stderr: str
    files: dict[str, Any]  # on the hosts, in the account's home, in out/, left in temp folders
    folder: Path  # the unchanged output, for the reader of a failure

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        for event in reversed(self.course):
            if event["ev"] == "stats":
                return event["summary"]
        return {}


@dataclasses.dataclass
class Difference:
    """One value that is not equal."""

    where: str
    path: str
    stock: Any
    other: Any

    def __str__(self) -> str:
        return f"{self.where}: {self.path}\n    stock:   {_short(self.stock)}\n    churten: {_short(self.other)}"


def _short(value: Any, limit: int = 600) -> str:
    text = value if isinstance(value, str) and "\n" in value else json.dumps(value, ensure_ascii=True)
    return text if len(text) <= limit else f"{text[: limit // 2]} ...{len(text) - limit} more... {text[-limit // 2 :]}"


ABSENT = "<absent>"


def diff_values(where: str, a: Any, b: Any, path: str = "", ignore: dict[str, str] | None = None) -> list[Difference]:
    """Every place where two pieces of JSON data differ, types included (1 and true and 1.0 are different)."""
    if ignore and any(fnmatch.fnmatchcase(path, pattern) for pattern in ignore):
        return []
    if isinstance(a, dict) and isinstance(b, dict):
        out = []
        for key in [*a, *(k for k in b if k not in a)]:
            out += diff_values(where, a.get(key, ABSENT), b.get(key, ABSENT), f"{path}.{key}".lstrip("."), ignore)
        return out
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        out = []
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            out += diff_values(where, x, y, f"{path}[{index}]", ignore)
        return out
    if type(a) is type(b) and a == b:
        return []
    if isinstance(a, str) and isinstance(b, str) and (len(a) > 300 or "\n" in a) and a and b:
        return [Difference(where, path, _first_difference(a, b), _first_difference(b, a))]
    return [Difference(where, path, a, b)]


def _first_difference(a: str, b: str) -> str:
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return f"(length {len(a)}, differs at {at}) ...{a[max(0, at - 120) : at + 280]}"


def _label(event: dict[str, Any]) -> str:
    item = (event.get("result") or {}).get("_ansible_item_label", "") if isinstance(event.get("result"), dict) else ""
    return f"{event['ev']} {event.get('action', '')} {event.get('task', '')!r} {event.get('file', '')}{item!s:.80}".strip()


def _diff_sequence(where: str, a: list[dict[str, Any]], b: list[dict[str, Any]], ignore: dict[str, str]) -> list[Difference]:
    x, y = [_label(e) for e in a], [_label(e) for e in b]
    if x != y:
        lines = list(difflib.unified_diff(x, y, "stock", "churten", lineterm="", n=3))
        out = [Difference(where, "order of events", "\n" + "\n".join("      " + line for line in lines[:80]), "(see above)")]
    else:
        out = []
    matcher = difflib.SequenceMatcher(None, x, y, autojunk=False)
    for i, j, size in matcher.get_matching_blocks():
        for k in range(size):
            out += diff_values(f"{where}, task {a[i + k].get('task', '')!r} ({a[i + k]['ev']})", a[i + k], b[j + k], "", ignore)
    return out


BLOCK = re.compile(r"^(?:[A-Z][A-Z ]+ ?\[|PLAY RECAP|[a-z]+: (?:\[|.* for )|FAILED - RETRYING|ASYNC|\[?[\w.-]+ +: ok=)")
HOST_IN_LINE = re.compile(r"^ASYNC \w+ on ([\w.-]+):|\[([\w.-]+)(?: -> [^\]]*)?\]|^([\w.-]+) +: ok=| for ([\w., -]+?)(?: => \(.*)?$")


def stdout_blocks(text: str) -> dict[str, list[str]]:
    """Output cut into what belongs to each host, in order; banners are left out (they depend on the interleaving)."""
    blocks: dict[str, list[str]] = {}
    current: list[str] | None = None
    ahead: list[str] | None = None  # an error's text comes before the line that names the host
    for line in text.splitlines():
        if re.match(r"^(PLAY|TASK|RUNNING HANDLER)\b", line):
            current = None
        elif line.startswith("NO MORE HOSTS LEFT"):
            current = None
            blocks.setdefault("", []).append(line)
        elif line.startswith(("[ERROR]", "An exception occurred during task execution.")):
            ahead = [line]
        elif BLOCK.match(line) and (found := HOST_IN_LINE.search(line)):
            names = next(group for group in found.groups() if group)
            for name in names.split(", "):
                shown = line.replace(names, name) if ", " in names else line
                current = blocks.setdefault(name, [])
                current.append(shown)
            # Shown once for all hosts that fail alike, so it belongs to none.
            if ahead:
                blocks.setdefault("errors", []).append("\n".join(ahead))
            ahead = None
        elif line == "...ignoring":  # follows at some distance when hosts are mixed: counted
            blocks.setdefault("ignored", []).append(line)
        elif line and ahead is not None:
            ahead.append(line)
        elif line and current is not None:
            current[-1] += "\n" + line
        elif line:
            blocks.setdefault("", []).append(line)
    if ahead:
        blocks.setdefault("errors", []).append("\n".join(ahead))
    blocks.get("errors", []).sort()
    return blocks


def stderr_messages(text: str) -> list[str]:
    """Messages of stderr, sorted: their order depends on the interleaving; wrapping undone."""
    parts = re.split(r"(?m)^(?=\[(?:WARNING|ERROR|DEPRECATION WARNING)\]|ERROR!)", text)
    return sorted(" ".join(part.split()) for part in parts if part.strip())


def compare(play: Play, a: Outcome, b: Outcome) -> list[Difference]:
    """All differences between the oracle's outcome and another one's."""
    ignore = dict(play.meta.get("ignore") or {})
    mode = MODES[b.mode]
    out: list[Difference] = []
    out += diff_values("exit code", a.rc, b.rc)
    out += diff_values("recap", a.recap, b.recap)
    for host in sorted(set(a.hosts) | set(b.hosts)):
        out += _diff_sequence(f"host {host}", a.hosts.get(host, []), b.hosts.get(host, []), ignore)
    courses = [[e for e in side.course if e["ev"] != "stats"] for side in (a, b)]
    if mode.linear or play.hosts == 1:
        out += _diff_sequence("course", *courses, ignore)
    else:
        starts = [Counter(json.dumps(e) for e in side if e["ev"] in ("task", "handler")) for side in courses]
        if a.rc != 1:  # of a run that broke off it is chance how many had begun
            out += diff_values("task starts (counted)", dict(starts[0]), dict(starts[1]))
        plays = [[e for e in side if e["ev"] not in ("task", "handler")] for side in courses]
        out += _diff_sequence("course", *plays, ignore)
    stats = [[e for e in side.course if e["ev"] == "stats"] for side in (a, b)]
    out += diff_values("stats", *stats)
    out += diff_values("variables at the end", a.state, b.state, "", ignore)
    for text in play.meta.get("forbidden") or []:
        shown = [side.mode for side in (a, b) if text in side.stdout + side.stderr]
        out += [Difference(f"output of {mode}", "forbidden text", "<absent>", text) for mode in shown]
    if not play.meta.get("stdout", True):
        pass
    elif play.meta.get("ordered", play.hosts == 1):
        out += diff_values("stdout", a.stdout, b.stdout)
    else:
        out += diff_values("stdout", stdout_blocks(a.stdout), stdout_blocks(b.stdout), "", ignore)
    out += diff_values("stderr", stderr_messages(a.stderr), stderr_messages(b.stderr), "", ignore)
    out += diff_values("files", a.files, b.files, "", ignore)
    return out


def report(play: Play, a: Outcome, b: Outcome, found: list[Difference], limit: int = 40) -> str:
    """The differences for a reader, with where the runs' output is."""
    head = f"{play.name}: {b.mode} differs from {a.mode} in {len(found)} places"
    alike: dict[str, list[Difference]] = {}
    for item in found:
        alike.setdefault(f"{re.sub(r'[0-9]+', '#', item.path)} {_short(item.stock, 80)} {_short(item.other, 80)}", []).append(item)
    body = [f"{same[0]}" + (f"\n    (and {len(same) - 1} like it)" if len(same) > 1 else "") for same in alike.values()][:limit]
    more = [f"... and {len(alike) - limit} more kinds"] if len(alike) > limit else []
    return "\n".join([head, *body, *more, f"  stock:   {a.folder}", f"  churten: {b.folder}"])


# ---- files ----------------------------------------------------------------------------------------------------------


def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def snapshot(top: Path, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every entry below `top`: kind, mode, owner, and content (text), link target or hash (large)."""
    found: dict[str, list[dict[str, Any]]] = {}
    for folder, dirs, files in os.walk(os.fsencode(top)):
        dirs.sort()
        for raw in sorted(dirs + files):
            path = os.path.join(folder, raw)
            name = normal_text(os.fsdecode(os.path.relpath(path, os.fsencode(top)))).encode("utf-8", "surrogateescape").decode("latin-1")
            if name.startswith(skip):
                continue
            info = os.lstat(path)
            entry: dict[str, Any] = {"mode": oct(info.st_mode), "owner": _owner(info.st_uid), "group": info.st_gid}
            if stat.S_ISLNK(info.st_mode):
                entry["link"] = normal_text(os.fsdecode(os.readlink(path)))
            elif stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    data = file.read()
                if len(data) <= 65536:
                    entry["content"] = normal_text(data.decode("latin-1"))
                else:
                    entry["size"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
            if name.endswith(".pyc"):
                entry.pop("content", None)  # holds the time of its source
            found.setdefault(name, []).append(entry)
    # Names that only differ in a random part become one: all of them, in an order of their own.
    return {name: some[0] if len(some) == 1 else sorted(some, key=json.dumps) for name, some in found.items()}


def left_in_tmp(uids: set[int], agents: bool = False, names: bool = False) -> list[str]:
    """Names in the shared temp folders that belong to the lab's accounts; `agents`: also what living agents keep;
    `names`: as they are."""
    out = []
    for top in ("/tmp", "/var/tmp", "/dev/shm"):
        for entry in os.scandir(top):
            try:
                mine = entry.stat(follow_symlinks=False).st_uid in uids
                if mine and (agents or not PAYLOAD_FOLDER.match(entry.name)):
                    out.append(entry.path if names else normal_text(entry.path))
            except OSError:
                pass
    return sorted(out)


# ---- the web server of the get_url and uri plays --------------------------------------------------------------------


class _Web(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self, code: int, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/file":
            self._answer(200, b"one file\n" * 100)
        elif self.path == "/json":
            self._answer(200, b'{"answer": 42, "list": [1, 2, 3]}', "application/json")
        else:
            self._answer(404, b"nothing here\n")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(201, b'{"got": %d}' % len(body), "application/json")

    def log_message(self, *args: Any) -> None:
        pass


# ---- running --------------------------------------------------------------------------------------------------------


class Runner:
    """Runs plays over one lab; keeps the oracles' outcomes for the session.

    base: a folder of ours (short path: unix sockets lie below it); lab: a churten.lab Lab that is up; keep: stock
    outcomes are kept in base for the next session (for work on churten; needs the same lab each time).
    """

    def __init__(self, base: Path, lab: Any, keep: bool = False) -> None:
        self.base, self.lab, self.keep = base, lab, keep
        self.cache: dict[tuple[str, str], Outcome] = {}
        bin_dir = os.environ.get("CHURTEN_TEST_ANSIBLE")
        self.bin = Path(bin_dir) if bin_dir else Path(sys.executable).parent
        self.core = _core_version(self.bin)
        TEXT_RULES[len(TEXTS) :] = [(re.compile(pattern), text) for last, pattern, text, _ in LINE_TEXTS if self.core <= last]
        self.web = http.server.ThreadingHTTPServer(("127.0.0.1", 18000 + zlib.crc32(str(base).encode()) % 1000 if keep else 0), _Web)
        threading.Thread(target=self.web.serve_forever, daemon=True).start()
        self.homes = [path for path in (lab.dir / "home", lab.dir / "home-pw") if path.is_dir()]
        self.uids = {path.stat().st_uid for path in self.homes if path.stat().st_uid != 0}
        self._link_collection()
        for name in left_in_tmp(self.uids, agents=True, names=True):  # of a session that was killed
            _remove(os.fsencode(name))

    def close(self) -> None:
        """Ends the web server and the pool."""
        self.web.shutdown()
        self.stop_pool()

    def stop_pool(self) -> None:
        """Ends the pool of the churten runs; its agents end with it."""
        if any((self.base / "pool").iterdir()):
            words = [str(self.bin / "python"), "-m", "churten.cli.main", "pool", "stop"]
            env = self._environment(Play("", PLAYS, {}), MODES["churten-free"])
            subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)

    def _link_collection(self) -> None:
        """The plugins of this source tree as the collection churten.core, as `pip install` would lay them out."""
        home = self.base / "collections" / "ansible_collections" / "churten" / "core"
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "plugins").exists():
            (home / "plugins").symlink_to(ROOT / "plugins")
        for folder in ("pool", "cp", "home", "tmp"):
            (self.base / folder).mkdir(mode=0o700, exist_ok=True)
        (self.base / "ansible.cfg").write_text("[defaults]\n")

    def _environment(self, play: Play, mode: Mode) -> dict[str, str]:
        env = {
            "PATH": f"{self.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.base / "home"),
            "USER": _owner(os.geteuid()),
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.base / "tmp"),
            "ANSIBLE_HOME": str(self.base / "home" / ".ansible"),
            "ANSIBLE_LOCAL_TEMP": str(self.base / "tmp"),
            "ANSIBLE_CONFIG": str(self.base / "ansible.cfg"),
            "ANSIBLE_STRATEGY": mode.strategy,
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.base / "cp"),
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback"),
            "ANSIBLE_CALLBACKS_ENABLED": "recorder",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_NOCOWS": "1",
            "ANSIBLE_RETRY_FILES_ENABLED": "0",
            "ANSIBLE_FORKS": str(play.meta.get("forks", 5)),
            "PYTHONFAULTHANDLER": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",  # core flattens tags through a set: their order, and which of them are merged, is the hash's
        }
        if mode.churten:
            env["PYTHONPATH"] = str(ROOT)
            env["ANSIBLE_COLLECTIONS_PATH"] = str(self.base / "collections")
            env["CHURTEN_POOL_DIR"] = str(self.base / "pool")
        more = {k: str(v) for k, v in (play.meta.get("env") or {}).items()}
        if "collections" in more:  # a folder of others, beside ours
            ours = [env["ANSIBLE_COLLECTIONS_PATH"]] if mode.churten else []
            more["ANSIBLE_COLLECTIONS_PATH"] = ":".join([*ours, more.pop("collections")])
        return {**env, **more}

    def _inventory(self, play: Play, mode: Mode, work: Path) -> Path:
        """The lab's inventory, cut to the play's number of hosts, with the variables of play and mode."""
        kept = {host.name for host in self.lab.hosts[: play.hosts]}
        all_names = {host.name for host in self.lab.hosts}
        lines = []
        for line in self.lab.inventory.read_text().splitlines():
            name = line.split(" ")[0]
            if name not in all_names or name in kept:
                lines.append(line)
        # A variable of the play replaces the lab's of the same name (last one wins in an ini group).
        more = {"http_url": f"http://127.0.0.1:{self.web.server_address[1]}", **(play.meta.get("vars") or {})}
        if mode.connection:
            more["ansible_connection"] = mode.connection
        lines += ["", "[lab:vars]", *(f"{name}={value}" for name, value in more.items()), ""]
        path = work / "lab.ini"
        path.write_text("\n".join(lines))
        return path

    def _clean(self) -> None:
        """Empties the hosts' folders, the accounts' homes and what the accounts left in temp folders."""
        for top in [*(self.lab.dir / "hosts").iterdir(), *self.homes]:
            for entry in os.scandir(os.fsencode(top)):
                _remove(entry.path)
        for top in ("/tmp", "/var/tmp"):
            for entry in os.scandir(top):
                with contextlib.suppress(FileNotFoundError):  # others use these folders too
                    if entry.stat(follow_symlinks=False).st_uid in self.uids and not AGENT_FOLDER.match(entry.name):
                        _remove(os.fsencode(entry.path))
        for folder in ("tmp", "home"):
            for entry in os.scandir(os.fsencode(self.base / folder)):
                _remove(entry.path)

    def run(self, play: Play, mode: Mode) -> Outcome:
        """One run of ansible-playbook; blocks until it ended or RUN_SECONDS passed (exit code -1000 then)."""
        work, out = self.base / "work" / play.name, self.base / "runs" / play.name / mode.name
        self._clean()
        _remove(os.fsencode(work))
        _remove(os.fsencode(out))
        shutil.copytree(play.path, work, symlinks=True)
        (work / "out").mkdir(exist_ok=True)
        out.mkdir(parents=True)
        if play.meta.get("build"):
            subprocess.run(play.meta["build"], cwd=work, check=True, timeout=60, stdin=subprocess.DEVNULL)
        inventory = self._inventory(play, mode, work)
        env = {**self._environment(play, mode), "CHURTEN_DIFF_RECORD": str(self.base / "record.jsonl")}
        words = [str(self.bin / "python"), str(self.bin / "ansible-playbook"), "-i", str(inventory)]
        if (work / "inventory.yml").exists():
            words += ["-i", str(work / "inventory.yml")]
        words += [*map(str, play.meta.get("args") or []), *(play.meta.get("playbooks") or ["playbook.yml"])]
        if mode.strategy.startswith("churten."):
            _own_strategies(work)
        begun = time.clock_gettime(time.CLOCK_BOOTTIME)
        rc = self.execute(words, work, env, out, str(play.meta.get("stdin", "")))
        if (self.base / "record.jsonl").exists():
            (self.base / "record.jsonl").rename(out / "record.jsonl")
        _settle(begun)
        return self._outcome(mode, rc, work, out)

    def execute(self, words: list[str], cwd: Path, env: dict[str, str], out: Path, typed: str) -> int:
        """Runs words with output to files below `out`; returns the exit code."""
        return _execute(words, cwd, env, out, typed)

    def _outcome(self, mode: Mode, rc: int, work: Path, out: Path) -> Outcome:
        hosts: dict[str, list[dict[str, Any]]] = {}
        course: list[dict[str, Any]] = []
        state: dict[str, Any] = {}
        record = out / "record.jsonl"
        for line in record.read_text().splitlines() if record.exists() else []:
            event = normal(json.loads(line))
            if mode.connection:
                event = _drop_connection(event, mode.connection, self.core >= (2, 20))
            if event["ev"] == "state":
                state[f"{event['host']}.{event['cache']}"] = {"value": event["value"], "tags": event["tags"]}
            elif "host" in event:
                hosts.setdefault(event["host"], []).append(event)
            else:
                course.append(event)
        texts = []
        for name in ("stdout", "stderr"):
            text = normal_text((out / name).read_bytes().decode("utf-8", "surrogateescape"))
            for prefix, pattern, replacement, _ in MODE_TEXTS:
                if mode.name.startswith(prefix):
                    text = re.sub(pattern, replacement, text)
            texts.append(text)
        files = {
            "hosts": {path.name: snapshot(path) for path in sorted((self.lab.dir / "hosts").iterdir())},
            "homes": {path.name: snapshot(path, (".ssh",)) for path in self.homes},
            "out": snapshot(work / "out"),
            "left in temp folders of the hosts": left_in_tmp(self.uids),
            "left in temp folder of the controller": sorted(
                name for name in snapshot(self.base / "tmp") if not name.startswith("ansible_payload_<n>")
            ),
        }
        return Outcome(mode.name, rc, hosts, course, state, texts[0], texts[1], files, out)

    def _kept_path(self, play: Play, mode: str) -> Path:
        """Where a stock outcome is kept: the name changes with everything it depends on."""
        hashed = hashlib.sha256(str(self.bin).encode())
        for path in [HERE / "callback" / "recorder.py", *sorted(p for p in play.path.rglob("*") if p.is_file())]:
            hashed.update(os.fsencode(path.relative_to(HERE)) + b"\0" + path.read_bytes())
        return self.base / "oracles" / f"{play.name}.{mode}.{hashed.hexdigest()[:16]}.json"

    def _kept(self, play: Play, mode: str) -> Outcome | None:
        path = self._kept_path(play, mode)
        if not self.keep or not path.exists():
            return None
        data = json.loads(path.read_text())
        parts = {name: normal(data[name]) for name in ("hosts", "course", "state", "stdout", "stderr", "files")}
        return Outcome(**{**data, **parts, "folder": Path(data["folder"])})

    def _keep(self, play: Play, found: Outcome) -> Outcome:
        if self.keep:
            path = self._kept_path(play, found.mode)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({**dataclasses.asdict(found), "folder": str(found.folder)}))
        return found

    def oracle(self, play: Play, mode: Mode) -> Outcome:
        """The stock run `mode` is compared with; run once per session. Raises if stock does not do what meta.yml says."""
        assert mode.oracle is not None
        key = (play.name, mode.oracle)
        if key not in self.cache:
            self.cache[key] = self._kept(play, mode.oracle) or self._keep(play, self.run(play, MODES[mode.oracle]))
        found = self.cache[key]
        wanted = play.meta.get("exit", 0)
        wrong = diff_values("stock's exit code", found.rc if wanted == "any" else wanted, found.rc)
        for host, numbers in (play.meta.get("recap") or {}).items():
            have = {name: found.recap.get(host, {}).get(name, ABSENT) for name in numbers}
            wrong += diff_values(f"stock's recap of {host}", numbers, have)
        if wrong:
            tail = found.stdout[-3000:] + found.stderr[-2000:]
            raise OracleError(f"{play.name}: the oracle itself is not as meta.yml says (first: expected)\n" + "\n".join(map(str, wrong)) + "\n" + tail)
        return found


def _core_version(bin_dir: Path) -> tuple[int, int]:
    words = [str(bin_dir / "python"), "-c", "from ansible.release import __version__ as v; print(v)"]
    major, minor = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout.split(".")[:2]
    return int(major), int(minor)


class OracleError(AssertionError):
    """Stock itself did not do what the play's meta.yml says: the play is wrong, not churten."""


def _drop_connection(event: dict[str, Any], name: str, always: bool) -> Any:
    """The connection-only mode sets ansible_connection as an inventory variable: it shows in delegated vars and items.

    `always`: this core says in delegated vars how the host was reached, whether it is set or not.
    """
    event = _said_of_delegates(event, name) if always else event
    data = event.get("result") if "result" in event else event.get("value")
    gone = set(_connection_paths(data, name))
    tags = {path: tag for path, tag in event.get("tags", {}).items() if path not in gone}
    return _without_connection({**event, "tags": tags} if "tags" in event else event, name)


def _said_of_delegates(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [_said_of_delegates(one, name) for one in value]
    if not isinstance(value, dict):
        return value
    value = {key: _said_of_delegates(one, name) for key, one in value.items()}
    said = value.get("_ansible_delegated_vars")
    if isinstance(said, dict) and said.get("ansible_connection") == name:
        value["_ansible_delegated_vars"] = {**said, "ansible_connection": "ssh"}
    return value


def _connection_paths(data: Any, name: str, path: str = "") -> Iterator[str]:
    """Where the recorder's tags would name a variable that is left out."""
    if isinstance(data, dict):
        for key, value in data.items():
            if key in ("ansible_connection", "connection") and value == name:
                yield f"{path}.{key}"
            yield from _connection_paths(value, name, f"{path}.{key}")
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _connection_paths(value, name, f"{path}[{index}]")


def _without_connection(event: Any, name: str) -> Any:
    if isinstance(event, dict):
        shown = {k: _without_connection(v, name) for k, v in event.items() if not (k == "ansible_connection" and v == name)}
        return {k: "ansible.builtin.ssh" if k == "connection" and v == name else v for k, v in shown.items()}
    if isinstance(event, list):
        return [_without_connection(v, name) for v in event]
    return event


def _remove(path: bytes) -> None:
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


def _settle(begun: float, deadline_s: float = 15) -> None:
    """Waits for the watchers of async jobs of a run: they look every 5 s and clean up when their job has ended."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline and any(_is_watcher(pid, begun) for pid in os.listdir("/proc") if pid.isdigit()):
        time.sleep(0.2)


def _is_watcher(pid: str, begun: float) -> bool:
    """A program of core, or a process of an agent that nobody waits for: a daemon. Not one that was there before `begun` (seconds since the boot)."""
    line = _command_line(pid)
    with contextlib.suppress(OSError, IndexError):
        fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
        parent, started = int(fields[1]), int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return started >= begun - 1 and (b"async_wrapper" in line or (parent == 1 and b"\0-c\0import os,sys;f=" in line))
    return False


def _command_line(pid: str) -> bytes:
    try:
        return Path("/proc", pid, "cmdline").read_bytes()
    except OSError:
        return b""


def _own_strategies(work: Path) -> None:
    """Plays that name a built-in strategy get the one of ours instead."""
    for path in work.glob("*.yml"):
        text = path.read_text()
        changed = re.sub(r"(?m)^(\s+strategy: )(linear|free|host_pinned)$", r"\1churten.core.\2", text)
        if changed != text:
            path.write_text(changed)


def _execute(words: list[str], cwd: Path, env: dict[str, str], out: Path, typed: str = "") -> int:
    """Runs words with output to files below `out`; a run past its deadline is aborted with a traceback in stderr."""
    (out / "command").write_text(json.dumps({"argv": words, "cwd": str(cwd), "env": env}, indent=1))
    with open(out / "stdout", "wb") as stdout, open(out / "stderr", "wb") as stderr:
        given = subprocess.PIPE if typed else subprocess.DEVNULL
        process = subprocess.Popen(words, cwd=cwd, env=env, stdin=given, stdout=stdout, stderr=stderr, start_new_session=True)
        try:
            if process.stdin:
                process.stdin.write(typed.encode())
                process.stdin.close()
            return process.wait(timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # faulthandler writes where it hangs
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                pass
            return -1000
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
