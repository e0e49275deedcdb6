"""The executor on real plays over local connections: what a differential play cannot see (engines, waits, signals, dead workers)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"


class Run:
    """One ansible-playbook in its own directory, with its own pool."""

    def __init__(self, tmp_path: Path) -> None:
        self.dir = tmp_path
        core = tmp_path / "collections/ansible_collections/churten/core"
        core.mkdir(parents=True)
        (core / "plugins").symlink_to(ROOT / "plugins")
        self.pool = tmp_path / "pool"
        self.pool.mkdir(mode=0o700)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "CHURTEN_"))},
            "PYTHONPATH": str(ROOT),
            "ANSIBLE_COLLECTIONS_PATH": str(tmp_path / "collections"),
            "ANSIBLE_DEPRECATION_WARNINGS": "0",
            "ANSIBLE_HOME": str(tmp_path / "home"),
            "ANSIBLE_STRATEGY": "churten.core.free",
            "ANSIBLE_FORKS": "10",
            "ANSIBLE_NOCOLOR": "1",
            "CHURTEN_POOL_DIR": str(self.pool),
        }

    def argv(self, play: str, hosts: int, *extra: str) -> list[str]:
        (self.dir / "play.yml").write_text(textwrap.dedent(play))
        names = "\n".join(f"h{i}" for i in range(1, hosts + 1))
        (self.dir / "inventory").write_text(
            f"{names}\n[all:vars]\nansible_connection=local\nansible_python_interpreter={sys.executable}\n"
        )
        return [str(PLAYBOOK), "-i", str(self.dir / "inventory"), str(self.dir / "play.yml"), *extra]

    def __call__(self, play: str, *extra: str, hosts: int = 1, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(play, hosts, *extra),
            env={**self.env, **env},
            cwd=self.dir,
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def run(tmp_path):
    runner = Run(tmp_path)
    yield runner
    subprocess.run(
        [sys.executable, "-c", "from churten.transport.pool import Pool, STOP; Pool.get().control(STOP)"],
        env=runner.env, capture_output=True, timeout=30,
    )  # fmt: skip


def test_core_actions_are_fibers_and_third_party_actions_are_forks(run):
    (run.dir / "action_plugins").mkdir()
    (run.dir / "action_plugins/mine.py").write_text(
        "import os\nfrom ansible.plugins.action import ActionBase\n"
        "class ActionModule(ActionBase):\n"
        "    def run(self, tmp=None, task_vars=None):\n"
        "        return {**super().run(tmp, task_vars), 'pid': os.getpid(), 'parent': os.getppid()}\n"
    )
    play = """
    - hosts: all
      gather_facts: false
      tasks:
        - debug: msg={{ lookup('pipe', 'echo $PPID') }}
        - mine:
          register: mine
        - debug: msg="mine={{ mine.pid }} parent={{ mine.parent }}"
    """
    done = run(play, "-vvvv")
    assert done.returncode == 0, done.stdout
    assert "engine: fiber (core action) for debug" in done.stdout
    assert "engine: fork (third-party action plugin" in done.stdout
    opted = run(play, "-vvvv", CHURTEN_FIBER_ACTIONS="mine")
    assert (
        opted.returncode == 0 and "engine: fiber (third-party action listed in fiber_actions) for mine" in opted.stdout
    )


def test_a_foreign_connection_is_a_fork(run):
    (run.dir / "connection_plugins").mkdir()
    (run.dir / "connection_plugins/odd.py").write_text(
        "from ansible.plugins.connection.local import Connection as Local\n"
        "DOCUMENTATION = 'name: odd\\nshort_description: x\\ndescription: x\\nauthor: x\\noptions: {}\\n'\n"
        "class Connection(Local):\n    transport = 'odd'\n"
    )
    play = """
    - hosts: all
      gather_facts: false
      tasks:
        - command: echo over-odd
          vars: {ansible_connection: odd}
    """
    done = run(play, "-vvvv")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "engine: fork (connection odd is not one of ours) for command" in done.stdout
    assert "over-odd" in done.stdout


def test_waits_of_many_hosts_overlap(run):
    """Ten hosts wait five seconds each in one process: retries' delay and async polls park the fiber."""
    play = """
    - hosts: all
      gather_facts: false
      tasks:
        - command: /bin/false
          register: r
          retries: 2
          delay: 2
          until: r.rc == 0
          ignore_errors: true
        - command: sleep 1
          async: 20
          poll: 1
    """
    begin = time.monotonic()
    done = run(play, hosts=10)
    took = time.monotonic() - begin
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("FAILED - RETRYING") == 20
    assert took < 10 * (2 * 2 + 1), "the waits of the hosts did not overlap"


def test_timeout_keyword_ends_the_task_and_its_process(run):
    mark = f"31{os.getpid()}"
    play = f"""
    - hosts: all
      gather_facts: false
      tasks:
        - command: sleep {mark}
          timeout: 2
    """
    done = run(play, hosts=3)
    assert done.returncode == 2, done.stdout
    said = "Timed out after 2 second(s).", "failed to execute in the expected time frame (2)"  # core 2.18 and earlier
    assert sum(map(done.stdout.count, said)) >= 3
    left = subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True, text=True).stdout
    assert left == ""


def test_sequential_and_limited_workers(run):
    play = """
    - hosts: all
      gather_facts: false
      tasks:
        - debug: msg=x
    """
    one = run(play, "-vv", hosts=3, CHURTEN_MAX_PARALLEL_WORKERS="0").stdout
    assert "Running in SEQUENTIAL mode" in one and "(active: 1/1)" in one and "Worker 1 " not in one
    two = run(play, "-vv", hosts=3, CHURTEN_MAX_PARALLEL_WORKERS="2").stdout
    assert "Running in PARALLEL mode with 2 workers" in two and "(active: 2/2)" in two and "Worker 2 " not in two
    bad = run(play, CHURTEN_MAX_PARALLEL_WORKERS="-3")
    assert (
        bad.returncode != 0
        and "max_parallel_workers must be 0 (sequential) or a positive number, not -3" in bad.stdout + bad.stderr
    )


def test_throttle_limits_how_many_run_at_once(run):
    play = f"""
    - hosts: all
      gather_facts: false
      tasks:
        - shell: |
            echo begin >> {run.dir}/marks; sleep 0.3; echo end >> {run.dir}/marks
          throttle: 2
    """
    done = run(play, hosts=8)
    assert done.returncode == 0, done.stdout
    running = most = 0
    for line in (run.dir / "marks").read_text().split():
        running += 1 if line == "begin" else -1
        most = max(most, running)
    assert most == 2


@pytest.mark.row("E4")
def test_a_dead_worker_costs_one_task(run):
    (run.dir / "action_plugins").mkdir()
    (run.dir / "action_plugins/die.py").write_text(
        "import os, signal\nfrom ansible.plugins.action import ActionBase\n"
        "class ActionModule(ActionBase):\n"
        "    def run(self, tmp=None, task_vars=None):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    play = """
    - hosts: all
      gather_facts: false
      tasks:
        - die:
          when: inventory_hostname == 'h1'
        - debug: msg="alive {{ inventory_hostname }}"
    """
    done = run(play, hosts=3)
    assert done.returncode == 2
    assert "The worker process of this task died with exit code -9" in done.stdout
    assert "alive h2" in done.stdout and "alive h3" in done.stdout and "alive h1" not in done.stdout


@pytest.mark.parametrize("number, expected", [(signal.SIGINT, 99), (signal.SIGTERM, -signal.SIGTERM)])
@pytest.mark.row("E1", "E2")
def test_signals_end_the_run_and_its_processes(run, number, expected):
    mark = f"32{os.getpid()}"
    play = f"""
    - hosts: all
      gather_facts: false
      tasks:
        - command: sleep {mark}
    """
    process = subprocess.Popen(
        run.argv(play, 4), env=run.env, cwd=run.dir, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(["pgrep", "-cf", f"^sleep {mark}"], capture_output=True, text=True).stdout.strip() != "4":
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        out, _ = process.communicate(timeout=20)
        assert process.returncode == expected, out
        assert "Traceback" not in out
        deadline = time.monotonic() + 20
        while subprocess.run(["pgrep", "-f", f"^sleep {mark}"], capture_output=True).returncode == 0:
            assert time.monotonic() < deadline, "the run left a process behind"
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()


def test_templates_cannot_change_the_controllers_variables(run):
    play = """
    - hosts: all
      gather_facts: false
      vars: {shared: [1], table: {a: [1]}}
      tasks:
        - debug: msg="{% set _ = shared.append(2) %}{% set _ = table.a.append(2) %}{{ shared | length }}"
        - debug: msg="{{ shared | length }} {{ table.a | length }}"
    """
    stock = run(play, hosts=2, ANSIBLE_STRATEGY="linear", ANSIBLE_FORKS="1")
    mine = run(play, hosts=2, ANSIBLE_STRATEGY="churten.core.linear", ANSIBLE_FORKS="1")
    assert mine.stdout == stock.stdout and mine.returncode == stock.returncode == 0


FALLBACK = """
- hosts: all
  gather_facts: false
  tasks:
    - debug: msg=works
"""


def runs_the_built_in_strategy(run, site, sentence):
    """A play runs by the built-in strategy, with one clear sentence and no trace, if `site` has changed core and churten before."""
    (run.dir / "sitecustomize.py").write_text("import ansible.release\nimport churten.compat as compat\n" + site)
    done = run(FALLBACK, PYTHONPATH=f"{run.dir}:{ROOT}")
    words = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, words
    assert "works" in done.stdout
    assert "The built-in strategy free runs this play" in words and sentence in words
    assert "Traceback" not in words


def test_a_core_that_is_too_old_gets_the_built_in_strategy(run):
    runs_the_built_in_strategy(run, "compat.LINES = {(99, 0): 'core_219'}\n", "strategies need ansible-core 99.0 or newer")


def test_a_newer_core_runs_through_the_newest_adapter_with_one_warning(run):
    (run.dir / "sitecustomize.py").write_text(
        "import ansible.release\nimport churten.compat as compat\n"
        "compat.LINES = {(2, 0): compat.LINES[max(k for k in compat.LINES if k <= compat.core_version())]}\n"
        "compat.core_version = lambda: (2, 99)\n"
    )
    done = run(FALLBACK + FALLBACK, "-vvvv", PYTHONPATH=f"{run.dir}:{ROOT}")
    words = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, words
    assert words.count("churten does not know ansible-core") == 1
    assert words.count("engine: fiber") == 2


# What a newer core could have changed without harm to itself.
OTHER_CORES = {
    "adapter of another line": "compat.LINES = {(2, 0): 'core_222' if compat.core_version() < (2, 21) else 'core_219'}\n",
    "arguments of TaskExecutor": """
from ansible.executor.task_executor import TaskExecutor
stock = TaskExecutor.__init__
def init(self, *args, news=None, **kwargs):
    stock(self, *args, **kwargs)
TaskExecutor.__init__ = init
""",
    "a method of actions": "from ansible.plugins.action import ActionBase\ndel ActionBase._configure_module\n",
}


@pytest.mark.parametrize("change", OTHER_CORES.values(), ids=OTHER_CORES)
def test_a_newer_core_without_its_private_names_gets_the_built_in_strategy(run, change):
    newer = "compat.LINES = {(2, 0): compat.LINES[max(k for k in compat.LINES if k <= compat.core_version())]}\n"
    site = newer + change + "ansible.release.__version__ = '2.99.0'\n"
    runs_the_built_in_strategy(run, site, "does not fit ansible-core 2.99.0")
