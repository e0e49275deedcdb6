"""The options of the callback churten.core.timings, made into what they mean."""

from __future__ import annotations

import typing as t

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.module_utils.common.text.formatters import human_to_bytes

from . import workers
from .log import Rotation
from .record import Recorder

if t.TYPE_CHECKING:
    from .recap import Line

# Core reads a plugin's documentation for its options, which takes a short run longer than all else that the callback does. So they stand here once more, as
# core takes them from there: name, the environment's variable, the key in section churten, and the rest.
_OPTIONS: tuple[tuple[str, str, str, dict[str, object]], ...] = (
    ("sort_order", "TIMINGS_SORT_ORDER", "timings_sort_order", {"choices": ["descending", "ascending", "none"], "default": "descending"}),
    ("task_output_limit", "TIMINGS_TASK_OUTPUT_LIMIT", "timings_task_output_limit", {"default": 20}),
    ("sort_by", "TIMINGS_SORT_BY", "timings_sort_by", {"choices": ["sum", "span", "max", "p50", "p95", "count", "name"], "default": "sum"}),
    ("min_seconds", "TIMINGS_MIN_SECONDS", "timings_min_seconds", {"type": "float", "default": 0}),
    ("show_recap", "TIMINGS_RECAP", "timings_recap", {"type": "bool", "default": True}),
    ("show_roles", "TIMINGS_ROLES", "timings_roles", {"type": "bool", "default": False}),
    ("show_hosts", "TIMINGS_HOSTS", "timings_hosts", {"type": "bool", "default": False}),
    ("log_path", "TIMINGS_LOG", "timings_log", {"type": "str"}),
    ("log_max_size", "TIMINGS_LOG_MAX_SIZE", "timings_log_max_size", {"type": "str", "default": "0"}),
    ("log_keep", "TIMINGS_LOG_KEEP", "timings_log_keep", {"type": "int", "default": 5}),
    ("log_items", "TIMINGS_LOG_ITEMS", "timings_log_items", {"choices": ["number", "label"], "default": "number"}),
    ("worker_log", "WORKER_LOG", "worker_log", {"type": "str"}),
)

# The colour of a row is that of the worst result in it, as in core's own recap.
_COLORS = {
    "ok": "COLOR_OK",
    "changed": "COLOR_CHANGED",
    "skipped": "COLOR_SKIP",
    "ignored": "COLOR_WARN",
    "failed": "COLOR_ERROR",
    "unreachable": "COLOR_UNREACHABLE",
}


def definitions() -> dict[str, dict[str, object]]:
    """The options as core keeps them."""
    return {
        name: {"ini": [{"section": "churten", "key": key}], "env": [{"name": f"CHURTEN_{variable}"}]} | more for name, variable, key, more in _OPTIONS
    }


def recorder(plugin: t.Any) -> Recorder:
    """The recorder of a run, as the callback plugin's options say. AnsibleError for a value that means nothing."""
    _limit(plugin)
    rotation = Rotation(_bytes(plugin), max(1, plugin.get_option("log_keep")))
    workers.configure(plugin.get_option("worker_log"), rotation)
    labels = plugin.get_option("log_items") == "label"
    return Recorder(plugin.get_option("log_path"), plugin._display.warning, labels, rotation)


def _limit(plugin: t.Any) -> int | None:
    limit = str(plugin.get_option("task_output_limit"))
    if limit != "all" and not limit.isdigit():
        raise AnsibleError(f"churten.core.timings: task_output_limit must be a number or 'all', not {limit!r}")
    return None if limit == "all" else int(limit)


def show(plugin: t.Any, recorded: Recorder) -> None:
    """Print the recaps."""
    model = recorded.model
    if not plugin.get_option("show_recap") or not model.rows:
        return
    from . import recap  # not needed before

    chosen = recap.Look(
        sort_order=str(plugin.get_option("sort_order") or "none"),
        sort_by=plugin.get_option("sort_by"),
        limit=_limit(plugin),
        min_seconds=plugin.get_option("min_seconds"),
        paths=plugin._display.verbosity >= 2,
        columns=plugin._display.columns,
    )
    _print(plugin, "TASKS RECAP", recap.task_lines(model, chosen))
    if plugin.get_option("show_roles"):
        _print(plugin, "ROLES RECAP", recap.role_lines(model, chosen))
    if plugin.get_option("show_hosts"):
        _print(plugin, "HOSTS RECAP", recap.host_lines(model, chosen))


def _print(plugin: t.Any, title: str, lines: t.Iterable[Line]) -> None:
    plugin._display.banner(title)
    for line in lines:
        plugin._display.display(line.text, color=getattr(C, _COLORS[line.status]) if line.status else None)


def _bytes(plugin: t.Any) -> int:
    size = str(plugin.get_option("log_max_size") or "0")
    try:
        return int(human_to_bytes(size))
    except ValueError:
        raise AnsibleError(f"churten.core.timings: log_max_size must be a size like 100M, or 0 for no limit, not {size!r}") from None
