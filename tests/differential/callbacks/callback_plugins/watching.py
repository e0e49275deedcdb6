import os

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    """Writes names and numbers that a callback may build on: of plays, tasks, connections, its process and its thread."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "watching"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.out = open(os.path.join("out", "watching"), "a")
        self.pid = os.getpid()
        self.play = None

    def say(self, event, *words):
        self.out.write(" ".join([event, str(os.getpid() == self.pid), os.path.basename(os.getcwd()), *map(str, words)]) + "\n")
        self.out.flush()

    def set_play_context(self, play_context):
        self.say("context", play_context.connection, play_context.remote_user, play_context.become)

    def v2_playbook_on_play_start(self, play):
        self.play = play
        self.say("play", play.get_name(), play.connection, play.remote_user, play.hosts, sorted(play.get_vars()))

    def v2_playbook_on_task_start(self, task, is_conditional):
        self.task("task", task)

    def v2_playbook_on_handler_task_start(self, task):
        self.task("handler", task)

    def v2_runner_on_start(self, host, task):
        self.task("start", task, host.name, sorted(host.vars))

    def task(self, event, task, *words):
        args = dict(task.args.items())
        self.say(event, self.play.strategy, task.action, task.resolved_action, task.get_name(), task.connection, task._role, sorted(args.items(), key=str), *words)

    def result(self, event, result, *words):
        task, fields = result._task, result._task_fields
        self.task(event, task, result._host.name, *words)
        self.say("  fields", *[f"{k}={fields.get(k)}" for k in ("connection", "action", "delegate_to", "args", "loop", "ignore_errors", "name", "retries", "vars")])
        self.say("  keys", sorted(result._result), result._result.get("ansible_connection"), result._result.get("_ansible_delegated_vars"), sorted(result.__dict__))

    def v2_runner_on_ok(self, result):
        self.result("ok", result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self.result("failed", result, ignore_errors)

    def v2_runner_on_skipped(self, result):
        self.result("skipped", result)

    def v2_runner_on_unreachable(self, result):
        self.result("unreachable", result)

    def v2_runner_item_on_ok(self, result):
        self.result("item", result)

    def v2_runner_item_on_failed(self, result):
        self.result("item failed", result)

    def v2_runner_retry(self, result):
        self.result("retry", result)

    def v2_playbook_on_stats(self, stats):
        self.say("stats", sorted(stats.processed), stats.custom)
