# SPDX-License-Identifier: GPL-3.0-or-later
"""Random plays under stock and churten: `make random-plays COUNT=300 SEED=1`.

Hypothesis builds a `Case` (plays, files to include, roles, handlers, words of the command line) and shrinks one that
differs. Everything a case says must be decided by the playbook alone: what stock itself leaves to the speed of its
forks is not generated (see WILD_* for what only `linear` may do), and a difference counts only if two runs of stock
agree. Runs are started by an oven (oven.py), so a play costs a second, not five.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import harness
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from oven import Oven

LOCAL = ("loc1", "loc2")  # hosts of the connection local; lab001 and lab002 are reached by ssh
REGISTERS = ("r1", "r2", "r3")
FACTS = ("f1", "f2")
HANDLERS = ("h1", "h2", "h3", "h4")
TOPICS = ("topic1", "topic2")
TAGS = ("ta", "tb", "always", "never")
RUN_SECONDS = 60

# Expressions whose value depends on this host alone.
VALUES = (
    "plain",
    "{{ inventory_hostname }}",
    "{{ v1 }}",
    "{{ v2 }}",
    "{{ f1 | default('no f1') }}",
    "{{ f2 | default([]) }}",
    "{{ r1 | default('no r1') }}",
    "{{ r1.changed | default('-') }} {{ r2.failed | default('-') }}",
    "{{ r2 is defined and r2 is failed }}",
    "{{ (r1.results | default([])) | map(attribute='item') | list }}",
    "{{ r3.attempts | default(0) }}",
    "{{ item | default('no item') }}",
    "{{ thing | default('no thing') }}",
    "{{ idx | default('no index') }}",
    "{{ ansible_loop.index | default('-') }}",
    "{{ ansible_failed_task.name | default('-') }} {{ ansible_failed_result.msg | default('-') }}",
    "{{ not_there }}",
    "{{ l1 }}",
    "{{ l1.append(7) }}{{ l1 | length }}",
    "{{ d1.update({'new': 1}) }}{{ d1 }}",
    "{{ d1 }}",
    "{{ role_name | default('no role') }}",
    "{{ ansible_parent_role_names | default([]) }}",
    "{{ given | default('not given') }}",
    "{{ ansible_check_mode }} {{ ansible_diff_mode }}",
    "{{ ansible_run_tags | sort }} {{ ansible_skip_tags | sort }}",
    "{{ 1 // 0 }}",
    "{{ broken",
    "{{ lookup('pipe', 'echo piped') }}",
    "{{ q('items', l1) }}",
    "{{ omit }}",
    "{{ lazy }}",
    "{{ playbook_dir | basename }}",
    "{{ [1, 'two', none, 3.5, true] }}",
    "{{ vars['f1'] | default('-') }}",
    "{{ ansible_delegated_vars | default({}) }}",
    "{{ made | default('-') }}",
    "{{ ansible_facts | length }}",
    "é ☃",
)
# Also on the others, or on the order in which they come: in step only.
WILD_VALUES = (
    "{{ ansible_play_hosts }} {{ ansible_play_batch }}",
    "{{ ansible_play_hosts_all }} {{ play_hosts }}",
    "{{ groups.made | default([]) }} {{ group_names }}",
    "{{ hostvars[other].f1 | default('-') }}",
    "{{ hostvars[other].v1 }}",
    "{{ hostvars | length }}",
    "{{ ansible_current_hosts | default('-') }}",
)
SAFE_CONDITIONS = (
    True,
    True,
    "true",
    "r1 is defined",
    "r2 is not defined",
    "f1 is defined",
    "inventory_hostname == 'loc1'",
    "inventory_hostname in groups.lab",
    "item | default(1) == 1",
    "f1 | default(0) | int > 1",
    "v1 == 'play'",
    "l1 | length == 2",
    "r1 is defined and r1 is changed",
    "idx | default(0) == 0",
    ["v1 is defined", "true"],
    False,
)
CONDITIONS = (
    *SAFE_CONDITIONS,
    *SAFE_CONDITIONS,
    "r1 is changed",
    "r1 is failed",
    "r2 is skipped",
    "item != 2",
    "not_there",
    "r1.rc == 0",
    "ansible_check_mode",
    ["r1 is defined", "r1 is success"],
    "lookup('items', [1])",
    "r3.attempts | default(1) > 1",
    "{{ v1 == 'play' }}",
)
LOOPS = (
    [1, 2],
    ["a"],
    [],
    "{{ l1 }}",
    "{{ f2 | default([]) }}",
    "{{ r1.results | default([1]) }}",
    [{"name": "n", "list": [1]}, {"name": "m"}],
    "{{ not_there }}",
    "{{ range(3) | list }}",
    "text",
)


def one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


def _rarely(draw: Any, n: int = 4) -> bool:
    """True once in about n times; what hypothesis shrinks to is False."""
    return draw(st.integers(0, 2 * n)) in (1, 2)


@dataclasses.dataclass(frozen=True)
class Where:
    """What may be generated at a place."""

    linear: bool
    depth: int = 2
    handler: bool = False
    block: bool = True
    include: tuple[str, ...] = ()  # files that exist below
    roles: tuple[str, ...] = ()
    in_role: bool = False


def values(where: Where) -> st.SearchStrategy[Any]:
    return st.sampled_from(VALUES + WILD_VALUES if where.linear else VALUES)


@st.composite
def actions(draw: Any, where: Where) -> dict[str, Any]:
    """One action with its arguments; what starts with _ says something to `tasks`."""
    kind = draw(
        st.sampled_from(
            ["debug"] * 4
            + ["set_fact"] * 4
            + [
                "command",
                "fail",
                "assert",
                "var",
                "var",
                "echo",
                "echo",
                "false",
                "shell",
                "set_stats",
                "include_vars",
                "ping",
                "stat",
                "unknown",
            ]
            + ["meta"] * 2
            + (["include"] * 2 + ["import"] if where.include else [])
            + (["include_role", "include_role", "import_role"] if where.roles and not where.handler else [])
            + (["add_host", "group_by"] if where.linear else [])
        )
    )
    value = draw(values(where)) if kind in ("debug", "assert") else draw(one_of(*VALUES))
    if kind == "debug":
        return {"debug": {"msg": value}}
    if kind == "var":
        return {"debug": {"var": draw(one_of("r1", "f1", "l1", "d1", "item", "not_there", "r1.msg", "v1 ~ 'x'"))}}
    if kind == "set_fact":
        data = {
            draw(one_of(*FACTS)): draw(
                one_of(
                    value,
                    3,
                    [1, 2],
                    "{{ (f2 | default([])) + [1] }}",
                    "{{ f1 | default(0) | int + 1 }}",
                    {"deep": value},
                )
            )
        }
        return {"set_fact": {**data, **({"cacheable": True} if _rarely(draw) else {})}}
    if kind == "command":
        return {"command": draw(one_of("true", "echo {{ item | default('x') }}", "false"))}
    if kind == "echo":
        return {"command": {"argv": ["echo", value]}}
    if kind == "false":
        return {"command": "false"}
    if kind == "shell":
        return {"shell": draw(one_of("echo $GIVEN; exit 0", "exit 3", "echo err >&2"))}
    if kind == "fail":
        return {"fail": {"msg": value}}
    if kind == "assert":
        return {
            "assert": {
                "that": draw(one_of(*CONDITIONS)),
                **draw(one_of({}, {"quiet": True}, {"fail_msg": value}, {"success_msg": value})),
            }
        }
    if kind == "set_stats":
        return {
            "set_stats": {
                "data": {draw(one_of("s1", "s2")): draw(one_of(1, "x"))},
                "per_host": draw(st.booleans()) if where.linear else True,
            }
        }
    if kind == "include_vars":
        return {
            "include_vars": draw(one_of("vars.yml", "vars.yml", "missing.yml", {"file": "vars.yml", "name": "scoped"}))
        }
    if kind == "ping":
        return {"ping": draw(one_of(None, {"data": "crash"}, {"data": "x"}))}
    if kind == "stat":
        return {"stat": {"path": "/"}, "no_log": True}
    if kind == "unknown":
        return {"debug": {"not_an_option": 1}} if _rarely(draw) else {"debug": {}}
    if kind == "meta":
        common = ["noop", "flush_handlers", "end_host", "noop"] + (
            []
            if not where.linear
            else ["clear_host_errors", "end_play", "end_batch", "clear_facts", "refresh_inventory"]
        )
        return {
            "meta": draw(st.sampled_from(common + (["end_role"] if where.in_role and not where.handler else []))),
            "_meta": True,
        }
    if kind == "include":
        name = draw(
            st.sampled_from([*where.include, "{{ 'inc_a' }}.yml", "missing.yml"] if _rarely(draw) else [*where.include])
        )
        data = draw(
            one_of(name, {"file": name, "apply": {"tags": ["ta"]}}, {"file": name, "apply": {"ignore_errors": True}})
        )
        return {"include_tasks": data, "_include": True}
    if kind == "import":
        return {"import_tasks": draw(st.sampled_from(where.include)), "_import": True}
    if kind in ("include_role", "import_role"):
        data = {
            "name": draw(
                st.sampled_from(
                    [*where.roles, *where.roles, "no_role"] if kind == "include_role" and _rarely(draw) else where.roles
                )
            )
        }
        if _rarely(draw):
            data["tasks_from"] = draw(one_of("main", "other"))
        if kind == "include_role":
            data.update(draw(one_of({}, {}, {"public": True}, {"apply": {"tags": "tb"}}, {"allow_duplicates": False})))
        return {kind: data, "_include" if kind == "include_role" else "_import": True}
    if kind == "add_host":
        return {
            "add_host": {
                "name": draw(one_of("added", "added-{{ inventory_hostname }}")),
                "groups": "made",
                "made": "{{ item | default('m') }}",
                "ansible_connection": "local",
            },
            "_once": True,
        }
    assert kind == "group_by"
    return {"group_by": {"key": draw(one_of("made", "made_{{ inventory_hostname }}", "{{ not_there }}"))}}


@st.composite
def tasks(draw: Any, where: Where) -> dict[str, Any]:
    if where.block and where.depth and not where.handler and _rarely(draw, 5):
        return draw(blocks(where))
    task = dict(draw(actions(where)))
    meta, include, imported = task.pop("_meta", False), task.pop("_include", False), task.pop("_import", False)
    once = task.pop("_once", False)
    if _rarely(draw, 3):
        task["when"] = draw(one_of(*CONDITIONS))
    if _rarely(draw, 5):
        task["tags"] = draw(
            st.sampled_from(
                [*TAGS[:2], [TAGS[0]], ["always"], ["never", "ta"], ["{{ 'ta' }}"] if not imported else "tb"]
            )
        )
    if imported:
        if _rarely(draw):
            task["vars"] = {"given": draw(one_of(*VALUES))}
        if _rarely(draw):
            task["ignore_errors"] = True
        return task
    if meta:
        if task["meta"] in ("flush_handlers", "refresh_inventory"):
            task.pop("when", None)  # a warning each time, nothing else
        return task
    if _rarely(draw, 4):
        task[draw(one_of("loop", "with_items"))] = draw(one_of(*LOOPS))
        control = draw(
            one_of(
                {},
                {},
                {"loop_var": "thing"},
                {"label": "L {{ item | default('?') }}"},
                {"index_var": "idx", "extended": True},
                {"loop_var": "thing", "index_var": "idx", "label": "{{ not_there }}"},
                {"pause": 0.01},
                {"break_when": "item == 1"},
            )
        )
        if control:
            task["loop_control"] = control
    if _rarely(draw, 5):
        task["vars"] = {draw(one_of("given", "v1", "l1")): draw(one_of(*VALUES, [1, 2], "{{ item | default('-') }}"))}
    if _rarely(draw, 4):
        task["register"] = draw(one_of(*REGISTERS))
    if _rarely(draw, 4):
        task["ignore_errors"] = draw(one_of(True, True, False, "{{ inventory_hostname == 'loc1' }}", "{{ not_there }}"))
    if _rarely(draw, 8):
        task["no_log"] = draw(one_of(True, "{{ v1 == 'play' }}"))
    if include:
        if _rarely(draw, 8) and where.linear:
            task["run_once"] = True
        return task
    if _rarely(draw, 6):
        task["failed_when"] = draw(one_of(*CONDITIONS))
    if _rarely(draw, 5):
        task["changed_when"] = draw(one_of(True, True, *CONDITIONS))
    if _rarely(draw, 8):
        task["retries"] = draw(one_of(1, 2, "{{ 1 }}", 0))
        task["delay"] = 0
        task["register"] = task.get("register", "r3")
        task["until"] = draw(
            one_of(
                "r3 is success",
                "r3.attempts | default(0) > 1",
                False,
                "not_there",
                "r3.attempts == 1",
                f"{task['register']} is failed",
            )
        )
    if _rarely(draw, 3):
        task["notify"] = draw(
            st.sampled_from(
                [*HANDLERS, *TOPICS, ["h1", "topic1"], ["h2", "h1"], "{{ 'h3' }}"]
                + (["nobody"] if _rarely(draw, 8) else [])
            )
        )
        task.setdefault("changed_when", True)
    if _rarely(draw, 7):
        task["delegate_to"] = draw(
            one_of(
                "loc1",
                "loc2",
                "lab001",
                "{{ inventory_hostname }}",
                "localhost",
                "{{ not_there }}",
                "{{ item | default('loc2') }}",
                "nobody",
            )
        )
        if "set_fact" in task and draw(st.booleans()):
            task["delegate_facts"] = True
            # All hosts write the same: who comes last must not matter.
            task["set_fact"] = {"f1": 5}
    if _rarely(draw, 9) and where.linear and not once:
        task["run_once"] = draw(one_of(True, True, "{{ v1 == 'play' }}"))
    if _rarely(draw, 9):
        task["throttle"] = draw(one_of(1, 2, "{{ 1 }}"))
    if _rarely(draw, 10):
        task["environment"] = draw(one_of({"GIVEN": "e"}, [{"GIVEN": "{{ v1 }}"}], {"GIVEN": "{{ not_there }}"}))
    if _rarely(draw, 10):
        task["check_mode"] = draw(st.booleans())
    if _rarely(draw, 12):
        task["ignore_unreachable"] = True
    if _rarely(draw, 12) and where.linear:
        task["any_errors_fatal"] = draw(one_of(True, "{{ inventory_hostname == 'loc1' }}"))
    if _rarely(draw, 14):
        task["timeout"] = draw(one_of(10, "{{ 10 }}", 0))
    if _rarely(draw, 14):
        task["action_by_args"] = True
    return task


@st.composite
def blocks(draw: Any, where: Where) -> dict[str, Any]:
    inner = dataclasses.replace(where, depth=where.depth - 1)
    block: dict[str, Any] = {"block": draw(st.lists(tasks(inner), min_size=1, max_size=3))}
    for key in ("rescue", "always"):
        if draw(st.booleans()):
            block[key] = draw(st.lists(tasks(inner), min_size=1, max_size=2))
    for key, choices, n in (
        ("when", CONDITIONS, 4),
        ("tags", ("ta", "tb", ["never", "ta"]), 6),
        ("ignore_errors", (True,), 6),
        ("vars", ({"given": "block"}, {"v1": "block"}, {"l1": [9]}), 5),
        ("notify", HANDLERS, 8),
        ("delegate_to", ("loc1",), 10),
        ("check_mode", (True,), 12),
        ("no_log", (True,), 12),
        ("throttle", (1,), 12),
        ("environment", ({"GIVEN": "b"},), 10),
    ):
        if _rarely(draw, n):
            block[key] = draw(one_of(*choices))
    for key in ("run_once", "any_errors_fatal"):
        if where.linear and _rarely(draw, 10):
            block[key] = True
    return block


@st.composite
def plays(draw: Any, linear: bool, first: bool) -> dict[str, Any]:
    where = Where(linear, include=("inc_a.yml", "inc_b.yml"), roles=("role_a", "role_b"))
    hosts = draw(
        one_of("some", "some", "some", "local", "lab", "loc1", "some:!loc1", "made" if linear else "local", "nowhere")
    )
    play: dict[str, Any] = {"hosts": "some" if first else hosts, "gather_facts": False}
    play["vars"] = {
        "v1": "play",
        "l1": [1, 2],
        "d1": {"k": "v"},
        "lazy": "{{ v1 }}-{{ f1 | default('z') }}",
        "other": "loc1",
    }
    if _rarely(draw, 6):
        play["vars_files"] = ["vars.yml"]
    if _rarely(draw, 8):
        play["strategy"] = draw(one_of("linear", "free", "host_pinned")) if not linear else "linear"
    if _rarely(draw, 5):
        play["serial"] = draw(one_of(1, 2, "50%", [1, 2], 5))
    if linear and _rarely(draw, 8):
        play["max_fail_percentage"] = draw(one_of(0, 30, 60, 100))
    if linear and _rarely(draw, 8):
        play["any_errors_fatal"] = True
    for key, choices, n in (
        ("force_handlers", (True,), 5),
        ("order", ("sorted", "reverse_sorted", "inventory", "reverse_inventory"), 8),
        ("tags", ("ta",), 10),
        ("ignore_errors", (True,), 3),
        ("environment", ({"GIVEN": "p"},), 10),
        ("throttle", (1, 2), 12),
        ("ignore_unreachable", (True,), 12),
        ("no_log", (True,), 20),
        ("check_mode", (True,), 20),
        ("module_defaults", ({"debug": {"msg": "by default"}}, {"command": {"chdir": "/"}}, {"group/none": {}}), 14),
        ("gather_facts", (False,), 2),
    ):
        if _rarely(draw, n):
            play[key] = draw(one_of(*choices))
    if _rarely(draw, 4):
        play["pre_tasks"] = draw(st.lists(tasks(where), min_size=1, max_size=2))
    if _rarely(draw, 4):
        play["roles"] = draw(
            st.lists(
                one_of(
                    "role_a",
                    "role_b",
                    {"role": "role_a", "tags": ["tb"]},
                    {"role": "role_b", "vars": {"given": 1}},
                    {"role": "role_a", "when": "inventory_hostname == 'loc1'"},
                ),
                min_size=1,
                max_size=2,
            )
        )
    play["tasks"] = draw(st.lists(tasks(where), min_size=1, max_size=8))
    if _rarely(draw, 6):
        play["post_tasks"] = draw(st.lists(tasks(where), min_size=1, max_size=2))
    play["handlers"] = draw(handlers(where))
    return play


@st.composite
def handlers(draw: Any, where: Where) -> list[dict[str, Any]]:
    inner = dataclasses.replace(where, handler=True, block=False, depth=0, include=("inc_a.yml",), roles=())
    out = []
    for name in HANDLERS:
        task = draw(tasks(inner))
        task["name"] = name
        if _rarely(draw, 2):
            task["listen"] = draw(one_of("topic1", ["topic1", "topic2"]))
        out.append(task)
    return out


@st.composite
def cases(draw: Any, linear: bool) -> dict[str, Any]:
    """Everything of one run, as data."""
    deep = Where(linear, depth=1)
    number = draw(st.integers(1, 3))
    case = {
        "plays": [draw(plays(linear, index == 0)) for index in range(number)],
        "inc_a": draw(st.lists(tasks(deep), min_size=1, max_size=3)),
        "inc_b": draw(st.lists(tasks(dataclasses.replace(deep, include=("inc_a.yml",))), min_size=1, max_size=3)),
        "role_a": draw(st.lists(tasks(dataclasses.replace(deep, in_role=True)), min_size=1, max_size=3)),
        "role_b": draw(
            st.lists(tasks(dataclasses.replace(deep, in_role=True, include=("other.yml",))), min_size=1, max_size=3)
        ),
        "other": draw(st.lists(tasks(dataclasses.replace(deep, in_role=True)), min_size=1, max_size=2)),
        "role_handlers": draw(st.lists(tasks(dataclasses.replace(deep, handler=True, block=False)), max_size=1)),
        "depends": _rarely(draw),
        "hosts": draw(
            one_of(
                ["loc1", "loc2"],
                ["loc1", "loc2"],
                ["loc1", "loc2", "lab001"],
                ["lab001", "lab002"],
                ["loc1"],
                ["loc1", "lab001", "lab002", "loc2"],
            )
        ),
        "args": draw(
            one_of(
                [],
                [],
                [],
                [],
                [],
                [],
                ["--tags", "ta"],
                ["--skip-tags", "tb"],
                ["--tags", "all,never"],
                ["--check"],
                ["--diff"],
                ["--force-handlers"],
                ["-e", "v1=extra"],
                ["-v"],
                ["--limit", "loc1"],
                ["--forks", "1"],
                ["--tags", "tagged"],
                ["--skip-tags", "always"],
            )
        ),
    }
    return case


# ---- from data to files ---------------------------------------------------------------------------------------------


def _named(found: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    """Tasks with names of their own; a wish that no keyword spells is carried out."""
    out = []
    for index, task in enumerate(found):
        task = dict(task)
        name = task.pop("name", f"{prefix}{index}")
        if task.pop("action_by_args", False):
            action = next(iter(task))
            task = {
                "action": {"module": action, **task.pop(action)}
                if isinstance(task[action], dict)
                else f"{action} {task.pop(action) or ''}",
                **task,
            }
        for key in ("block", "rescue", "always"):
            if key in task:
                task[key] = _named(task[key], f"{name}.{key[0]}")
        out.append({"name": name, **task} if "block" not in task else task)
    return out


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _dump(data: Any) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=150, allow_unicode=True)


def render(case: dict[str, Any]) -> dict[str, str]:
    """{path: text} of a play's folder; strategies still have stock's names."""
    case = copy.deepcopy(case)
    files = {}
    for index, play in enumerate(case["plays"]):
        play["name"] = f"P{index}"
        for key in ("pre_tasks", "tasks", "post_tasks"):
            if key in play:
                play[key] = _named(play[key], f"{index}{key[:2]}")
        play["handlers"] = _named(play["handlers"], "")
        # Order for the reader.
        case["plays"][index] = {
            k: play[k]
            for k in sorted(play, key=lambda k: (k.endswith("tasks") or k in ("handlers", "roles"), k == "handlers"))
        }
    files["playbook.yml"] = _dump(case["plays"])
    files["inc_a.yml"] = _dump(_named(case["inc_a"], "a"))
    files["inc_b.yml"] = _dump(_named(case["inc_b"], "b"))
    files["vars.yml"] = "v2: from a file\nv1: file\n"
    for role in ("role_a", "role_b"):
        files[f"roles/{role}/tasks/main.yml"] = _dump(_named(case[role], role[5:] + "r"))
        files[f"roles/{role}/tasks/other.yml"] = _dump(_named(case["other"], "o"))
        files[f"roles/{role}/defaults/main.yml"] = f"v2: default of {role}\ngiven: default\n"
        files[f"roles/{role}/vars.yml"] = "v2: never found\n"
    files["roles/role_a/vars/main.yml"] = "v1: role_a\n"
    if case["role_handlers"]:
        files["roles/role_a/handlers/main.yml"] = _dump([{**_named(case["role_handlers"], "")[0], "name": "h2"}])
    if case["depends"]:
        files["roles/role_b/meta/main.yml"] = "dependencies: [role_a]\n"
    local = {
        name: {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "v2": name}
        for name in LOCAL
    }
    groups = {
        "local": {"hosts": local},
        "some": {"hosts": dict.fromkeys(case["hosts"], None)},
        "all": {"vars": {"v1": "all", "v2": "inventory"}},
    }
    files["inventory.yml"] = _dump(groups)
    files["meta.yml"] = _dump({"hosts": 2, "args": case["args"], "ordered": False})
    return files


# ---- running --------------------------------------------------------------------------------------------------------


class OvenRunner(harness.Runner):
    """Runs come out of ovens, one per set of core's configuration."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ovens: dict[str, Oven] = {}

    def execute(self, words: list[str], cwd: Path, env: dict[str, str], out: Path, typed: str) -> int:
        fixed = {k: v for k, v in env.items() if k != "CHURTEN_DIFF_RECORD"}
        key = json.dumps(fixed, sort_keys=True)
        if key not in self.ovens:
            self.ovens[key] = Oven([words[0], str(harness.HERE / "oven.py")], fixed)
        (out / "command").write_text(json.dumps({"argv": words, "cwd": str(cwd), "env": env}, indent=1))
        return self.ovens[key].run(
            words[1:], cwd, {"CHURTEN_DIFF_RECORD": env["CHURTEN_DIFF_RECORD"]}, out, RUN_SECONDS
        )

    def close(self) -> None:
        for oven in self.ovens.values():
            oven.close()
        super().close()


@dataclasses.dataclass
class Tester:
    """Runs cases; remembers outcomes, so that shrinking sees the same answer for the same case."""

    runner: OvenRunner
    folder: Path
    known: dict[str, str] = dataclasses.field(default_factory=dict)
    runs: int = 0
    results: int = 0  # of tasks, under stock
    unstable: int = 0
    invalid: int = 0

    def _write(self, files: dict[str, str]) -> harness.Play:
        place = self.folder / "play"
        shutil.rmtree(place, ignore_errors=True)
        for name, text in files.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return harness.Play.load(place)

    def differences(self, case: dict[str, Any], mode: harness.Mode) -> str:
        """A report, or nothing."""
        files = render(case)
        key = hashlib.sha256(json.dumps([files, mode.name]).encode()).hexdigest()
        if key in self.known:
            return self.known[key]
        self.runs += 1
        assert mode.oracle
        stock = harness.MODES[mode.oracle]
        play = self._write(files)
        a = self.runner.run(play, stock)
        self.invalid += not a.hosts
        self.results += sum(
            event["ev"] in ("ok", "failed", "skipped", "unreachable") for events in a.hosts.values() for event in events
        )
        b = self.runner.run(play, mode)
        found = harness.compare(play, a, b)
        text = ""
        if found:
            text = harness.report(play, a, b, found)
            again = self.runner.run(play, harness.MODES[f"again-{stock.strategy}"])
            if harness.compare(play, a, again):
                self.unstable += 1
                print(f"-- stock differs from itself (not counted): {harness.compare(play, a, again)[0]}", flush=True)
                if os.environ.get("CHURTEN_RANDOM_SHOW"):
                    print(show(files))
                text = ""
        self.known[key] = text
        return text


def show(files: dict[str, str]) -> str:
    return "\n".join(f"--- {name}\n{text}" for name, text in files.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--modes", default="churten-linear,churten-free,conn-linear")
    parser.add_argument(
        "--keep",
        type=Path,
        default=harness.ROOT / "build" / "random-plays",
        help="where the files of a failing example go",
    )
    parser.add_argument("--shrink", type=float, default=120, help="seconds to make a failing example smaller")
    words = parser.parse_args()
    number = words.seed if words.seed is not None else int(time.time())
    from churten.lab.lab import Lab

    top = "/var/tmp" if os.geteuid() == 0 else tempfile.gettempdir()
    place, base = (
        Path(tempfile.mkdtemp(prefix="churten-random-", dir=top)),
        Path(tempfile.mkdtemp(prefix="cr-", dir="/tmp")),
    )
    place.chmod(0o755)
    lab = Lab(place / "lab")
    failed = 0
    try:
        lab.up(2)
        runner = OvenRunner(base, lab)
        tester = Tester(runner, base / "case")
        try:
            names = words.modes.split(",")
            for index, name in enumerate(names):
                count = (words.count - index + len(names) - 1) // len(names)
                begun = time.monotonic()
                failed += not _search(tester, harness.MODES[name], count, number, words)
                print(
                    f"{name}: {count} plays, seed {number}; so far {tester.results} results of {tester.runs} plays, "
                    f"{tester.unstable} undecided, {tester.invalid} empty, {time.monotonic() - begun:.0f} s",
                    flush=True,
                )
        finally:
            runner.close()
    finally:
        lab.down()
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(base, ignore_errors=True)
    return 1 if failed else 0


def _sample(linear: bool, number: int) -> dict[str, Any]:
    """One random case. A search of its own for each: within one, hypothesis makes an example out of the one before, and the first is the simplest."""
    found: list[dict[str, Any]] = []

    @seed(number)
    @settings(
        max_examples=2,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(cases(linear))
    def take(case: dict[str, Any]) -> None:
        found.append(case)

    take()
    return found[-1]


def _smaller(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of what may be left out, big parts first."""
    level = [(path, value)]
    while level:
        below = []
        for at, one in level:
            inside = (
                list(one.items()) if isinstance(one, dict) else list(enumerate(one)) if isinstance(one, list) else []
            )
            for key, child in reversed(inside):
                yield (*at, key)
                below.append(((*at, key), child))
        level = below


def _without(case: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any] | None:
    """`case` without what is at `path`; None if it must stay."""
    case = copy.deepcopy(case)
    holder: Any = case
    for key in path[:-1]:
        holder = holder[key]
    if len(path) == 1:
        if isinstance(holder[path[0]], list) and path[0] not in ("hosts", "plays"):
            if not holder[path[0]]:
                return None
            holder[path[0]] = []
        else:
            return None
    elif path[-1] in ("hosts", "gather_facts", "block") or (
        isinstance(holder, list) and len(holder) == 1 and path[0] != "args" and len(path) == 2
    ):
        return None
    else:
        del holder[path[-1]]
    return case


def shrink(case: dict[str, Any], differs: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
    """A smaller case that still differs."""
    deadline = time.monotonic() + seconds
    again = True
    while again:
        again = False
        for path in list(_smaller(case)):
            if time.monotonic() > deadline:
                return case
            try:
                smaller = _without(case, path)
                if smaller is None or not differs(smaller):
                    continue
            except (KeyError, IndexError, TypeError, StopIteration):  # went with a part before
                continue
            case, again = smaller, True
    return case


def _search(tester: Tester, mode: harness.Mode, count: int, number: int, words: argparse.Namespace) -> bool:
    """Whether `count` plays ran without a difference."""
    fine = True
    for index in range(count):
        case = _sample(mode.linear, number * 100_000 + index)
        if not tester.differences(case, mode):
            continue
        fine = False
        if words.shrink:
            case = shrink(case, lambda smaller: bool(tester.differences(smaller, mode)), words.shrink)
        files = render(case)
        place = words.keep / f"{mode.name}-{number}-{index}"
        for name, content in files.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        used = {name: text for name, text in files.items() if text.strip() not in ("[]", "")}
        print(
            f"==== {mode.name} seed {number} play {index}: kept in {place}\n{show(used)}\n{tester.differences(case, mode)}",
            flush=True,
        )
        (place / "difference").write_text(tester.differences(case, mode))
    return fine


if __name__ == "__main__":
    sys.exit(main())
