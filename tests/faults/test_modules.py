"""What modules do to their target's processes, their output and their agent: stock's results, and an agent that lives on."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import threading
import time

import pytest
from lab_plays import assert_same, differences
from targets import agents, full, gone, library, reasons, soon, tasks

CHURTEN = "churten.core.ssh"
pytestmark = pytest.mark.slow  # plays under stock and ours


class Do:
    """Runs tasks with the module `do` at hand."""

    def __init__(self, play, env):
        self._play, self._env = play, env

    def play(self, text, connection, *words, **more):
        """One run, under one connection."""
        return self._play(tasks(text), connection, "-vvv", *words, env=self._env, **more)

    def __call__(self, text, *words, **more):
        """Under stock and under ours, which must not differ; answers both runs."""
        runs = [self.play(text, connection, *words, **more) for connection in ("ssh", CHURTEN)]
        assert_same(*runs)
        return runs


@pytest.fixture
def do(play, tmp_path):
    return Do(play, library(tmp_path / "library"))


def codes(*lines, **more):
    """One task of `do` per code; none stops the play."""
    out = []
    for i, code in enumerate(lines):
        out += [f"- do: {{code: {json.dumps(code)}}}", f"  name: n{i}", "  ignore_errors: true"]
        out += [f"  {key}: {value}" for key, value in more.items()]
    return "\n".join(out)


WHO = "- do: {code: \"result['pid'] = os.getppid()\"}\n  name: %s\n"


@pytest.mark.row("C1")
def test_crashes(do):
    """Ended by signals, by _exit, without output: stock's keys and texts, in an agent that keeps its process."""
    crashes = codes(
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os.abort()",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "os._exit(3)",
        "os._exit(0)",
        "sys.exit(0)",
        "sys.stderr.write('words'); sys.stderr.flush(); os._exit(7)",
        "print('half'); sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)",
        "raise RuntimeError('broken')",
        "import ctypes; ctypes.string_at(0)",
    )
    _, ours = do(WHO % "first" + crashes + "\n" + WHO % "last")
    assert ours.one("first")["result"]["pid"] == ours.one("last")["result"]["pid"] > 1
    assert not reasons(ours)


@pytest.mark.row("C2")
def test_garbage_around_json(do):
    good = """{"changed": true, "x": 1}"""
    end = "; sys.stdout.flush(); os._exit(0)"
    texts = [
        "before\n" + good,
        good + "\nafter",
        "before\n\n" + good + "\n\nafter\n",
        good + good,
        good + "\n" + good,
        '{"changed": true,\n noise\n "x": 1}',
        "",
        "\n",
        "just words",
        "[1, 2]",
        "[1, 2]\n" + good,
        "true",
        '"text"',
        "{}",
        "{'python': True}",
        "x" + good,
        good + "x",
        "\x1b[0m" + good,
        '{"changed": true',
        '{"failed": true}',
        '{"rc": 3, "msg": "m"}',
        "BECOME-SUCCESS-abc\n" + good,
    ]
    lines = [f"sys.stdout.write({text!r}){end}" for text in texts]
    lines += [f"sys.stderr.write('to stderr'); print({good!r}){end}", f"print({good!r}); sys.stdout.flush(); os._exit(4)"]
    stock, ours = do(codes(*lines))
    assert len(stock.results) == len(lines) and not reasons(ours)
    # ... and the warnings about junk
    warned = [[line for line in run.text.splitlines() if "junk after the JSON" in line] for run in (stock, ours)]
    assert warned[0] == warned[1] and warned[0]


@pytest.mark.row("C3")
def test_much_output(play, pool_dir, tmp_path):
    """... comes whole, and the pool does not hold it."""
    size = 100_000_000 if full() else 12_000_000
    text = tasks(f"""
- shell: yes 0123456789abcde | head -c {size}; head -c {size // 4} /dev/zero | tr '\\0' e >&2
  name: big
  register: big
  no_log: true
- debug: msg="{{{{ big.stdout | length }}}} {{{{ big.stdout | hash }}}} {{{{ big.stderr | length }}}}"
  name: seen
- command: echo after
  name: after
""")
    pool = pool_process(play, pool_dir)
    before = memory(pool)
    with open(f"/proc/{pool}/clear_refs", "w") as file:
        file.write("5")  # VmHWM begins anew
    ours = play(text, CHURTEN, "-vvv", timeout=300)
    assert memory(pool, "VmHWM") - before < 8 << 10, "KB"
    stock = play(text, "ssh", timeout=300)
    assert_same(stock, ours)
    words = ours.one("seen")["result"]["msg"].split()
    assert (int(words[0]), int(words[2])) == (size - 1, size // 4)  # less the last line's end
    assert not reasons(ours)


def pool_process(play, pool_dir):
    """The pid of the test run's pool, which is started if need be."""
    from churten.transport.pool import STATUS, Pool

    os.environ["CHURTEN_POOL_DIR"] = pool_dir
    return int(json.loads(Pool.get().control(STATUS).stdout or b"{}")["pid"])


def memory(pid, name="VmRSS"):
    """KB."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


@pytest.mark.row("C4")
def test_much_input(play, tmp_path, pool_dir):
    """Arguments beyond a frame, a large stdin, a large file; the other host goes on meanwhile."""
    size = 100_000_000 if full() else 17_500_000
    (tmp_path / "large").write_bytes(os.urandom(1 << 20) * (size >> 20))
    arg = tmp_path / "vars.json"
    arg.write_text(json.dumps({"large": "0123456789abcdef" * (size // 16), "middle": "\u20ac" * 300_000}))
    text = tasks(
        """
- do: {code: "import hashlib; result['n'] = [len(arg), hashlib.sha256(arg.encode()).hexdigest()]", arg: "{{ large }}"}
  name: arguments
  no_log: false
- do: {code: "import hashlib; result['n'] = [len(arg), hashlib.sha256(arg.encode()).hexdigest()]", arg: "{{ middle }}"}
  name: within a frame
- command: {argv: [wc, -c], stdin: "{{ large }}"}
  name: stdin
- copy: {src: "{{ out }}/large", dest: /dev/shm/churten-large}
  name: file
- shell: sha256sum </dev/shm/churten-large; rm -f /dev/shm/churten-large
  name: sum
- ping:
  name: after
"""
    )
    words = ("-e", f"@{arg}")
    env = library(tmp_path / "library")
    runs = []
    for connection in ("ssh", CHURTEN):
        runs.append(play(text, connection, *words, env=env, timeout=400))
        assert runs[-1].rc == 0, runs[-1].text[-3000:]
        for line in runs[-1].results:
            line["result"].pop("invocation", None)
    assert_same(*runs)
    assert runs[1].one("arguments")["result"]["n"][0] == size // 16 * 16


@pytest.mark.row("C5")
def test_odd_json(do):
    """Everything Python's json reads, and what it refuses."""
    deep = "'[' * {0} + ']' * {0}"
    texts = [
        r"""b'{"a": "\\u0000", "\\u0000": 1}'""",
        r"""b'{"a": "\x00"}'""",
        r"""b'{"a": "\xff\xfe"}'""",
        r"""b'{"a": "\xed\xa0\x80"}'""",
        r"""b'{"a": "\\ud800"}'""",
        r"""b'{"a": "\\ud83d\\ude00"}'""",
        r"""b'\xef\xbb\xbf{"a": 1}'""",
        r"""b'{"a": 1e400, "b": -1e400, "c": 1e-400}'""",
        r"""b'{"a": 1180591620717411303424, "b": -1180591620717411303424}'""",
        r"""b'{"a": NaN, "b": Infinity}'""",
        r"""b'{"a": 1, "a": 2}'""",
        r"""b'{"a": 0.1000000000000000055511151231257827, "b": 1.0, "c": -0.0}'""",
        r"""b'{"__ansible_unsafe": "x", "__ansible_vault": "y"}'""",
        r"""b'{"a": "{{ 1 + 1 }}", "{{ b }}": "{% if %}"}'""",
        r"""b'{"a": "\\u2028\\r\\n"}'""",
        r"""b'{"__ansible_type": "Foo", "a": 1}'""",
        f"""('{{"a": ' + {deep.format(100)} + '}}').encode()""",
        f"""('{{"a": ' + {deep.format(100000)} + '}}').encode()""",
        r"""('{"a": ' + '9' * 5000 + '}').encode()""",
    ]
    lines = [f"sys.stdout.buffer.write({text}); sys.stdout.flush(); os._exit(0)" for text in texts]
    runs = [do.play(codes(*lines), connection) for connection in ("ssh", CHURTEN)]
    for run in runs:
        for line in run.results:
            line["result"] = json.loads(json.dumps(line["result"]).replace("NaN", '"NaN"'))  # which is not equal to itself
    assert_same(*runs)
    assert len(runs[0].results) == len(lines) and not reasons(runs[1])


@pytest.mark.row("C6")
def test_background_processes(do, lab):
    """The answer does not wait for a process that keeps the output open, and that process is left alone."""
    nap = f"97.{os.getpid()}"
    text = f"""
- do:
    code: |
      import subprocess
      result['pid'] = subprocess.Popen(['sleep', '{nap}1']).pid
- do:
    code: |
      if os.fork() == 0:
          os.setsid()
          if os.fork() == 0:
              os.execvp('sleep', ['sleep', '{nap}2'])
          os._exit(0)
- shell: nohup sleep {nap}3 >/dev/null 2>&1 & echo started
- shell: sleep {nap}4 >/dev/null 2>&1 </dev/null & echo started
- do:
    code: |
      result['open'] = [fd for fd in range(3, 256) if os.path.exists('/proc/self/fd/%d' % fd)]
"""
    # (stock waits for the processes that keep its pipes, the ssh client's: they end by themselves there)
    def napping(n):
        return processes(f"^sleep {nap}{n}$")

    ends = threading.Event()

    def end_for_stock():
        while not ends.wait(1):
            for pid in napping(1) + napping(2):
                os.kill(pid, 15)

    try:
        thread = threading.Thread(target=end_for_stock)
        thread.start()
        try:
            stock = do.play(text, "ssh")
        finally:
            ends.set()
            thread.join()
        for n in "34":
            for pid in napping(n):
                os.kill(pid, 15)
        begun = time.monotonic()
        ours = do.play(text, CHURTEN)
        assert time.monotonic() - begun < 60
        assert_same(stock, ours)
        assert [len(napping(n)) for n in "1234"] == [1, 1, 1, 1]
        assert ours.results[-1]["result"]["open"] == []
        again = do.play(text, CHURTEN)
        assert again.rc == 0
        assert [len(napping(n)) for n in "1234"] == [2, 2, 2, 2]
    finally:
        for pid in processes(f"^sleep {nap}"):
            os.kill(pid, 9)


def processes(pattern):
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False, timeout=30).stdout.split()
    return [int(pid) for pid in found]


SNAPSHOT = """
import gc, locale, resource, socket, threading, warnings
from ansible.module_utils import basic
u = os.umask(0); os.umask(u)
result['pid'] = os.getppid()
result['state'] = json.dumps([
    os.getcwd(), u, sorted(i for i in os.environ.items() if i[0][:4] != 'SSH_'), [resource.getrlimit(r) for r in range(16)],
    [str(signal.getsignal(n)).split(' at ')[0] for n in range(1, 65) if n not in (32, 33)],
    sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), os.nice(0), os.getresuid(), os.getresgid(), sorted(os.getgroups()),
    [locale.setlocale(c) for c in (locale.LC_CTYPE, locale.LC_TIME, locale.LC_NUMERIC)], [p for p in sys.path if 'ansible' not in p],
    socket.getdefaulttimeout(), sys.getrecursionlimit(), gc.isenabled(), gc.get_threshold(), time.tzname, threading.active_count(),
    signal.getitimer(signal.ITIMER_REAL), os.sched_getaffinity(0) and len(os.sched_getaffinity(0)), 'dirt' in sys.modules,
    sys.getswitchinterval(), repr(sys.excepthook)[:20], sys.dont_write_bytecode, len(warnings.filters) > 0,
    open('/proc/self/oom_score_adj').read(), open('/proc/self/cgroup').read(), sorted(os.listdir('/proc/self/fd'))[:3],
])
"""
DIRT = [
    "os.chdir('/')",
    "import tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)",
    "os.umask(0o777)",
    "os.environ.update(DIRT='1', PATH='/nowhere', LC_ALL='C', HOME='/'); os.environ.pop('SHELL', None)",
    "import resource; [resource.setrlimit(r, (0, resource.getrlimit(r)[1])) for r in (resource.RLIMIT_CORE, resource.RLIMIT_STACK)]",
    "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)); resource.setrlimit(resource.RLIMIT_CPU, (60, 60))",
    "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))",
    "[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 3, 13, 15, 17)]",
    "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))",
    "os.nice(5)",
    "import locale; locale.setlocale(locale.LC_ALL, 'C')",
    "sys.path[:] = ['/dirt']; sys.modules['dirt'] = sys",
    "import socket; socket.setdefaulttimeout(0.001); sys.setrecursionlimit(5000)",
    "import atexit; atexit.register(os.chdir, '/')",
    "os.environ['TZ'] = 'Asia/Tokyo'; time.tzset()",
    "signal.setitimer(signal.ITIMER_REAL, 300)",
    "import json; json.dumps = None; os.getcwd = lambda: '/dirt'; print('{}'); sys.stdout.flush(); os._exit(0)",
    "from ansible.module_utils import basic; basic.json = None; basic.AnsibleModule.exit_json = lambda self, **r: sys.exit(0)",
    "import gc; gc.disable(); sys.setswitchinterval(1); sys.excepthook = print; sys.dont_write_bytecode = True",
    "import builtins; builtins.open = None",
    "os.closerange(0, 256); os._exit(0)",
    "open('/proc/self/oom_score_adj', 'w').write('500')",
    "os.setsid() if os.getsid(0) != os.getpid() else None; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])",
]


@pytest.mark.row("C7", "B9")
def test_nothing_stays(do, tmp_path):
    """Whatever a module changes in its process, the next one stands as the first did, and as one under stock does."""
    clean = f"- do: {{code: {json.dumps(SNAPSHOT)}}}\n"
    rng = random.Random(7)
    orders = 100 if full() else 2
    text = clean
    for _ in range(orders):
        for dirt in rng.sample(DIRT, len(DIRT)):
            text += codes(dirt) + "\n" + clean
    ours = do.play(text, CHURTEN, timeout=300 + 60 * orders)
    stock = do.play(clean, "ssh")
    found = [line["result"] for line in ours.results if "state" in line["result"]]
    assert len(found) == 1 + orders * len(DIRT), ours.text[-3000:]
    first = json.loads(stock.results[0]["result"]["state"])
    for line in found:
        assert not list(differences(json.loads(line["state"]), first))
    assert len({line["pid"] for line in found}) == 1, "one agent"


@pytest.mark.row("C8")
def test_descriptors(do):
    """Forks, threads, everything closed, everything written to: no way to the agent's channel."""
    noise = "CHURTEN" * 10
    lines = [
        "result['fds'] = [f for f in range(3, 4096) if os.path.exists('/proc/self/fd/%d' % f)]",
        f"[os.write(f, b'{noise}') for f in range(3, 256) if os.path.exists('/proc/self/fd/%d' % f)]",
        "os.closerange(3, 256)",
        "os.closerange(0, 256); os._exit(0)",
        "[os.fork() for _ in range(4)]; os._exit(0)",
        "import threading; t = [threading.Thread(target=time.sleep, args=(0.1,)) for _ in range(50)]; [x.start() for x in t]",
        "import threading; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "import multiprocessing as m; p = m.get_context('fork').Pool(3); result['x'] = p.map(abs, [-1, -2, -3]); p.terminate()",
        "import subprocess; result['x'] = subprocess.run('ls /proc/self/fd | wc -l', shell=True, capture_output=True, close_fds=False).stdout.decode()",
        "os.dup2(1, 0); os.dup2(1, 9); os.set_inheritable(9, True); result['x'] = 1",
        # what it can do to the process above it
        "import glob; h = '/proc/%d/fd/' % os.getppid(); result['x'] = 1\n"
        "for f in glob.glob(h + '*'):\n"
        "    t = os.readlink(f)\n"
        "    if 'pts' in t: result['x'] = t",
    ]
    _, ours = do(WHO % "first" + codes(*lines) + "\n" + WHO % "last")
    assert ours.one("first")["result"]["pid"] == ours.one("last")["result"]["pid"]
    assert ours.one("n0")["result"]["fds"] == []


@pytest.mark.row("C9")
def test_group_and_parent(do, lab):
    """Signals to its own group stay with the module; one that kills or stops its agent costs its host that task alone."""
    text = WHO % "first" + codes(
        "os.kill(0, signal.SIGKILL)",
        "os.killpg(os.getpgid(0), signal.SIGTERM); time.sleep(30)",
        "signal.signal(15, signal.SIG_IGN); os.kill(0, 15); result['x'] = os.getpgid(0) == os.getpid() == os.getsid(0)",
    )
    group = do.play(text + "\n" + WHO % "last", CHURTEN)
    assert [line["status"] for line in group.results] == ["ok", "failed", "failed", "ok", "ok"], group.text[-3000:]
    assert group.one("first")["result"]["pid"] == group.one("last")["result"]["pid"]
    assert group.one("n2")["result"]["x"] is True
    for signum, seconds in ((9, 60), (19, 90)):
        kill = codes(f"os.kill(os.getppid(), {signum}); time.sleep(2)", ignore_unreachable="true")
        begun = time.monotonic()
        alive = "-o ServerAliveInterval=1 -o ServerAliveCountMax=3"
        killed = do.play(
            WHO % "first" + kill + "\n" + WHO % "after", CHURTEN, ansible_ssh_extra_args=alive, timeout=seconds + 60
        )
        assert time.monotonic() - begun < seconds
        assert [line["status"] for line in killed.results] == ["ok", "unreachable", "ok"], killed.text[-3000:]
        assert killed.one("first")["result"]["pid"] != killed.one("after")["result"]["pid"]
    for pid in [pid for pid in agents(lab.account) if stopped(pid)]:  # out of reach until somebody wakes it
        os.kill(pid, signal.SIGCONT)
        assert soon(lambda pid=pid: gone(pid)), "it ends as soon as it may run"


def stopped(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"
    return False


@pytest.mark.row("C10")
def test_endless(do, lab):
    """`timeout:` ends the task as under stock, and here its processes on the target too."""
    nap = f"98.{os.getpid()}"
    text = f"""
- do: {{code: "import subprocess; subprocess.Popen(['sleep', '{nap}1']); exec('while True: pass')"}}
  name: busy
  timeout: 2
  ignore_errors: true
- shell: trap '' TERM; sleep {nap}2; exit 3
  name: stubborn
  timeout: 2
  ignore_errors: true
- ping:
  name: next
"""
    try:
        stock = do.play(text, "ssh")
        for pid in processes(f"^sleep {nap}"):  # stock leaves them, and the busy one's parent
            with contextlib.suppress(OSError):
                os.kill(parent(pid) if pid in processes(f"^sleep {nap}1") else pid, 9)
                os.kill(pid, 9)
        ours = do.play(text, CHURTEN)
        assert_same(stock, ours)
        assert [line["status"] for line in ours.results] == ["failed", "failed", "ok"]
        assert soon(lambda: not processes(f"^sleep {nap}")), "still there"
    finally:
        for pid in processes(f"^sleep {nap}"):
            with contextlib.suppress(OSError):
                os.kill(pid, 9)


def parent(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


@pytest.mark.row("C11")
def test_stdin_and_terminal(do):
    text = codes(
        "result['x'] = sys.stdin.read()",
        "result['x'] = [os.isatty(fd) for fd in (0, 1, 2)]",
        "try:\n    open('/dev/tty'); result['x'] = 'opened'\nexcept OSError as e:\n    result['x'] = e.errno",
        "import getpass; result['x'] = getpass.getpass()",
        "result['x'] = input('name: ')",
        "import subprocess; result['x'] = subprocess.run('read x; echo got:$x $?', shell=True, capture_output=True).stdout.decode()",
    )
    text += """
- command: cat
- shell: read x; echo "[$x] $?"
- shell: "echo asked >/dev/tty"
  ignore_errors: true
- command: {argv: [cat], stdin: given}
"""
    do(text)


@pytest.mark.row("C12")
def test_status_255(do):
    """Stock takes 255 for a lost connection; here the output counts (docs/differences.md), with a switch for stock's way."""
    good = """print('{"changed": true, "x": 1}'); sys.stdout.flush(); os._exit(255)"""
    text = codes(good, "os._exit(255)", "print('words'); sys.stdout.flush(); os._exit(255)", ignore_unreachable="true")
    text += "\n- ping:\n  name: after"
    ours = do.play(text, CHURTEN)
    assert [line["status"] for line in ours.results] == ["ok", "failed", "failed", "ok"], ours.text[-3000:]
    assert ours.one("n0")["result"]["x"] == 1
    for name, out in (("n1", ""), ("n2", "words\n")):
        assert ours.one(name)["result"]["rc"] == 255 and ours.one(name)["result"]["module_stdout"] == out
    # ... as after any other status
    other = do.play(text.replace("255", "254"), "ssh")
    for line in other.results:
        line["result"].pop("invocation", None)
        if line["result"].get("rc") == 254:
            line["result"]["rc"] = 255
    for line in ours.results:
        line["result"].pop("invocation", None)
    assert_same(other, ours)
    stock = do.play(text, "ssh")
    switched = do.play(text, CHURTEN, ansible_churten_transport="stock")
    assert [line["status"] for line in stock.results] == ["unreachable"] * 3 + ["ok"]
    assert_same(stock, switched)


ASYNC = """
- shell: "echo begun >> {{ mark }}; sleep 4; echo done >> {{ mark }}; echo out"
  async: 60
  poll: 0
  name: job
  register: job
- debug: {msg: "{{ lookup('pipe', out + '/inject') }}"}
  name: inject
- async_status: {jid: "{{ job.ansible_job_id }}"}
  register: r
  until: r.finished
  retries: 40
  delay: 0.5
  name: status
- command: cat {{ mark }}
  name: mark
- shell: stat -c '%a %U' ~/.ansible_async; ls ~/.ansible_async | grep -c '{{ job.ansible_job_id }}'
  name: folder
- async_status: {jid: "{{ job.ansible_job_id }}", mode: cleanup}
  name: cleanup
- shell: ls ~/.ansible_async | grep -c '{{ job.ansible_job_id }}' || true
  name: folder after
- async_status: {jid: "{{ job.ansible_job_id }}"}
  name: unknown
  ignore_errors: true
- shell: sleep 30
  async: 2
  poll: 6
  name: too long
  ignore_errors: true
- command: echo polled
  async: 20
  poll: 1
  name: polled
"""


@pytest.mark.row("C13")
@pytest.mark.parametrize("fault", ["none", "session", "agent", "pool"])
def test_async(do, lab, tmp_path, pool_dir, fault):
    """A job outlives the session, the agent and the pool; status, clean-up and time limit are stock's."""
    mark = f"/tmp/churten-async-{os.getpid()}-{fault}"
    inject = {
        "none": "true",
        "session": f"pkill -9 -f '^sshd: {lab.account}'",
        "agent": f"kill -9 $(pgrep -u {lab.account} -f 'exec.d..640')",
        "pool": f"kill -9 $(pgrep -f 'churten-pool --dir {pool_dir}')",
    }[fault]
    runs = []
    try:
        for connection, lines in (("ssh", ""), (CHURTEN, inject + " && echo done")):
            (tmp_path / "inject").write_text(f"#!/bin/sh\n{lines}\n")
            (tmp_path / "inject").chmod(0o755)
            subprocess.run(["rm", "-rf", str(lab.dir / "home" / ".ansible_async")], check=True)
            runs.append(do.play(ASYNC, connection, mark=mark))
            os.unlink(mark)
        assert runs[1].one("inject")["result"].pop("msg") == "done"
        runs[0].one("inject")["result"].pop("msg")
        stock, ours = runs
        assert_same_async(stock, ours)
        assert ours.one("mark")["result"]["stdout"] == "begun\ndone", "exactly once"
    finally:
        with contextlib.suppress(OSError):
            os.unlink(mark)


def assert_same_async(stock, ours):
    """As assert_same, without what counts jobs and processes."""
    for run in (stock, ours):
        for line in run.results:
            for name in ("attempts", "child_pid"):
                line["result"].pop(name, None)
            line["result"] = json.loads(re.sub(r"\bj[0-9]+\.[0-9]+", "JOB", json.dumps(line["result"])))
    assert_same(stock, ours)
