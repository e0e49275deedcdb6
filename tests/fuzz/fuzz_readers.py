# SPDX-License-Identifier: GPL-3.0-or-later
"""Any text for the readers that are written in Python: `ssh -G` output, ssh_config files, timing logs, what `ansible` prints for `churten doctor`.

They never raise, whatever comes, and never take longer than their input deserves. `make fuzz SECONDS=60`, or
`fuzz_readers.py SECONDS`. Hypothesis makes the texts out of the words of the format, and shrinks what fails.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from churten.cli import doctor
from churten.timings import reading
from churten.timings.columns import Columns
from churten.transport import options

WORDS = st.sampled_from(
    "host Host match Match include Include all exec final originalhost hostname port user identityfile proxyjump proxycommand setenv sendenv ciphers "
    "stricthostkeychecking userknownhostsfile controlpath controlpersist rekeylimit connecttimeout serveraliveinterval yes no none ask accept-new 22 -1 0 "
    "99999999999999999999 %h %% %x %C ${HOME} ~ ~/x /tmp/* * ! = \" ' \\ # A=b 1M 10s any inet6 /dev/null".split()
)
PIECES = st.one_of(WORDS, WORDS, st.text(max_size=12), st.sampled_from([" ", "\t", "=", "\n", "\n", "\r\n"]))
ENV = st.lists(st.sampled_from(["A=b", "=", "'", '"', " ", "B=it's = c"]), max_size=6).map("".join)
# A line is a keyword and some words, or anything.
LINE = st.one_of(
    ENV.map("setenv {}".format),
    st.tuples(WORDS, st.lists(PIECES, max_size=6).map(" ".join)).map(" ".join),
    st.lists(PIECES, max_size=8).map("".join),
)
TEXTS = st.lists(LINE, max_size=20).map("\n".join)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["result", "run", "end", "ok", "1", 1])
)
KEYS = st.sampled_from(
    "_event _timestamp event event_data created duration "
    "v ev run play play_uuid task uuid action role path host status items started at seconds queue connect remote controller engine worker".split()
)
LINES = st.one_of(
    st.text(max_size=60),
    st.dictionaries(KEYS, SCALARS, max_size=24).map(lambda body: json.dumps({"v": 1, "ev": "result", "run": "r", **body})),
    st.integers(1, 20000).map(lambda n: "[" * n),
    st.dictionaries(KEYS, SCALARS, max_size=9).map(lambda body: json.dumps({"event": "runner_on_ok", "event_data": {}, **body})),
    st.dictionaries(KEYS, SCALARS, max_size=9).map(lambda body: json.dumps({"_event": "v2_runner_on_ok", "_timestamp": "", **body})),
)
COMMON = {"max_examples": 300, "deadline": 2000, "database": None, "suppress_health_check": list(HealthCheck)}
REQUEST = options.Request(("ssh", "-o", "ControlPath=/x"), "192.0.2.1", None, True)
BASE = {"ciphers": ["a"], "port": ["22"]}


@settings(**COMMON)
@given(TEXTS)
def ssh_g(text):
    options.decide(REQUEST, options.parse(text), BASE)


@settings(**COMMON)
@given(TEXTS)
def ssh_config(text):
    with tempfile.TemporaryDirectory() as top:
        path = Path(top, "config")
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        options.ConfigFiles(["ssh", "-F", str(path)], home=top)


@settings(**COMMON)
@given(st.lists(LINES, max_size=20))
def timing_log(lines):
    with tempfile.TemporaryDirectory() as top:
        path = Path(top, "log")
        path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        with reading.Log(str(path)) as log:
            for run in log.runs.values():
                Columns(log.results(run))
            assert log.bad <= path.read_bytes().count(b"\n") + 1


@settings(**COMMON)
@given(st.sampled_from(["SUCCESS", "FAILED", "UNREACHABLE"]), st.text(), st.lists(st.tuples(st.sampled_from(["engine", "churten"]), TEXTS), max_size=8))
def doctor_report(status, text, logged):
    list(doctor.report(status, doctor.result_of(text), logged))
    list(doctor.report(status, doctor.result_of('{"ansible_facts": {"ansible_python": ' + text), logged))


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    for target in (ssh_g, ssh_config, timing_log, doctor_report):
        end, rounds = time.monotonic() + seconds / 4, 0
        while rounds == 0 or time.monotonic() < end:
            seed(time.time_ns())(target)()
            rounds += 1
        print(f"== {target.__name__}: {rounds * COMMON['max_examples']} texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
