# Copyright (c) churten contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The door to churten.live."""

from __future__ import annotations

DOCUMENTATION = """
    name: live
    type: stdout
    short_description: The default output, with a live view below it of what is running.
    version_added: "0.1.0"
    author: churten contributors
    description:
        - Shows what P(ansible.builtin.default#callback) shows, byte for byte.
        - On a terminal, lines below the output tell how many workers are active, how many tasks are done, how many per second, and which hosts have
          been at their task longest. They go when the recap comes.
        - There is no live view when the output is no terminal, with C(-v), in CI (environment variable E(CI)), and while somebody is asked something.
        - It works under every strategy. Under churten's strategies the number of workers is that of O(churten.core.free#strategy:max_parallel_workers).
    requirements:
        - setting it with C(stdout_callback = churten.core.live)
        - the Python package rich (C(pip install 'churten[live]')); without it there is one warning, and the default output
    extends_documentation_fragment:
      - default_callback
      - result_format_callback
    options:
      live_hosts:
        description: How many hosts are named. V(0) is the first line alone.
        type: int
        default: 3
        ini: [{section: churten, key: live_hosts}]
        env: [{name: CHURTEN_LIVE_HOSTS}]
"""

from ansible.errors import AnsibleError
from ansible.plugins.callback.default import CallbackModule as Default


class CallbackModule(Default):
    """The default output; tells churten.live.session what happens."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "churten.core.live"

    _live = None

    def set_options(self, task_keys=None, var_options=None, direct=None):
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        try:
            from churten.live import session
        except ImportError as ex:
            raise AnsibleError(f"churten.core.live needs the Python package churten in this interpreter (pip install churten): {ex}") from ex
        self._live = session.begin(self._display, self.get_option("live_hosts"))

    def v2_playbook_on_play_start(self, play):
        super().v2_playbook_on_play_start(play)
        if self._live:
            self._live.play(play)

    def v2_playbook_on_vars_prompt(self, *args, **kwargs):
        if self._live:
            self._live.finish()
        super().v2_playbook_on_vars_prompt(*args, **kwargs)

    def v2_runner_on_start(self, host, task):
        super().v2_runner_on_start(host, task)
        if self._live:
            self._live.start(host, task)

    def v2_runner_on_ok(self, result):
        self._ended(result)
        super().v2_runner_on_ok(result)

    def v2_runner_on_skipped(self, result):
        self._ended(result)
        super().v2_runner_on_skipped(result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._ended(result, not ignore_errors)
        super().v2_runner_on_failed(result, ignore_errors)

    def v2_runner_on_unreachable(self, result):
        self._ended(result, True)
        super().v2_runner_on_unreachable(result)

    def v2_playbook_on_stats(self, stats):
        if self._live:
            self._live.finish()
        super().v2_playbook_on_stats(stats)

    def _ended(self, result, lost=False):
        if self._live:
            self._live.end(result, lost)
