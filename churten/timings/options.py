"""The options of the callback churten.core.timings, made into what they mean."""

from __future__ import annotations

import typing as t

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.module_utils.common.text.formatters import human_to_bytes

from . import recap, workers
from .log import Rotation
from .record import Recorder

# The colour of a row is that of the worst result in it, as in core's own recap.
_COLORS = {
    "ok": "COLOR_OK",
    "changed": "COLOR_CHANGED",
    "skipped": "COLOR_SKIP",
    "ignored": "COLOR_WARN",
    "failed": "COLOR_ERROR",
    "unreachable": "COLOR_UNREACHABLE",
}


def recorder(plugin: t.Any) -> Recorder:
    """The recorder of a run, as the callback plugin's options say. AnsibleError for a value that means nothing."""
    look(plugin)
    rotation = Rotation(_bytes(plugin), max(1, plugin.get_option("log_keep")))
    workers.configure(plugin.get_option("worker_log"), rotation)
    labels = plugin.get_option("log_items") == "label"
    return Recorder(plugin.get_option("log_path"), plugin._display.warning, labels, rotation)


def look(plugin: t.Any) -> recap.Look:
    """What the recap shows."""
    limit = str(plugin.get_option("task_output_limit"))
    if limit != "all" and not limit.isdigit():
        raise AnsibleError(f"churten.core.timings: task_output_limit must be a number or 'all', not {limit!r}")
    return recap.Look(
        sort_order=str(plugin.get_option("sort_order") or "none"),
        sort_by=plugin.get_option("sort_by"),
        limit=None if limit == "all" else int(limit),
        min_seconds=plugin.get_option("min_seconds"),
        paths=plugin._display.verbosity >= 2,
        columns=plugin._display.columns,
    )


def show(plugin: t.Any, recorded: Recorder) -> None:
    """Print the recaps."""
    model = recorded.model
    if not plugin.get_option("show_recap") or not model.rows:
        return
    chosen = look(plugin)
    _print(plugin, "TASKS RECAP", recap.task_lines(model, chosen))
    if plugin.get_option("show_roles"):
        _print(plugin, "ROLES RECAP", recap.role_lines(model, chosen))
    if plugin.get_option("show_hosts"):
        _print(plugin, "HOSTS RECAP", recap.host_lines(model, chosen))


def _print(plugin: t.Any, title: str, lines: t.Iterable[recap.Line]) -> None:
    plugin._display.banner(title)
    for line in lines:
        plugin._display.display(line.text, color=getattr(C, _COLORS[line.status]) if line.status else None)


def _bytes(plugin: t.Any) -> int:
    size = str(plugin.get_option("log_max_size") or "0")
    try:
        return int(human_to_bytes(size))
    except ValueError:
        raise AnsibleError(f"churten.core.timings: log_max_size must be a size like 100M, or 0 for no limit, not {size!r}") from None
