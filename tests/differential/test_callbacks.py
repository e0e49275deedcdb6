# SPDX-License-Identifier: GPL-3.0-or-later
"""What callback plugins show: the bytes of stock, for core's own with all their options and for those of ansible.posix.

One host, so that events have one order. `make posix` gets ansible.posix (50 MB); without it its plugins are skipped.
"""

import dataclasses
import re

import harness
import pytest

PLAY = harness.HERE / "callbacks"
POSIX = harness.ROOT / "build" / "posix"
MODES = ("churten-linear", "churten-free")
# Clock times that only these callbacks show: (regular expression, replacement).
TIMES = (
    (r"\d+:\d\d:\d\d\.\d{3}", "<clock>"),
    (r"(?m)^(\w+day \d\d \w+ \d{4})  \d\d:\d\d:\d\d.*$", "<day>"),
    (r"(?m) -+ \d+\.\d\ds$", " <time>"),
    (r"Playbook run took .*", "Playbook run took <time>"),
    (r'"(duration|end|start)": \{?[^},]*', r'"\1": <time>'),
    (r'("_original_basename": ?)"\.[a-z0-9_]{8}"', r'\1"<name>"'),
    (r'(time|timestamp)="[^"]*"', r'\1="<time>"'),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?", "<time>"),
)
CASES = {
    "default": {},
    "default-quiet": {"ANSIBLE_DISPLAY_SKIPPED_HOSTS": "0", "ANSIBLE_DISPLAY_OK_HOSTS": "0", "ANSIBLE_DISPLAY_FAILED_STDERR": "1"},
    "default-talkative": {
        "ANSIBLE_SHOW_CUSTOM_STATS": "1",
        "ANSIBLE_SHOW_PER_HOST_START": "1",
        "ANSIBLE_CHECK_MODE_MARKERS": "1",
        "ANSIBLE_SHOW_TASK_PATH_ON_FAILURE": "1",
        "ANSIBLE_DISPLAY_ARGS_TO_STDOUT": "1",
        "ANSIBLE_DIFF_ALWAYS": "1",
    },
    "default-yaml": {"ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml", "ANSIBLE_CALLBACK_FORMAT_PRETTY": "1", "args": ["--check"], "ANSIBLE_CHECK_MODE_MARKERS": "1"},
    "default-colour": {"ANSIBLE_FORCE_COLOR": "1", "ANSIBLE_NOCOLOR": "0", "ANSIBLE_DEPRECATION_WARNINGS": "0", "args": ["-v"]},
    "minimal": {"ANSIBLE_STDOUT_CALLBACK": "minimal"},
    "oneline": {"ANSIBLE_STDOUT_CALLBACK": "oneline"},
    "files": {
        "ANSIBLE_CALLBACKS_ENABLED": "recorder,junit,tree",
        "JUNIT_OUTPUT_DIR": "out",
        "JUNIT_TASK_CLASS": "1",
        "JUNIT_HIDE_TASK_ARGUMENTS": "0",
        "ANSIBLE_CALLBACK_TREE_DIR": "out/tree",
    },
    "watching": {},
    "posix-json": {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
    "posix-jsonl": {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.jsonl"},
    "posix-debug": {"ANSIBLE_STDOUT_CALLBACK": "ansible.posix.debug"},
    "posix-times": {
        "ANSIBLE_CALLBACKS_ENABLED": "recorder,ansible.posix.profile_tasks,ansible.posix.timer,ansible.posix.profile_roles",
        # In the order of the tasks: times of equal length come in any order.
        "PROFILE_TASKS_SORT_ORDER": "none",
        "PROFILE_TASKS_TASK_OUTPUT_LIMIT": "all",
    },
}


def without_times(value):
    """Text, or what is in a folder, without what a clock says."""
    if isinstance(value, dict):
        return {without_times(k): without_times(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_times(v) for v in value]
    if isinstance(value, str):
        for pattern, text in TIMES:
            value = re.sub(pattern, text, value)
        # The longest time first.
        value = re.sub(r"(?m)(^.* <time>\n)+", lambda found: "".join(sorted(found[0].splitlines(True))), value)
    return value


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", [pytest.param(name, marks=[pytest.mark.quick] if name == "watching" else []) for name in CASES])
def test_callback(runner, case, mode):
    env = dict(CASES[case])
    if case.startswith("posix"):
        if not (POSIX / "ansible_collections" / "ansible" / "posix").is_dir():
            pytest.skip("ansible.posix is not here: make posix")
        env["collections"] = str(POSIX)
    play = harness.Play.load(PLAY)
    play = dataclasses.replace(play, meta={**play.meta, "args": env.pop("args", []), "env": env, "exit": 0 if case == "default-yaml" else 2})
    play.name = f"callbacks-{case}"
    if mode == "churten-free" and case not in ("default", "watching"):
        pytest.skip("one is enough")
    oracle = runner.oracle(play, harness.MODES[mode])
    other = runner.run(play, harness.MODES[mode])
    found = []
    for side in (oracle, other):
        side.files["out"] = {re.sub(r"-\d+\.\d+\.xml$", ".xml", name): content for name, content in side.files["out"].items()}
    for name in ("rc", "stdout", "files"):
        found += harness.diff_values(name, without_times(getattr(oracle, name)), without_times(getattr(other, name)))
    found += harness.diff_values("stderr", harness.stderr_messages(oracle.stderr), harness.stderr_messages(other.stderr))
    if "posix" not in case and "ANSIBLE_STDOUT_CALLBACK" not in env:
        assert oracle.stdout.count("TASK [") > 10
    if found:
        pytest.fail(harness.report(play, oracle, other, found), pytrace=False)
