# Copyright (c) churten contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The door to churten.timings."""

from __future__ import annotations

DOCUMENTATION = """
    name: timings
    type: aggregate
    short_description: Where the time of a play goes, right under every strategy.
    version_added: "0.1.0"
    author: churten contributors
    description:
        - Prints a recap like P(ansible.posix.profile_tasks#callback), but measured per host, so that it is right under V(free) and V(host_pinned) too.
        - For each task it shows the number of results, the sum over hosts, the span from first start to last end, and the slowest host;
          on screens of 100 columns or more also the median and the 95th percentile.
        - Writes a log with one JSON line per host and task, if told where. The log holds names and times, never arguments or output.
    requirements:
        - enabling it with C(callbacks_enabled = churten.core.timings)
    options:
      sort_order:
        description: Order of the rows, by O(sort_by). V(none) is the order in which they ended first.
        choices: [descending, ascending, none]
        default: descending
        ini: [{section: churten, key: timings_sort_order}]
        env: [{name: CHURTEN_TIMINGS_SORT_ORDER}]
      task_output_limit:
        description: How many rows a recap shows, or V(all).
        default: 20
        ini: [{section: churten, key: timings_task_output_limit}]
        env: [{name: CHURTEN_TIMINGS_TASK_OUTPUT_LIMIT}]
      sort_by:
        description: Figure the rows of all recaps are sorted by.
        choices: [sum, span, max, p50, p95, count, name]
        default: sum
        ini: [{section: churten, key: timings_sort_by}]
        env: [{name: CHURTEN_TIMINGS_SORT_BY}]
      min_seconds:
        description: Rows with a smaller sum are left out of the recaps.
        type: float
        default: 0
        ini: [{section: churten, key: timings_min_seconds}]
        env: [{name: CHURTEN_TIMINGS_MIN_SECONDS}]
      show_recap:
        description: Whether to print recaps. Switch it off when the standard output must stay machine-readable.
        type: bool
        default: true
        ini: [{section: churten, key: timings_recap}]
        env: [{name: CHURTEN_TIMINGS_RECAP}]
      show_roles:
        description: Whether to print a recap of roles, too.
        type: bool
        default: false
        ini: [{section: churten, key: timings_roles}]
        env: [{name: CHURTEN_TIMINGS_ROLES}]
      show_hosts:
        description:
          - Whether to print a recap of hosts, too. For each it shows how long it was busy and how long nothing ran for it.
          - On screens of 100 columns or more, it also shows waiting, connecting, remote work and the controller's share.
        type: bool
        default: false
        ini: [{section: churten, key: timings_hosts}]
        env: [{name: CHURTEN_TIMINGS_HOSTS}]
      log_path:
        description:
          - File to append JSON lines to, for example V(/tmp/ansible-timings.log). Unset is no log.
          - It is created with mode 0600. A link, a special file, a file of somebody else or one with several names is refused with a warning.
        type: str
        ini: [{section: churten, key: timings_log}]
        env: [{name: CHURTEN_TIMINGS_LOG}]
      log_max_size:
        description:
          - A run that finds O(log_path) or O(worker_log) at this size or larger puts it aside as C(LOG.1) first, C(LOG.1) as C(LOG.2), and so on.
          - A number of bytes, or with C(K), C(M) or C(G). V(0) is no limit. The lines of one run are never in two files.
        type: str
        default: "0"
        ini: [{section: churten, key: timings_log_max_size}]
        env: [{name: CHURTEN_TIMINGS_LOG_MAX_SIZE}]
      log_keep:
        description: How many old logs are kept, at least one.
        type: int
        default: 5
        ini: [{section: churten, key: timings_log_keep}]
        env: [{name: CHURTEN_TIMINGS_LOG_KEEP}]
      log_items:
        description:
          - How the log names the items of loops. V(number) counts them from 0; V(label) also writes what the screen shows of them.
          - Labels are taken from the play's data. Items of tasks with C(no_log) never have one.
        choices: [number, label]
        default: number
        ini: [{section: churten, key: timings_log_items}]
        env: [{name: CHURTEN_TIMINGS_LOG_ITEMS}]
      worker_log:
        description: File to append the worker log to (which worker runs what, how many are active), with the same care. Unset is no file.
        type: str
        ini: [{section: churten, key: worker_log}]
        env: [{name: CHURTEN_WORKER_LOG}]
"""

from ansible import constants as C
from ansible.errors import AnsibleError
from ansible.plugins.callback import CallbackBase
from ansible.release import __version__ as core_version

try:
    from churten.compat.callback import define_options
    from churten.timings import options
except ImportError:  # set_options says so
    options = None
else:
    define_options(__name__, options.definitions)


class CallbackModule(CallbackBase):
    """Translates events for churten.timings.record.Recorder."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "churten.core.timings"
    CALLBACK_NEEDS_ENABLED = True
    # These look at nothing inside a result: churten's strategies need not copy it for them.
    UNCOPIED = ("v2_runner_on_ok", "v2_runner_on_skipped", "v2_runner_on_failed", "v2_runner_on_unreachable")
    # What these tell is known where churten's strategies run.
    UNNEEDED = ("v2_playbook_on_task_start", "v2_playbook_on_handler_task_start", "v2_runner_on_start")

    def set_options(self, task_keys=None, var_options=None, direct=None):
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        if options is None:
            raise AnsibleError("churten.core.timings needs the Python package churten in this interpreter (pip install churten)")
        self._recorder = options.recorder(self)
        self._show = options.show

    def v2_playbook_on_start(self, playbook):
        self._recorder.playbook(playbook, core_version, C.DEFAULT_FORKS)

    def v2_playbook_on_play_start(self, play):
        self._recorder.play(play)

    def v2_runner_on_start(self, host, task):
        self._recorder.start(host, task)

    def v2_playbook_on_task_start(self, task, is_conditional):
        self._recorder.task()

    def v2_playbook_on_handler_task_start(self, task):
        self._recorder.task()

    def v2_runner_retry(self, result):
        self._recorder.retry(result)

    def v2_runner_item_on_ok(self, result):
        self._recorder.item(result, "changed" if result.is_changed() else "ok")

    def v2_runner_item_on_failed(self, result):
        self._recorder.item(result, "failed")

    def v2_runner_item_on_skipped(self, result):
        self._recorder.item(result, "skipped")

    def v2_runner_on_ok(self, result):
        self._recorder.done(result, "changed" if result.is_changed() else "ok")

    def v2_runner_on_skipped(self, result):
        self._recorder.done(result, "skipped")

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._recorder.done(result, "ignored" if ignore_errors else "failed")

    def v2_runner_on_unreachable(self, result):
        self._recorder.done(result, "unreachable")

    def v2_playbook_on_stats(self, stats):
        self._recorder.finish()
        self._show(self, self._recorder)
