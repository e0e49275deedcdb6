# SPDX-License-Identifier: GPL-3.0-or-later
"""What surrounds the controller: full disks, damaged caches, clocks, limits, odd names, missing homes, closed streams, missing parts."""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from runs import CHURTEN, ROOT, comparable
from talking import EXECUTABLE

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
PING = "- hosts: lab\n  gather_facts: false\n  tasks:\n    - ping:\n    - command: echo {{ inventory_hostname }}\n"
CACHED = """
- hosts: lab
  gather_facts: false
  tasks:
    - set_fact: {kept: "{{ value * 20000 }}", cacheable: true}
    - debug: {msg: "{{ kept | length }}"}
"""


def shim(folder, text):
    """A folder for PYTHONPATH whose sitecustomize runs the text in every Python of the run."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(text))
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


# --- disks and cache files ---


@contextlib.contextmanager
def small_disk(where, size="256k"):
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


@pytest.mark.row("E7")
@root
def test_a_full_disk_costs_the_logs_and_not_the_play(bench):
    """Cache, timing log, worker log and the pool's log on a disk that fills up: old facts stay byte for byte, one warning for each sink."""
    try:
        disk = small_disk(bench.top / "disk")
        where = disk.__enter__()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a tmpfs here")
    with contextlib.ExitStack() as stack:
        stack.push(disk)
        env = {
            "ANSIBLE_CACHE_PLUGIN": "churten.core.jsonfile",
            "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(where / "cache"),
            "ANSIBLE_CALLBACKS_ENABLED": "churten.core.timings",
            "CHURTEN_TIMINGS_LOG": str(where / "timings.jsonl"),
            "CHURTEN_WORKER_LOG": str(where / "workers.log"),
            "CHURTEN_POOL_LOG": str(where / "pool.log"),
        }
        first = bench.play(CACHED, env=env, value="a")
        assert first.rc == 0, first.text
        before = {path.name: path.read_bytes() for path in (where / "cache").iterdir()}
        assert len(before) == 2
        lines = (where / "timings.jsonl").read_bytes()
        with contextlib.suppress(OSError), open(where / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        run = bench.play(CACHED + PING, env=env, value="b")
        assert run.rc == 0, run.text
        assert {path.name: path.read_bytes() for path in (where / "cache").iterdir()} == before
        assert (where / "timings.jsonl").read_bytes().startswith(lines)
        said = " ".join(run.text.replace("\n", " ").split())
        assert (
            said.count("is not written") <= 2
            and 1 <= said.count("stays as it was") + said.count("was not written") <= 2
        ), said
        os.unlink(where / "filler")
        again = bench.play(CACHED, env=env, value="c")
        assert again.rc == 0 and "not written" not in again.text, again.text


@pytest.fixture
def bad_disk(bench):
    """bad_disk(error, one_in): the environment in which writing below the folder `disk` fails (disk.c)."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    library, where = bench.top / "disk.so", bench.top / "disk"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("disk.c"), "-ldl"], check=True)
    where.mkdir()

    def make(error, one_in):
        return {"LD_PRELOAD": str(library), "CH_DISK": str(where), "CH_DISK_ERRNO": str(error), "CH_DISK_ONE_IN": str(one_in)}

    return make


@pytest.mark.row("E7")
@pytest.mark.slow
@pytest.mark.parametrize("error, one_in", [(errno.EIO, 1), (errno.EDQUOT, 3), (errno.ENOSPC, 2)], ids=["EIO", "EDQUOT", "ENOSPC"])
def test_a_disk_that_fails(bench, bad_disk, error, one_in):
    """All that is written beside the play fails, always or now and then: the play is as without, every sink warns once at most, old files are whole."""
    where = bench.top / "disk"
    env = {
        "ANSIBLE_CACHE_PLUGIN": "churten.core.jsonfile",
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(where / "cache"),
        "ANSIBLE_CALLBACKS_ENABLED": "churten_results,churten.core.timings,churten.core.history",
        "CHURTEN_HISTORY_DIR": str(where / "history"),
        "CHURTEN_TIMINGS_LOG": str(where / "timings.jsonl"),
        "CHURTEN_WORKER_LOG": str(where / "workers.log"),
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
    }
    first = bench.play(CACHED, env=env, value="a")
    assert first.rc == 0, first.text
    before = {path.name: path.read_bytes() for path in (where / "cache").iterdir()}
    lines = (where / "timings.jsonl").read_bytes()
    run = bench.play(CACHED + PING, env=env | bad_disk(error, one_in), value="b")
    assert run.rc == 0 and "Traceback" not in run.text, run.text
    assert [line["status"] for line in run.results] == ["ok"] * 8, run.text
    after = {path.name: path.read_bytes() for path in (where / "cache").iterdir()}
    assert set(after) == set(before)
    for name, data in after.items():
        assert data == before[name] or (one_in > 1 and len(data) == len(before[name])), name
    assert (where / "timings.jsonl").read_bytes().startswith(lines)
    assert run.text.count("[WARNING]") <= 5, run.text
    again = bench.play(CACHED, env=env, value="c")
    assert again.rc == 0 and "[WARNING]" not in again.text, again.text
    history = [str(CHURTEN), "history", "list", "--json"]
    done = subprocess.run(history, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and len(json.loads(done.stdout)) >= 2, done.stdout + done.stderr


@pytest.mark.row("E8")
def test_a_cache_file_cut_anywhere_is_a_miss(bench):
    env = {"ANSIBLE_CACHE_PLUGIN": "churten.core.jsonfile", "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(bench.top / "cache")}
    first = bench.play(CACHED.replace("20000", "5"), env=env, value="a")
    assert first.rc == 0, first.text
    show = "- hosts: lab\n  gather_facts: false\n  tasks:\n    - debug: {msg: \"{{ kept | default('missed') }}\"}\n"
    rng = random.Random(1)
    for _ in range(3):
        for path in (bench.top / "cache").iterdir():
            data = path.read_bytes()
            path.write_bytes(data[: rng.randrange(len(data))] + rng.choice([b"", b"\0", b"}", os.urandom(20)]))
        run = bench.play(show, env=env)
        assert run.rc == 0, run.text
        assert [line["result"]["msg"] for line in run.results] == ["missed"] * 2, run.text
        assert bench.play(CACHED.replace("20000", "5"), env=env, value="a").rc == 0
    assert [line["result"]["msg"] for line in bench.play(show, env=env).results] == ["aaaaa"] * 2


# --- clocks ---


@pytest.mark.row("E10")
@pytest.mark.skipif(shutil.which("cc") is None or "CH_SANITIZE" in os.environ, reason="needs a C compiler, and nothing else preloaded")
@pytest.mark.slow
def test_a_day_on_and_a_day_back(bench):
    """The wall clock of ansible-playbook and of the pool jumps by a day with each question: no deadline and no kept session notices."""
    library = bench.top / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, Path(__file__).with_name("clock.c"), "-ldl"], check=True)
    env = {"LD_PRELOAD": str(library), "CHURTEN_CLOCK": "jump"}
    subprocess.run([EXECUTABLE, "--dir", bench.pool_dir], env={**os.environ, **env}, check=True, timeout=60)
    assert bench.status()["clients"] == 1
    more = "    - command: sleep 1.5\n    - command: sleep 30\n      timeout: 2\n      ignore_errors: true\n    - wait_for: {timeout: 1}\n"
    for _ in range(2):
        run = bench.play(PING + more, env=env)
        assert run.rc == 0, run.text
        assert sorted(line["status"] for line in run.results) == ["failed"] * 2 + ["ok"] * 8, run.text
    status = bench.status()
    assert status["sessions_opened"] == 2 and not status["failed"], status


@pytest.mark.row("E10")
def test_a_clock_that_jumps(bench):
    """time.time() of the controller is off by up to an hour, differently at each call: results and durations do not care."""
    log = bench.top / "timings.jsonl"
    env = shim(
        bench.top / "shim",
        """
        import random, time
        real, rng = time.time, random.Random(1)
        time.time = lambda: real() + rng.choice([-3600, 0, 3600])
        """,
    )
    env |= {
        "ANSIBLE_CALLBACKS_ENABLED": "churten_results,churten.core.timings",
        "CHURTEN_TIMINGS_LOG": str(log),
        "TZ": "Pacific/Apia",
    }
    run = bench.play(
        PING + "    - wait_for: {timeout: 1}\n    - command: sleep 1\n      async: 30\n      poll: 1\n", env=env
    )
    assert run.rc == 0, run.text
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    figures = [
        line[name]
        for line in lines
        for name in ("seconds", "queue", "connect", "remote", "controller")
        if line.get(name) is not None
    ]
    assert figures and all(0 <= figure < 120 for figure in figures), figures


# --- limits ---

MANY = """
- hosts: all
  gather_facts: false
  tasks:
    - ping:
    - command: echo {{ inventory_hostname }}
    - copy: {content: "{{ inventory_hostname }}", dest: "/tmp/churten-many-{{ mark }}-{{ inventory_hostname }}"}
    - file: {path: "/tmp/churten-many-{{ mark }}-{{ inventory_hostname }}", state: absent}
"""


def aliases(bench, count):
    """`count` names for the lab's hosts: as many sessions, because each has an alias for its key."""
    lines = []
    for number in range(count):
        host = bench.lab.hosts[number % 2]
        lines.append(
            f"many{number} ansible_host={host.address} ansible_port={host.port} ansible_user={bench.lab.account} "
            f"ansible_ssh_private_key_file={bench.lab.dir}/keys/user_ed25519 ansible_python_interpreter=/usr/bin/python3 "
            f'ansible_ssh_common_args="-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o SetEnv=MANY={number}"'
        )
    path = bench.top / f"many{count}"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.row("E11")
@pytest.mark.parametrize("limits", [(64, 64), (40, 4096)])
def test_few_descriptors_on_the_controller(bench, limits, monkeypatch):
    inventory = aliases(bench, 12)
    monkeypatch.setattr("runs.LIMITS", [(resource.RLIMIT_NOFILE, limits)])
    run = bench.play(MANY, inventory=inventory, mark=str(os.getpid()))
    assert run.rc == 0, run.text[-3000:]
    assert len(run.results) == 48 and {line["status"] for line in run.results} == {"ok"}
    assert "Traceback" not in run.text


FORK_FAILS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
static int left = -2;
pid_t fork(void)
{
    pid_t (*real)(void) = (pid_t (*)(void))dlsym(RTLD_NEXT, "fork");
    if (left == -2) { left = atoi(getenv("FORK_FAILS")); }
    if (left > 0) { left--; errno = EAGAIN; return -1; }
    return real();
}
"""
FORKS = """
- hosts: lab
  gather_facts: false
  tasks:
    - ping:
    - third:
      ignore_errors: true
    - command: echo after
"""
THIRD = {
    "action_plugins/third.py": "from ansible.plugins.action import ActionBase\nclass ActionModule(ActionBase):\n"
    "    def run(self, tmp=None, task_vars=None):\n        return {'msg': 'third'}\n"
}


@pytest.mark.row("E12")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("times", [1, 1000])
def test_fork_fails_on_the_controller(bench, times):
    """Nothing is killed, nothing hangs, and what follows runs: by fibers, which need no fork, and by workers once there is room."""
    source, library = bench.top / "fork.c", bench.top / "fork.so"
    source.write_text(FORK_FAILS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    bench.play(PING)
    env = {"LD_PRELOAD": str(library), "FORK_FAILS": str(times)}
    run = bench.play(FORKS, before=THIRD, env=env)
    assert run.rc == 0, run.text
    found = {(line["task"], line["status"]) for line in run.results}
    if times == 1:
        assert found == {("ping", "ok"), ("third", "ok"), ("command", "ok")}, run.text
    else:  # stock forgets such a task without a word
        assert found == {("ping", "ok"), ("third", "failed"), ("command", "ok")}, run.text
        assert "No worker process could be started" in run.text
    assert len(run.results) == 6
    assert bench.play(PING).rc == 0


@pytest.mark.row("E12")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_others_go_on_while_there_is_no_room_for_a_worker(bench):
    """What one host's task waits for, fibers of the others do not."""
    source, library = bench.top / "fork.c", bench.top / "fork.so"
    source.write_text(FORK_FAILS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    one, two = (host.name for host in bench.lab.hosts)
    text = f"""
- hosts: lab
  gather_facts: false
  tasks:
    - ping:
    - include_tasks: third.yml
      when: inventory_hostname == '{one}'
    - command: echo after
"""
    before = {**THIRD, "third.yml": "- third:\n  ignore_errors: true\n"}
    run = bench.play(text, before=before, env={"LD_PRELOAD": str(library), "FORK_FAILS": "1000"})
    assert run.rc == 0, run.text
    found = [(line["host"], line["task"]) for line in run.results]
    assert found.index((two, "command")) < found.index((one, "third")), found


@pytest.mark.row("E13")
@pytest.mark.slow
def test_many_hosts_have_bounded_sessions_and_all_end(bench):
    """CH_HOSTS=10000 names; the pool has descriptors for a few: the others go the stock way or wait, none is forgotten."""
    count = int(os.environ.get("CH_HOSTS", "60"))
    inventory = aliases(bench, count)
    bench.play(PING)
    pid = bench.status()["pid"]
    old = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (100, old[1]))
    run = bench.play(
        "- hosts: all\n  gather_facts: false\n  tasks:\n    - ping:\n    - ping:\n", "-f", "10", inventory=inventory
    )
    assert run.rc == 0, run.text[-3000:]
    assert len(run.results) == 2 * count
    with open(f"/proc/{pid}/status") as file:
        rss = int(next(line for line in file if line.startswith("VmHWM")).split()[1])
    assert rss < 40_000 + 400 * count


# --- names ---


@pytest.mark.row("E14")
def test_odd_host_names_run_nothing(bench):
    """Addresses that would be options, commands or paths: no host can be reached, as under stock, and nothing of them is executed or written elsewhere."""
    touch = f"touch {bench.top}/executed"
    odd = [
        f"-oProxyCommand={touch}", f"x;{touch}", f"$({touch})", f"`{touch}`", f"x -oProxyCommand='{touch}'", "%n", "%h%p", "a b", "h\u00e4llo", "..", "a/b",
        "../../x", "[::1", "x" * 300, "a\nb", "'", '"', "-", "\u202e", "user@",
    ]  # fmt: skip
    hosts = {f"odd{i}": {"ansible_host": name} for i, name in enumerate(odd)}
    hosts |= {
        f"user{i}": {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_user": name}
        for i, name in enumerate(odd[:6])
    }
    inventory = bench.top / "odd.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
    env = {"ANSIBLE_CACHE_PLUGIN": "churten.core.jsonfile", "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(bench.top / "cache")}
    text = "- hosts: all\n  gather_facts: false\n  tasks:\n    - ping:\n      ignore_unreachable: true\n      ignore_errors: true\n"
    text += "    - set_fact: {a: 1, cacheable: true}\n"
    found = []
    for strategy, name in (("linear", "stock"), ("churten.core.free", "ours")):
        run = bench.play(
            text, "-T", "3", "-f", "30", inventory=inventory, env={**env, "ANSIBLE_STRATEGY": strategy}, name=name
        )
        assert "Traceback" not in run.text
        found.append(sorted((line["host"], line["task"], line["status"]) for line in run.results))
    assert not (bench.top / "executed").exists()
    assert found[0] == found[1] and len(found[1]) == 2 * len(hosts)


@pytest.mark.row("E14")
def test_odd_inventory_names_stay_in_the_cache(bench):
    host = bench.lab.hosts[0]
    variables = {"ansible_host": host.address, "ansible_port": host.port, "ansible_user": bench.lab.account}
    variables |= {
        "ansible_ssh_private_key_file": f"{bench.lab.dir}/keys/user_ed25519",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    names = [
        "\u00fcml\u00e4ut",
        "..",
        "../../escaped",
        "a/b",
        "-oProxyCommand=x",
        "%n",
        "x" * 240,
        "semi;colon",
        ".hidden",
    ]
    inventory = bench.top / "names.yml"
    inventory.write_text(json.dumps({"all": {"hosts": dict.fromkeys(names, variables)}}))
    env = {
        "ANSIBLE_CACHE_PLUGIN": "churten.core.jsonfile",
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(bench.top / "deep" / "er" / "cache"),
    }
    text = "- hosts: all\n  gather_facts: false\n  tasks:\n    - ping:\n    - set_fact: {a: 1, cacheable: true}\n"
    args = f"-o UserKnownHostsFile={bench.lab.dir}/known_hosts"
    run = bench.play(text, inventory=inventory, env=env, ansible_ssh_common_args=args)
    assert run.rc == 0, run.text
    assert {line["host"] for line in run.results} == set(names)
    assert not [p for p in bench.top.rglob("*escaped*") if not p.is_relative_to(bench.top / "deep" / "er" / "cache")]


# --- homes ---


@pytest.mark.row("E15")
@pytest.mark.parametrize("home", ["missing", "read-only", "long", "unwritable parent"])
def test_homes_where_no_pool_can_live(bench, home):
    """No CHURTEN_POOL_DIR, no XDG_RUNTIME_DIR: the run works, and says at most once that it is not accelerated."""
    if home == "missing":
        path = str(bench.top / "nowhere" / "home")
    elif home == "long":
        path = str(bench.top / ("x" * 120))
        os.mkdir(path)
    else:
        path = "/proc/1" if home == "read-only" else "/sys/kernel"
    env = {"HOME": path, "CHURTEN_POOL_DIR": "", "XDG_RUNTIME_DIR": "", "ANSIBLE_LOCAL_TEMP": str(bench.top / "tmp")}
    run = bench.play(PING, env=env)
    stock = bench.play(PING, env={**env, "ANSIBLE_STRATEGY": "linear"}, name="stock")
    assert (run.rc, comparable(run)) == (stock.rc, comparable(stock)), run.text
    assert run.rc == 0 and run.text.count("connections are not accelerated") <= 1


# --- streams ---


@pytest.mark.row("E16")
@pytest.mark.parametrize(
    "how",
    [
        "{0} <&-",
        "{0} >&-",
        "{0} 2>&-",
        "{0} <&- >&- 2>&-",
        "{0} | head -1",
        "setsid {0} </dev/null",
        "nohup {0} </dev/null",
        "{0} >/dev/full",
    ],
)
def test_streams_that_are_closed_or_go_nowhere(bench, how):
    """From a shell, as cron and people start it: the exit code is stock's."""
    codes = {}
    for strategy, name in (("linear", "stock"), ("churten.core.free", "ours")):
        run = bench.start(PING, env={"ANSIBLE_STRATEGY": strategy}, name=name)
        run.process.kill()
        run.process.wait()
        (run.folder / "results").write_text("")
        words = " ".join("'" + word.replace("'", "'\\''") + "'" for word in run.argv)
        script = f"set -o pipefail; {how.format(words)}"
        done = subprocess.run(["bash", "-c", script], env=run.env, cwd=run.folder, capture_output=True, timeout=120)
        codes[name] = (done.returncode, sorted(run.statuses().items()))
    if "head" in how:  # how far it got is chance
        codes = {name: code for name, (code, _) in codes.items()}
    assert codes["ours"] == codes["stock"]


# --- missing parts ---

NO_EXTENSION = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "churten._core":
            raise ImportError("libssh.so.4: cannot open shared object file")
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.row("E17")
@pytest.mark.parametrize("strategy", ["free", "linear", "host_pinned"])
def test_without_the_extension_the_run_is_stock_s(bench, strategy):
    env = shim(bench.top / "shim", NO_EXTENSION) | {"ANSIBLE_STRATEGY": f"churten.core.{strategy}"}
    run = bench.play(PING, env=env)
    assert run.rc == 0, run.text
    assert len(run.results) == 4
    said = " ".join(run.text.split())
    assert said.count("cannot open shared object file") == 1, run.text


@pytest.mark.row("E17")
@pytest.mark.parametrize("executable", ["/nonexistent", "/bin/false", sys.executable])
def test_without_the_pool_the_run_is_stock_s(bench, executable):
    run = bench.play(PING, env={"CHURTEN_POOL_EXECUTABLE": executable})
    assert run.rc == 0, run.text
    assert run.text.count("connections are not accelerated") == 1, run.text
