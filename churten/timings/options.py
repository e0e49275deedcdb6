"""The options of the callback churten.core.timings, made into what they mean."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleError

from . import recap, workers
from .record import Recorder


def recorder(plugin: t.Any) -> Recorder:
    """The recorder of a run, as the callback plugin's options say. AnsibleError for a value that means nothing."""
    look(plugin)
    workers.configure(plugin.get_option("worker_log"))
    return Recorder(plugin.get_option("log_path"), plugin._display.warning, labels=plugin.get_option("log_items") == "label")


def look(plugin: t.Any) -> recap.Look:
    """What the recap shows."""
    limit = str(plugin.get_option("task_output_limit"))
    if limit != "all" and not limit.isdigit():
        raise AnsibleError(f"churten.core.timings: task_output_limit must be a number or 'all', not {limit!r}")
    return recap.Look(
        sort_order=str(plugin.get_option("sort_order") or "none"),
        limit=None if limit == "all" else int(limit),
        min_seconds=plugin.get_option("min_seconds"),
        paths=plugin._display.verbosity >= 2,
        columns=plugin._display.columns,
    )


def show(plugin: t.Any, recorded: Recorder) -> None:
    """Print the recap."""
    if plugin.get_option("show_recap") and recorded.model.rows:
        plugin._display.banner("TASKS RECAP")
        for line in recap.lines(recorded.model, look(plugin)):
            plugin._display.display(line)
