"""Hosts that never answer, names that nobody resolves, addresses that are dead: the other hosts do not notice, and hold nobody up.

CHURTEN_FAULTS_HOSTS=1000 takes that many hosts, half of them black holes, and a connect timeout of 10 s.
"""

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from far import Far, inventory
from sshds import free_port
from talking import EXECUTABLE, STOP, Talk

from churten import __version__

FREE = {"ANSIBLE_STRATEGY": "churten.core.free"}
NO_MASTER = {"ANSIBLE_SSH_ARGS": "-o ControlMaster=no -o ControlPath=none"}
HOSTS = int(os.environ.get("CHURTEN_FAULTS_HOSTS", "70"))
HOLES = HOSTS // 2 if HOSTS > 70 else 60
TIMEOUT_S = 10 if HOSTS > 70 else 4
TWO_TASKS = "- hosts: all\n  gather_facts: false\n  tasks:\n    - ping:\n      name: one\n    - ping:\n      name: two\n"

TIMED = """
- hosts: all
  gather_facts: false
  tasks:
    - block:
        - ping: {data: "{{ item }}"}
          name: one
          loop: [1, 2]
          timeout: "{{ 1 if inventory_hostname is match('hole') else 60 }}"
      rescue:
        - debug: {msg: "{{ ansible_failed_result.results | map(attribute='msg') | list }}"}
          name: rescued
    - ping:
      name: two
      timeout: "{{ 1 if inventory_hostname is match('hole') else 60 }}"
      ignore_errors: true
    - command: echo last
      name: last
      when: inventory_hostname is match('fine')
"""


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    path = tmp_path_factory.mktemp("nobody")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def everywhere(top):
    """One sshd on every address of this machine."""
    made = Far(top, "0.0.0.0", "MaxStartups 5000\n")
    yield made
    made.stop()


@pytest.fixture
def hole():
    """hole(address, port): connections to it get no answer at all."""
    with contextlib.ExitStack() as stack:

        def dig(address, port):
            server = stack.enter_context(socket.socket())
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, port))
            server.listen(0)
            for _ in range(3):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex((address, port))

        yield dig


@pytest.fixture
def fresh(own_pool, play, tmp_path):
    """A play with a pool of its own, which inherits its environment."""
    folders = []

    def run(text, *lines, words=(), timeout=120, **env):
        folder = Path(own_pool.dir) / f"{len(folders)}"
        folder.mkdir(mode=0o700)
        folders.append(folder)
        if "LD_PRELOAD" in env and "ANSIBLE_STRATEGY" in env:
            # Ansible starts the pool with a clean environment.
            subprocess.run([EXECUTABLE, "--dir", folder], env={**os.environ, **env}, check=True, timeout=60)
        hosts = inventory(tmp_path / "hosts.ini", *lines)
        return play(text, "ssh", *words, inventory=hosts, timeout=timeout, env={**NO_MASTER, "CHURTEN_POOL_DIR": str(folder), **env})

    yield run
    for folder in folders:
        for sock in folder.glob(f"pool-{__version__}.sock"):
            talk = Talk(sock)
            talk.final(talk.send(STOP, 0, body=b""))
            talk.client.close()


@pytest.fixture(scope="module")
def names(top):
    """The environment in which tests/faults/names.c answers for names."""
    if shutil.which("cc") is None or os.environ.get("CH_SANITIZE"):
        pytest.skip("no C compiler, or a sanitizer is preloaded already")
    library = top / "names.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("names.c"), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}


def order(run):
    return [(line["host"], line["status"]) for line in run.results]


def fine_before_lost(run, fine, lost):
    """Every healthy host had both its results before the first lost one had its verdict."""
    found = order(run)
    assert len(found) == 2 * fine + lost, run.text[-3000:]
    assert [status for _, status in found[: 2 * fine]] == ["ok"] * 2 * fine, found
    assert [status for _, status in found[2 * fine :]] == ["unreachable"] * lost, found


@pytest.mark.row("A2")
@pytest.mark.slow
def test_black_holes_hold_nobody_up(fresh, everywhere, hole):
    """Stock needs (holes / forks) x timeout: more than 48 s."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    port = free_port("127.0.5.1")
    holes, fine = [], []
    for n in range(HOLES):
        address = f"127.0.{5 + n // 250}.{n % 250 + 1}"
        hole(address, port)
        holes.append(everywhere.line(f"hole{n}", ansible_host=address, ansible_port=port))
    for n in range(HOSTS - HOLES):
        fine.append(everywhere.line(f"fine{n}", ansible_host=f"127.0.{10 + n // 250}.{n % 250 + 1}"))
    env = {**FREE, "ANSIBLE_TIMEOUT": str(TIMEOUT_S), "ANSIBLE_FORKS": "5"}
    began = time.monotonic()
    alone = fresh(TWO_TASKS, *fine, timeout=900, **env)
    alone_s = time.monotonic() - began
    assert alone.rc == 0, alone.text[-3000:]
    began = time.monotonic()
    run = fresh(TWO_TASKS, *holes, *fine, timeout=900, **env)
    took_s = time.monotonic() - began
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert run.rc == 4
    assert {host for host, status in order(run) if status == "unreachable"} == {f"hole{n}" for n in range(HOLES)}
    assert sum(status == "ok" for _, status in order(run)) == 2 * (HOSTS - HOLES)
    print(f"{HOSTS} hosts, {HOLES} black holes, timeout {TIMEOUT_S} s: {took_s:.1f} s; the healthy ones alone: {alone_s:.1f} s")
    # The bound is the timeout and 5 s; another machine's load is allowed for by the time the healthy ones need alone.
    assert took_s < TIMEOUT_S + 5 + alone_s
    if alone_s < TIMEOUT_S / 2:
        fine_before_lost(run, HOSTS - HOLES, HOLES)


@pytest.mark.row("A21")
def test_clients_that_connect_are_as_many_as_forks(fresh, everywhere):
    """An OpenSSH client is a process and may go through a jump host with limits of its own: it lends no worker."""
    nap = f"2.{os.getpid()}"
    lines = [everywhere.line(f"far{n}", ansible_host=f"127.0.13.{n + 1}", ansible_ssh_extra_args=f"-o ProxyCommand='sleep {nap}'") for n in range(6)]
    most, over = [0], threading.Event()

    def count():
        while not over.wait(0.05):
            found = subprocess.run(["pgrep", "-c", "-x", "-f", f"sleep {nap}"], capture_output=True, text=True, check=False)
            most.append(int(found.stdout))

    thread = threading.Thread(target=count)
    thread.start()
    run = fresh("- hosts: all\n  gather_facts: false\n  tasks:\n    - ping:\n      name: one\n", *lines, **FREE, ANSIBLE_FORKS="2")
    over.set()
    thread.join()
    assert [status for _, status in order(run)] == ["unreachable"] * 6, run.text[-3000:]
    assert max(most) == 2


@pytest.mark.row("A3")
@pytest.mark.slow
def test_names_that_nobody_answers_for_hold_nobody_up(fresh, everywhere, names):
    lost = [everywhere.line(f"lost{n}", ansible_host=f"n{n}.never") for n in range(80)]
    fine = [everywhere.line(f"fine{n}", ansible_host=f"127.0.11.{n}.list") for n in range(1, 5)]
    run = fresh(TWO_TASKS, *lost, *fine, **FREE, **names, ANSIBLE_TIMEOUT="8", ANSIBLE_FORKS="5")
    fine_before_lost(run, 4, 80)
    assert "Could not resolve hostname n0.never: Connection timed out" in run.text


@pytest.mark.row("A3")
def test_a_name_server_that_fails(fresh, everywhere, names):
    line = everywhere.line("lost", ansible_host="some.fails")
    stock, ours = fresh(TWO_TASKS, line, **names), fresh(TWO_TASKS, line, **FREE, **names)
    assert stock.rc == ours.rc == 4
    assert ours.one("one")["result"]["msg"] == stock.one("one")["result"]["msg"]


@pytest.mark.row("A4")
def test_the_second_address_of_a_name(fresh, top, names, hole):
    far = Far(top, "127.0.0.92")
    try:
        hole("127.0.12.2", far.server.port)
        for first in ("127.0.12.1", "127.0.12.2"):
            run = fresh(TWO_TASKS, far.line("two", ansible_host=f"{first}-127.0.0.92.list"), **FREE, **names)
            assert run.rc == 0, run.text
        # Neither answers: the same verdict, and stock's last words.
        line = far.line("none", ansible_host="127.0.12.1-127.0.12.3.list")
        stock, ours = fresh(TWO_TASKS, line, **names), fresh(TWO_TASKS, line, **FREE, **names)
        assert stock.rc == ours.rc == 4
        assert ours.one("one")["result"]["msg"] == stock.one("one")["result"]["msg"]
    finally:
        far.stop()


@pytest.mark.row("A2")
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["linear", "free"])
def test_a_timeout_of_a_task_that_has_lent_its_worker(fresh, everywhere, hole, strategy):
    """It ends while it is connecting and has no worker: the verdict, the items after it and the rescue are stock's."""
    port = free_port("127.0.12.9")
    lines = []
    for n in range(4):
        hole(f"127.0.12.{10 + n}", port)
        lines.append(everywhere.line(f"hole{n}", ansible_host=f"127.0.12.{10 + n}", ansible_port=port))
    lines += [everywhere.line(f"fine{n}", ansible_host=f"127.0.12.{20 + n}") for n in range(3)]
    runs = [
        fresh(TIMED, *lines, ANSIBLE_FORKS="2", ANSIBLE_TIMEOUT="30", ANSIBLE_STRATEGY=prefix + strategy)
        for prefix in ("", "churten.core.")
    ]
    hosts = sorted({line["host"] for line in runs[0].results})
    assert len(hosts) == 7
    stock, ours = ([[(x["task"], x["status"], x["result"].get("msg")) for x in run.results if x["host"] == h] for h in hosts] for run in runs)
    assert ours == stock
    assert runs[1].rc == runs[0].rc


AFTER_A_TIMEOUT = """
- hosts: all
  gather_facts: false
  tasks:
    - command: sleep 1
      name: one
      loop: [1, 2]
      timeout: "{{ 1 if item == 1 else 60 }}"
      ignore_errors: true
"""


def pass_on(source, sink):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def gate(everywhere):
    """gate(count, seconds): that many addresses of the sshd that take connections and let nothing through until so long after the last one came."""
    with contextlib.ExitStack() as stack:

        def serve(server, come, opened):
            with contextlib.suppress(OSError):
                while True:
                    client = stack.enter_context(server.accept()[0])
                    come.release()
                    threading.Thread(target=through, args=(client, opened), daemon=True).start()

        def through(client, opened):
            opened.wait(60)
            target = stack.enter_context(socket.create_connection(("127.0.12.40", everywhere.server.port), 20))
            target.settimeout(None)
            threading.Thread(target=pass_on, args=(target, client), daemon=True).start()
            pass_on(client, target)

        def make(count, seconds):
            come, opened = threading.Semaphore(0), threading.Event()
            servers = [stack.enter_context(socket.create_server(("127.0.12.41", 0))) for _ in range(count)]
            for server in servers:
                stack.callback(server.shutdown, socket.SHUT_RDWR)
                threading.Thread(target=serve, args=(server, come, opened), daemon=True).start()

            def open_later():
                for _ in range(count):
                    come.acquire(timeout=60)
                time.sleep(seconds)
                opened.set()

            threading.Thread(target=open_later, daemon=True).start()
            return [server.getsockname()[1] for server in servers]

        yield make


@pytest.mark.row("A2")
def test_a_worker_that_was_lent_is_needed_for_the_next_item(fresh, everywhere, gate):
    """The timeout ends an item that had lent its worker: the items after it run on no more workers than there are."""
    lines = [everywhere.line(f"slow{n}", ansible_host="127.0.12.41", ansible_port=port) for n, port in enumerate(gate(5, 3))]
    run = fresh(AFTER_A_TIMEOUT, *lines, ANSIBLE_VERBOSITY="4", ANSIBLE_FORKS="2", ANSIBLE_TIMEOUT="30", **FREE)
    items = [line["result"]["results"] for line in run.results if line["task"] == "one"]
    assert len(items) == 5 and run.text.count("engine: fiber") == 5, run.text
    assert all(first["failed"] and "timed out" in first["msg"].lower() and "start" in second for first, second in items), run.text
    edges = sorted((second[edge], step) for _first, second in items for edge, step in (("start", 1), ("end", -1)))
    assert max(sum(step for _time, step in edges[: n + 1]) for n in range(len(edges))) <= 2


SLEEP = "- hosts: all\n  gather_facts: false\n  tasks:\n    - {name: one, %s: date +%%s.%%N; sleep 0.5; date +%%s.%%N}\n"


@pytest.mark.row("A2")
@pytest.mark.parametrize("strategy, action", [("linear", "shell"), ("free", "shell"), ("free", "raw")])
def test_no_more_hosts_at_work_than_workers_while_all_are_connected_to(fresh, everywhere, strategy, action):
    """Connections are made beside the workers; what runs on the hosts is not."""
    lines = [everywhere.line(f"fine{n}", ansible_host=f"127.0.12.{50 + n}") for n in range(10)]
    run = fresh(SLEEP % action, *lines, ANSIBLE_FORKS="2", ANSIBLE_STRATEGY=f"churten.core.{strategy}")
    assert run.rc == 0, run.text
    edges = sorted((float(time), step) for line in run.results for time, step in zip(line["result"]["stdout_lines"], (1, -1)))
    assert len(edges) == 20 and max(sum(step for _time, step in edges[: n + 1]) for n in range(len(edges))) <= 2
