# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes every callback event as one JSON line to $CHURTEN_DIFF_RECORD; runs on ansible-core 2.16 to 2.22.

It records more than the results. `fields` are the task's attributes as the worker saw them, `raw` those of the
play's own task object: a run that changed the play's state by running a task shows there. `tags` are the data tags
(2.19+) of the result by key path. The last event, `state`, is what the variable manager holds for each host.
"""

from __future__ import annotations

import json
import os

from ansible.plugins.callback import CallbackBase

try:
    from ansible.module_utils._internal._datatag import AnsibleTagHelper
except ImportError:  # before 2.19: no tags
    AnsibleTagHelper = None

DOCUMENTATION = """
    name: recorder
    type: aggregate
    short_description: record every event for the differential tests
    description: Writes JSON lines to the file named by CHURTEN_DIFF_RECORD.
    options: {}
"""

RAW_FIELDS = ("name", "action", "args", "when", "loop", "vars", "register", "until", "notify", "environment", "tags")


def plain(value, depth=0):
    """Value as JSON data; what JSON cannot tell apart (tuple, set, bytes, odd keys) keeps its type's name."""
    if depth > 60:
        return {"__type__": "too deep"}
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if value == value else {"__type__": "nan"}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return {"__type__": "bytes", "value": value.decode("latin-1")}
    if isinstance(value, dict):
        return {k if isinstance(k, str) else f"{type(k).__name__}:{k!r}": plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v, depth + 1) for v in value]
    if isinstance(value, tuple):
        return {"__type__": "tuple", "value": [plain(v, depth + 1) for v in value]}
    if isinstance(value, (set, frozenset)):
        return {"__type__": "set", "value": sorted((plain(v, depth + 1) for v in value), key=repr)}
    return {"__type__": type(value).__name__, "value": str(value)}


def tags_of(value, path="", found=None):
    """{key path: sorted names of the tags there}; empty before 2.19."""
    found = {} if found is None else found
    if AnsibleTagHelper is None:
        return found
    names = sorted(tag.__name__ for tag in AnsibleTagHelper.tag_types(value))
    if names:
        found[path or "."] = names
    if isinstance(value, dict):
        for key, child in value.items():
            tags_of(child, f"{path}.{key}", found)
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            tags_of(child, f"{path}[{index}]", found)
    return found


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "recorder"
    CALLBACK_NEEDS_ENABLED = True
    wants_implicit_tasks = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        path = os.environ.get("CHURTEN_DIFF_RECORD")
        self.disabled = not path
        self.out = open(path, "w", encoding="ascii") if path else None
        self.play, self.strategy_shown = None, False
        self.names = set()

    def write(self, event, **what):
        self.out.write(json.dumps({"ev": event, **what}) + "\n")
        self.out.flush()

    @staticmethod
    def task_of(task):
        path = task.get_path() or ""
        return {"task": str(task.get_name()), "action": str(task.action), "path": os.path.basename(path)}

    def result(self, event, result, **what):
        task = result._task
        data = getattr(result, "_return_data", None)
        self.names.add(result._host.get_name())
        fields = {k: v for k, v in plain(dict(result._task_fields)).items() if k not in ("uuid", "parent")}
        raw = {k: plain(getattr(task, k, None)) for k in RAW_FIELDS}
        flags = {k: bool(getattr(result, "is_" + k)()) for k in ("changed", "failed", "skipped", "unreachable")}
        self.write(
            event,
            host=result._host.get_name(),
            **self.task_of(task),
            flags=flags,
            result=plain(result._result),
            tags=tags_of(data) if data is not None else {},
            fields=fields,
            raw=raw,
            **what,
        )

    def v2_playbook_on_start(self, playbook):
        self.write("playbook", name=os.path.basename(playbook._file_name))

    def v2_playbook_on_play_start(self, play):
        self.play, self.strategy_shown = play, False
        self.write("play", name=str(play.get_name()), hosts=plain(play.hosts))

    def v2_playbook_on_no_hosts_matched(self):
        self.write("no_hosts_matched")

    def v2_playbook_on_no_hosts_remaining(self):
        self.write("no_hosts_remaining")

    def v2_playbook_on_task_start(self, task, is_conditional):
        # Not at the play's start: there the strategy plugin is not loaded yet, so its name can only be the one set.
        if not self.strategy_shown:
            self.strategy_shown = True
            self.write("strategy", name=str(self.play.strategy))
        self.write("task", **self.task_of(task))

    def v2_playbook_on_handler_task_start(self, task):
        self.write("handler", **self.task_of(task))

    def v2_playbook_on_notify(self, handler, host):
        self.write("notify", host=host.get_name(), **self.task_of(handler))

    def v2_playbook_on_include(self, included_file):
        what = self.task_of(included_file._task)
        name = os.path.basename(str(included_file._filename))
        for host in sorted(h.get_name() for h in included_file._hosts):
            self.write("include", host=host, file=name, args=plain(included_file._args), vars=plain(included_file._vars), **what)

    def v2_playbook_on_vars_prompt(self, varname, private=True, *args, **kwargs):
        self.write("vars_prompt", name=str(varname))

    def v2_runner_on_start(self, host, task):
        self.write("start", host=host.get_name(), **self.task_of(task))

    def v2_runner_on_ok(self, result):
        self.result("ok", result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self.result("failed", result, ignore_errors=bool(ignore_errors))

    def v2_runner_on_skipped(self, result):
        self.result("skipped", result)

    def v2_runner_on_unreachable(self, result):
        self.result("unreachable", result)

    def v2_runner_retry(self, result):
        self.result("retry", result)

    def v2_runner_item_on_ok(self, result):
        self.result("item_ok", result)

    def v2_runner_item_on_failed(self, result):
        self.result("item_failed", result)

    def v2_runner_item_on_skipped(self, result):
        self.result("item_skipped", result)

    def v2_runner_on_async_poll(self, result):
        self.result("async_poll", result)

    def v2_runner_on_async_ok(self, result):
        self.result("async_ok", result)

    def v2_runner_on_async_failed(self, result):
        self.result("async_failed", result)

    def v2_on_file_diff(self, result):
        self.result("file_diff", result)

    def v2_playbook_on_stats(self, stats):
        summary = {host: plain(stats.summarize(host)) for host in sorted(stats.processed)}
        self.write("stats", summary=summary, custom=plain(stats.custom))
        if self.play is None:
            return
        manager = self.play.get_variable_manager()
        for host in sorted(self.names | set(stats.processed)):
            for cache in ("_vars_cache", "_nonpersistent_fact_cache", "_fact_cache"):
                held = self.held(getattr(manager, cache, None), host)
                if held:
                    self.write("state", host=host, cache=cache, value=plain(held), tags=tags_of(held))

    @staticmethod
    def held(cache, host):
        try:
            return dict(cache.get(host) or {})
        except (KeyError, AttributeError, TypeError):
            return {}
