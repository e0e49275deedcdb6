# Copyright (c) churten contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The door to churten.history."""

from __future__ import annotations

DOCUMENTATION = """
    name: history
    type: aggregate
    short_description: Keeps a history of plays, without slowing them.
    version_added: "0.2.0"
    author: churten contributors
    description:
        - Remembers runs, plays, tasks, hosts and results with their times, for C(churten history list), C(show), C(diff), C(search), C(serve), C(export) and C(push).
        - The play only appends lines to a private file. When it has ended, a process of its own brings them into an SQLite database.
        - What tasks returned is kept on request only. Results of C(no_log), passwords and what came out of a vault are never kept.
    requirements:
        - enabling it with C(callbacks_enabled = churten.core.history)
    options:
      directory:
        description:
          - Where the history lies. It is created with mode 0700; a directory that others may enter is refused with a warning.
        type: str
        default: ~/.ansible/churten/history
        ini: [{section: churten, key: history_dir}]
        env: [{name: CHURTEN_HISTORY_DIR}]
      content:
        description: Keep what tasks returned too, as callbacks see it, without secrets.
        type: bool
        default: false
        ini: [{section: churten, key: history_content}]
        env: [{name: CHURTEN_HISTORY_CONTENT}]
      content_max:
        description: A result with more bytes than this is kept without its content.
        type: int
        default: 65536
        ini: [{section: churten, key: history_content_max}]
        env: [{name: CHURTEN_HISTORY_CONTENT_MAX}]
      facts:
        description: Keep gathered facts too, except C(ansible_env).
        type: bool
        default: false
        ini: [{section: churten, key: history_facts}]
        env: [{name: CHURTEN_HISTORY_FACTS}]
      files:
        description: Keep the text of playbooks and task files, as they are on the disk.
        type: bool
        default: false
        ini: [{section: churten, key: history_files}]
        env: [{name: CHURTEN_HISTORY_FILES}]
      labels:
        description: Words to find the run by.
        type: list
        elements: str
        default: []
        ini: [{section: churten, key: history_labels}]
        env: [{name: CHURTEN_HISTORY_LABELS}]
"""

from ansible import constants as C
from ansible import context
from ansible.errors import AnsibleError
from ansible.plugins.callback import CallbackBase
from ansible.release import __version__ as core_version


class CallbackModule(CallbackBase):
    """Translates events for churten.history.record.HistoryRecorder."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "churten.core.history"
    CALLBACK_NEEDS_ENABLED = True

    def set_options(self, task_keys=None, var_options=None, direct=None):
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        try:
            from churten.history import place, record
        except ImportError as ex:
            raise AnsibleError(
                f"churten.core.history needs the Python package churten in this interpreter (pip install churten): {ex}"
            ) from ex
        wishes = record.Wishes(
            *(bool(self.get_option(name)) for name in ("content", "facts", "files")),
            labels=tuple(str(label) for label in self.get_option("labels") or ()),
            content_max=self.get_option("content_max"),
        )
        self._recorder = record.HistoryRecorder(place.Place(self.get_option("directory")), self._display.warning, wishes)

    def set_play_context(self, play_context):
        self._recorder.passwords(play_context)

    def v2_playbook_on_start(self, playbook):
        self._recorder.begin(playbook, core_version, C.DEFAULT_FORKS, context.CLIARGS)

    def v2_playbook_on_play_start(self, play):
        self._recorder.play(play)

    def v2_runner_on_start(self, host, task):
        self._recorder.start(host, task)

    def v2_playbook_on_task_start(self, task, is_conditional):
        self._recorder.task()

    v2_playbook_on_handler_task_start = lambda self, task: self._recorder.task()  # noqa: E731

    def v2_runner_retry(self, result):
        self._recorder.retry(result)

    def v2_runner_item_on_ok(self, result):
        self._recorder.item(result, "ok")

    v2_runner_item_on_failed = v2_runner_item_on_skipped = v2_runner_item_on_ok

    def v2_runner_on_ok(self, result):
        self._recorder.done(result, "changed" if result.is_changed() else "ok")

    def v2_runner_on_skipped(self, result):
        self._recorder.done(result, "skipped")

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._recorder.done(result, "ignored" if ignore_errors else "failed")

    def v2_runner_on_unreachable(self, result):
        self._recorder.done(result, "unreachable")

    def v2_playbook_on_stats(self, stats):
        self._recorder.end(stats)
