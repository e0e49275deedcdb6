"""What the history callback does at each event: the timings of each result, as the timing log has them, and what else the history wants to know."""

from __future__ import annotations

import getpass
import json
import os
import platform
import secrets
import socket
import subprocess
import sys
import time
import typing as t

import churten

from ..compat import callback as compat
from ..compat import secrets as compat_secrets
from ..timings.later import AtOnce
from ..timings.model import Model
from ..timings.record import Lanes, Recorder
from .hide import Hider, is_secret_name
from .place import Place
from .spool import Spool, SpoolLog

_FACTS = ("setup", "gather_facts")
_ARGUMENTS = "check diff limit subset tags skip_tags inventory forks start_at_task become become_user remote_user connection".split()
_FILE_MAX = 1 << 20


class Wishes(t.NamedTuple):
    """What is recorded beside names, statuses and times."""

    content: bool = False
    facts: bool = False
    files: bool = False
    labels: tuple[str, ...] = ()
    content_max: int = 1 << 16  # bytes


class _NoModel(Model):
    """No recap is printed here."""

    def count(self, *result: t.Any) -> None:
        """Nothing."""


class _QuietLanes(Lanes):
    """The worker log is the timings callback's."""

    def play(self, limit: int) -> None:
        """A play begins."""
        self._free, self._made = [], 0


class HistoryRecorder(Recorder):
    """Spools one run for each playbook of the command. Its methods are called by one thread at a time, and never raise for reasons of the disk."""

    def __init__(self, place: Place, warn: t.Callable[[str], object], wishes: Wishes) -> None:
        super().__init__(None, warn)
        self.model = _NoModel()
        self._lanes = _QuietLanes()
        self._later = AtOnce(self._take_in)  # `more` belongs to one result
        self._place = place
        self._warn = warn
        self._wishes = wishes
        self._hider = Hider(compat_secrets.encrypted)
        self._spool: Spool | None = None
        self._spool_log: SpoolLog | None = None
        self._told: set[str] = set()  # uuids of tasks
        self._files: set[str] = set()
        self._playbook = ""
        self._importers: list[subprocess.Popen[bytes]] = []

    def begin(self, playbook: t.Any, core_version: str, forks: int, arguments: t.Mapping[str, t.Any]) -> None:
        """A playbook begins."""
        self._zero = time.monotonic()
        self._forks = max(1, forks)
        self._results = 0
        self._told.clear()
        self._files.clear()
        run = secrets.token_hex(8)
        self._spool = Spool(self._place, run, self._warn)
        self._log = self._spool_log = SpoolLog(self._spool, run)
        name = compat.playbook_name(playbook)
        path = os.path.abspath(name) if os.path.exists(name) else name
        self._spool_log.event(
            "run",
            {
                "started": _utc(time.time()),
                "playbook": os.path.basename(path),
                "path": path,
                "ansible": core_version,
                "churten": churten.__version__,
                "python": platform.python_version(),
                "controller": socket.gethostname(),
                "user": _user(),
                "forks": forks,
                "arguments": {k: self._hider.plain(arguments[k]) for k in _ARGUMENTS if arguments.get(k)},
                "labels": list(self._wishes.labels),
            },
        )
        self._playbook = path

    def passwords(self, play_context: t.Any) -> None:
        """The next play's connections use these."""
        self._hider.learn(compat_secrets.of_play_context(play_context))

    def play(self, play: t.Any) -> None:
        """A play, or the next batch of one, begins."""
        super().play(play)
        if self._wishes.content or self._wishes.facts or self._wishes.files:
            try:
                self._hider.learn(compat_secrets.of_play(play, is_secret_name))
            except Exception as ex:  # a variable that cannot be worked out: the play itself will say so
                self._warn(f"the history keeps no contents in this play, because its secrets are not known: {ex}")
                self._wishes = self._wishes._replace(content=False, facts=False, files=False)
        self._file(self._playbook)

    def done(self, result: t.Any, status: str) -> None:
        """The result of a host's task was handled."""
        if self._spool_log is None:
            return
        task = compat.task(result)
        uuid = compat.uuid(task)
        more = self._spool_log.more = {}
        if uuid not in self._told:
            self._told.add(uuid)
            more["tags"] = [str(tag) for tag in task.tags]
            more["handler"] = compat.is_handler(task)
            self._file(str(task.get_path() or "").rpartition(":")[0])
        if self._wishes.content or self._wishes.facts:
            self._contents(result, more)
        super().done(result, status)

    def _contents(self, result: t.Any, more: dict[str, object]) -> None:
        assert self._spool_log is not None
        found = compat.content(result)
        facts = found.get("ansible_facts")
        gathered = compat.task(result).action.rpartition(".")[2] in _FACTS and isinstance(facts, dict)
        if gathered and isinstance(facts, dict):
            found = {name: value for name, value in found.items() if name != "ansible_facts"}
            if self._wishes.facts:
                kept = {name: value for name, value in facts.items() if name != "ansible_env"}
                self._spool_log.event("facts", {"host": compat.host_name(result), "facts": self._hider.plain(kept)})
        if self._wishes.content:
            content = self._hider.plain(found)
            size = len(json.dumps(content))
            more["content"] = content if size <= self._wishes.content_max else {"churten_left_out": f"{size} bytes"}

    def _file(self, path: str) -> None:
        """Remember a file of the playbook as it is on the disk: an encrypted one stays encrypted."""
        if not self._wishes.files or not path or path in self._files or self._spool_log is None:
            return
        self._files.add(path)
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                text = file.read(_FILE_MAX + 1)
        except OSError:
            return
        if len(text) <= _FILE_MAX:
            self._spool_log.event("file", {"path": path, "content": self._hider.plain(text)})

    def end(self, stats: t.Any) -> None:
        """The playbook ended. Its lines are brought into the database by a process of their own, which nobody waits for."""
        if self._spool_log is None or self._spool is None:
            return
        counts = {host: dict(stats.summarize(host)) for host in stats.processed}
        self._spool_log.event("stats", {"hosts": counts})
        self.finish()
        if self._spool.written:
            self._import()
        self._log = self._spool_log = self._spool = None

    def _import(self) -> None:
        words = [sys.executable, "-c", "import sys; from churten.history.ingest import main; sys.exit(main(sys.argv[1]))"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ANSIBLE_")} | {"PYTHONSAFEPATH": "1"}
        try:
            self._importers.append(
                subprocess.Popen(
                    [*words, self._place.directory],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env=environment,
                    start_new_session=True,
                )
            )
        except OSError:
            pass  # the next `churten history` does it


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _utc(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when)) + f".{int(when % 1 * 1000):03}Z"
