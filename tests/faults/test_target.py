"""Targets that lack something: disk, processes, descriptors, a Python, a clock that is right. The same results as stock, or better ones, and no hang."""

import contextlib
import functools
import json
import os
import pwd
import re
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from lab_plays import assert_same, differences
from targets import agents, changed, library, reasons, soon, tasks, wrapped

from churten.lab import accounts

CHURTEN = "churten.core.ssh"
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts, limits and accounts need root"),
    pytest.mark.slow,
]

COMMON = """
- ping:
  name: ping
  ignore_errors: true
- command: id -un
  name: command
  ignore_errors: true
- setup: {gather_subset: ["!all", "!min", "python", "user"], filter: [ansible_python_version, ansible_user_id]}
  name: setup
  ignore_errors: true
- raw: echo raw
  name: raw
"""


class Runs:
    """Plays against lab002 while it is changed."""

    def __init__(self, play, env):
        self._play, self._env = play, env

    def __call__(self, text, connection=CHURTEN, **more):
        done = self._play(tasks(text, "lab002", ignore_unreachable="true"), connection, "-vvv", env=self._env, **more)
        print(done.text)  # pytest shows it with a failure
        return done

    def same(self, text, **more):
        runs = [self(text, connection, **more) for connection in ("ssh", CHURTEN)]
        assert_same(*runs)
        return runs


@pytest.fixture
def run(play, tmp_path):
    return Runs(play, library(tmp_path / "library"))


def statuses(run):
    return {line["task"]: line["status"] for line in run.results}


# --- disks ---

def small(where, what):
    """Shell text: a filesystem on `where` without a block or an inode left."""
    option = "size=64k" if what == "blocks" else "nr_inodes=40"
    fill = f"head -c 10000000 /dev/zero >{where}/fill || true" if what == "blocks" else f"i=0; while (: >{where}/f$i); do i=$((i+1)); done || true"
    return f"mount -t tmpfs -o {option},mode=1777 tmpfs {where}\n{{ {fill}; }} 2>/dev/null\n"


def small_tmp(lab, what):
    """... on /tmp, with the lab's own folder, which is below it, as it is."""
    top = lab.dir.parent
    return f"""
mount --make-rprivate /
mount -t tmpfs -o mode=1777 tmpfs /dev/shm  # what killed agents leave there goes with it
mount -t tmpfs tmpfs /mnt; mkdir /mnt/keep; mount --rbind {top} /mnt/keep
mount -t tmpfs -o {"size=1m" if what == "blocks" else "nr_inodes=100"},mode=1777 tmpfs /tmp
mkdir -p -m 755 {top}; mount --move /mnt/keep {top}; umount /mnt
""" + small("/tmp/.x", what).replace("mount -t", ": mount -t").replace("/tmp/.x", "/tmp")


@pytest.mark.row("B1")
@pytest.mark.parametrize("what", ["blocks", "inodes"])
def test_full_disks(run, lab, what):
    """No disk is needed to run modules (stock fails them); those that write say that there is no space left."""
    before = small("/var/tmp", what) + small(str(lab.dir / "home"), what) + small_tmp(lab, what)
    text = COMMON + """
- copy: {content: "x", dest: "~/file"}
  name: copy
  ignore_errors: true
- command: dd if=/dev/zero of=/tmp/file bs=100k count=1
  name: write
  ignore_errors: true
- raw: df -k . /tmp; df -i . /tmp
  name: df
"""
    with changed(lab, before):
        ours = run(text)
        stock = run(text, "ssh")
    assert [statuses(ours)[name] for name in ("ping", "command", "setup", "raw")] == ["ok"] * 4, ours.text[-5000:]
    assert statuses(ours)["copy"] in ("failed", "unreachable") and statuses(ours)["write"] == "failed", ours.text[-5000:]
    assert "No space left on device" in json.dumps(ours.one("copy")["result"]) + ours.one("write")["result"]["stderr"]
    assert statuses(stock)["raw"] == "ok" and statuses(stock)["copy"] in ("failed", "unreachable")


@pytest.mark.row("B1")
def test_full_home(run, lab, tmp_path):
    """Only the home is full: a file that does not fit fails as under stock, and nothing of it stays."""
    (tmp_path / "file").write_bytes(os.urandom(300_000))
    text = COMMON + """
- copy: {src: "{{ out }}/file", dest: "/dev/shm/churten-full"}
  name: copy
  ignore_errors: true
- shell: ls -a ~ ~/.ansible/tmp; df -k ~ | tail -1 | awk '{print $4}'
  name: left
"""
    home = lab.dir / "home"
    with changed(lab, f"mount --make-rprivate /\nmount -t tmpfs -o size=200k,mode=1777 tmpfs {home}\n"):
        runs = [run(text, connection) for connection in ("ssh", CHURTEN)]
    for one in runs:  # what dd says about speed
        result = one.one("copy")["result"]
        result["msg"] = re.sub(r"\n\d+\+\d+ records in.*", "", result["msg"], flags=re.DOTALL)
    assert_same(*runs)
    assert runs[1].one("copy")["status"] == "failed" and "No space left" in runs[1].one("copy")["result"]["msg"]


@pytest.mark.row("B2")
def test_read_only(run, lab):
    """Everything read-only: modules run (stock has nowhere to put them), those that write fail with a reason."""
    text = COMMON + """
- copy: {content: "x", dest: "~/file"}
  name: copy
  ignore_errors: true
- file: {path: ~/dir, state: directory}
  name: file
  ignore_errors: true
- command: touch /tmp/x
  name: touch
  ignore_errors: true
"""
    top = lab.dir.parent
    before = "mount --make-rprivate /\nmount -t tmpfs -o mode=1777 tmpfs /dev/shm\n"
    for where in ("/var/tmp", "/tmp", "/usr", "/home"):
        before += f"mount --bind {where} {where}; mount -o remount,ro,bind {where}\n"
    before += f"mount --bind {top} {top}; mount -o remount,ro,bind {top}\n"
    with changed(lab, before):
        ours = run(text)
        stock = run(text, "ssh")
    assert [statuses(ours)[name] for name in ("ping", "command", "setup", "raw")] == ["ok"] * 4, ours.text[-5000:]
    for name in ("copy", "file", "touch"):
        assert statuses(ours)[name] in ("failed", "unreachable")
        assert name == "copy" or "ead-only" in json.dumps(ours.one(name)["result"]), ours.one(name)
    assert ours.one("copy")["result"]["msg"][:80] == stock.one("copy")["result"]["msg"][:80]
    assert [statuses(stock)[name] for name in ("copy", "file", "touch")] == [statuses(ours)[name] for name in ("copy", "file", "touch")]


BINARY = """
- script_module:
  name: script module
  ignore_errors: true
- binary:
  name: binary module
  ignore_errors: true
"""


@pytest.mark.row("B3")
def test_noexec(run, lab, tmp_path):
    """Python modules need no executable files; the others fail as under stock."""
    (tmp_path / "library").mkdir(exist_ok=True)
    script = tmp_path / "library" / "script_module"
    script.write_text("#!/bin/sh\n# WANT_JSON\necho '{\"changed\": false, \"x\": 1}'\n")
    binary = tmp_path / "library" / "binary"
    source = tmp_path / "binary.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("{\\"changed\\": true}"); return 0; }\n')
    subprocess.run(["cc", "-o", str(binary), str(source)], check=True)
    top = lab.dir.parent
    before = "mount --make-rprivate /\n"
    for where in ("/tmp", "/var/tmp", "/dev/shm", str(top)):
        before += f"mount --bind {where} {where}; mount -o remount,noexec,bind {where}\n"
    with changed(lab, before):
        stock, ours = run.same(COMMON + BINARY)
    assert statuses(ours)["ping"] == "ok" and statuses(ours)["binary module"] == "failed"
    assert "ermission denied" in json.dumps(ours.one("binary module")["result"])
    whole = run(BINARY)
    assert list(statuses(whole).values()) == ["ok", "ok"], whole.text[-3000:]


# --- interpreters ---


def python2():
    """The prefix of a Python 2, if there is one."""
    for name in (os.environ.get("CHURTEN_TEST_PYTHON2", "python2.7"), "python2"):
        path = shutil.which(name)
        if path:
            with contextlib.suppress(subprocess.SubprocessError):
                done = subprocess.run([path, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
                return done.stdout.strip()
    return None


@pytest.mark.row("B4")
def test_pythons(run, lab):
    """Missing, of another kind, broken, too old: stock's status and text; raw and script need none."""
    bad = lab.dir / "bad"
    bad.mkdir(exist_ok=True)
    (bad / "dangling").symlink_to("/nowhere/python3")
    for name, text in {
        "fails": "#!/bin/sh\necho broken venv >&2; exit 1\n",
        "nointerp": "#!/nowhere/python\n",
        "silent": "#!/bin/sh\nexit 0\n",
        "noise": "#!/bin/sh\necho welcome; echo to >&2; exec /usr/bin/python3 \"$@\"\n",
        "old": "#!/bin/sh\nexec /opt/churten-python2/bin/python2.7 \"$@\"\n",
    }.items():
        (bad / name).write_text(text)
        (bad / name).chmod(0o755)
    (bad / "plain").write_text("not executable\n")
    (lab.dir / "s.sh").write_text("#!/bin/sh\necho script\n")
    (lab.dir / "s.sh").chmod(0o755)
    names = ["dangling", "missing", "fails", "nointerp", "silent", "noise", "plain", "."]
    before = "mount --make-rprivate /\n"
    prefix = python2()
    if prefix:
        names.append("old")
        before += "mount -t tmpfs -o mode=755 tmpfs /opt; mkdir /opt/churten-python2\n"
        before += f"mount --bind {prefix} /opt/churten-python2\n"
    text = ""
    for name in names:
        text += f"- command: echo {name}\n  name: {name}\n  ignore_errors: true\n  vars: {{ansible_python_interpreter: {bad}/{name}}}\n"
        text += f"- raw: echo raw\n  vars: {{ansible_python_interpreter: {bad}/{name}}}\n"
        text += f"- script: {lab.dir}/s.sh\n  name: script {name}\n  vars: {{ansible_python_interpreter: {bad}/{name}}}\n"
    text += "- command: echo good\n  name: good\n"
    try:
        with changed(lab, before):
            _, ours = run.same(text)
        found = statuses(ours)
        assert all(found[f"script {name}"] == "ok" for name in names), ours.text[-3000:]
        assert found["good"] == "ok" and found["missing"] == "failed"
    finally:
        shutil.rmtree(bad)
        (lab.dir / "s.sh").unlink()


@pytest.mark.row("B4")
def test_no_python_at_all(run, lab):
    """Every Python of the host is broken, and the interpreter is to be discovered."""
    before = "mount --make-rprivate /\n"
    found = [path for folder in ("/usr/bin", "/usr/local/bin") for path in Path(folder).glob("python*")]
    for path in sorted({os.path.realpath(path) for path in found}):
        before += f"[ -x {path} ] && mount --bind /bin/false {path}\n"
    text = "- command: echo x\n  name: module\n  ignore_errors: true\n- raw: echo raw\n  name: raw\n"
    text += "- script: /dev/null\n  name: script\n  ignore_errors: true\n"
    with changed(lab, before):
        _, ours = run.same(text, ansible_python_interpreter="auto")
    assert statuses(ours)["raw"] == "ok" and statuses(ours)["module"] == "failed"


# --- homes ---


@pytest.fixture
def account(lab):
    """Makes an account whose home is a given path."""
    made = []

    def make(home, create=True, mode=0o755):
        name = f"{lab.account}-h"
        entry = accounts.create(name, lab.id, lab.dir / "homeless", None)
        made.append(name)
        subprocess.run(["usermod", "-d", home, name], check=True, capture_output=True)
        if create:
            os.makedirs(home, exist_ok=True)
            os.chown(home, entry.pw_uid, entry.pw_gid)
            os.chmod(home, mode)
        return name

    yield make
    for name in made:
        uid = pwd.getpwnam(name).pw_uid
        soon(functools.partial(_ended, uid), 20)
        accounts.remove(name, lab.id)


def _ended(uid):
    """Kills the account's processes; answers whether there were none."""
    found = subprocess.run(["pgrep", "-u", str(uid)], capture_output=True, text=True).stdout.split()
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(int(pid), signal.SIGKILL)
    return not found


@pytest.mark.row("B5")
@pytest.mark.parametrize("kind", ["missing", "unwritable", "spaces", "quotes", "unicode", "device"])
def test_homes(run, lab, account, kind):
    top = lab.dir / "odd"
    top.mkdir(exist_ok=True)
    home, create, mode = {
        "missing": (f"{top}/missing", False, 0),
        "unwritable": (f"{top}/unwritable", True, 0o555),
        "spaces": (f"{top}/a  b ", True, 0o755),
        "quotes": (f"{top}/it's \"q\" $HOME", True, 0o755),
        "unicode": (f"{top}/h\u00f6me\u20ac", True, 0o755),
        "device": ("/dev/null", False, 0),
    }[kind]
    try:
        name = account(home, create, mode)
        text = """
- ping:
- shell: pwd; echo "$HOME"; cd; pwd
  ignore_errors: true
- copy: {content: x, dest: /dev/shm/churten-home}
  ignore_errors: true
- file: {path: /dev/shm/churten-home, state: absent}
  ignore_errors: true
- copy: {content: x, dest: "~/x"}
  ignore_errors: true
- setup: {gather_subset: ["!all", "!min", "user"], filter: ["ansible_user_dir"]}
- raw: pwd
- shell: "true"
  async: 5
  poll: 1
  ignore_errors: true
"""
        with changed(lab, options=[f"AllowUsers={name}"]):
            stock = run(text, "ssh", ansible_user=name)
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(home, "x"))
            ours = run(text, ansible_user=name)
        for one in (stock, ours):
            for line in one.results:
                line["result"].pop("results_file", None)
        assert_same(stock, ours)
    finally:
        shutil.rmtree(top)


# --- limits ---


@pytest.mark.row("B6")
@pytest.mark.parametrize("limit", ["-n 32", "-n 16", "-u 20", "-v 200000", "-f 0", "-s 256", "-c 0", "-l 0", "-t 20"])
def test_limits(run, lab, limit):
    """Small limits: what works under stock works here."""
    text = COMMON + "- shell: ulimit -a\n  name: limits\n- shell: echo x\n  name: shell\n"
    with wrapped(lab, f"ulimit {limit}"):
        stock = run(text, "ssh")
        ours = run(text)
        assert_better(stock, ours)
    # (without a byte of a file to write nothing has a temporary folder, under neither)
    assert limit == "-f 0" or set(statuses(ours).values()) == {"ok"}


def assert_better(stock, ours):
    """Every task came out as under stock, or well where stock failed."""
    assert len(stock.results) == len(ours.results), ours.text[-3000:]
    for theirs, mine in zip(stock.comparable(), ours.comparable(), strict=True):
        if theirs[2] == "ok":
            assert not list(differences(theirs, mine)), ours.text[-3000:]


@pytest.mark.row("B6")
def test_an_agents_size(lab):
    """At most 8 descriptors, and at most 40 MB of addresses over a bare Python."""
    import agent_client

    bare = subprocess.Popen(
        ["/usr/bin/python3", "-c", "import sys; print(flush=True); sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        bare.stdout.readline()
        with agent_client.AgentClient("/usr/bin/python3") as client:
            for _ in range(2):
                assert client.run(agent_client.build("setup", {"gather_subset": ["!all", "min"]})).rc == 0
            pid = int(client.hello["pid"])
            assert len(os.listdir(f"/proc/{pid}/fd")) <= 8
            sizes = [status(one, "VmSize") for one in (pid, bare.pid)]
            assert sizes[0] - sizes[1] < 40 << 10, sizes
    finally:
        bare.stdin.close()
        bare.wait(20)
        bare.stdout.close()


def status(pid, name):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


INJECT = """
- ping:
  name: first
- debug: {msg: "{{ lookup('pipe', out + '/inject') }}"}
  name: inject
- command: echo during
  name: during
  ignore_errors: true
- debug: {msg: "{{ lookup('pipe', out + '/undo') }}"}
  name: undo
- do: {code: "result['pid'] = os.getppid()"}
  name: after
"""


def scripts(tmp_path, **texts):
    for name, text in texts.items():
        (tmp_path / name).write_text("#!/bin/sh\n" + text + "\n")
        (tmp_path / name).chmod(0o755)


@pytest.mark.row("B7")
def test_fork_fails(run, lab, tmp_path):
    """The agent that cannot fork stays; the task goes the stock way, once, or fails with the reason."""
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]

    def limit(soft):
        # (as the account itself: not every root may set another's limits)
        each = f"for p in $(pgrep -u {lab.account} -f exec.d..640); do prlimit --pid $p --nproc={soft}:; done"
        return f"su -s /bin/sh {lab.account} -c '{each}' && echo done"

    with changed(lab):
        run("- ping:")
        (pid,) = soon(lambda: agents(lab.account)) and agents(lab.account)[-1:]
        scripts(tmp_path, inject=limit(1), undo=limit("unlimited" if hard < 0 else hard))
        ours = run(INJECT)
    assert set(statuses(ours).values()) == {"ok"}, ours.text[-5000:]
    assert "cannot start a process" in ours.text and "Resource temporarily unavailable" in ours.text
    assert len([line for line in reasons(ours) if "cannot start a process" in line]) == 1
    assert [ours.one(name)["result"]["msg"] for name in ("inject", "undo")] == ["done"] * 2
    assert ours.one("after")["result"]["pid"] == pid


@pytest.mark.row("B8")
def test_memory(run, lab, tmp_path):
    """A module killed as the kernel kills for memory: stock's result. The agent killed: that task is lost, the next one has another agent."""
    hog = "- do: {code: \"result['pid'] = os.getppid(); open('/proc/self/oom_score_adj', 'w').write('1000'); os.kill(os.getpid(), 9)\"}\n"
    _, ours = run.same(hog + "  name: hog\n  ignore_errors: true\n" + COMMON)
    assert ours.one("hog")["result"]["rc"] == 137 and "Killed" in ours.one("hog")["result"]["module_stderr"]
    text = "- do: {code: \"result['pid'] = os.getppid()\"}\n  name: first\n"
    text += "- do: {code: \"os.kill(os.getppid(), 9); time.sleep(1)\"}\n  name: kills\n"
    text += "- do: {code: \"result['pid'] = os.getppid()\"}\n  name: after\n"
    ours = run(text)
    assert statuses(ours) == {"first": "ok", "kills": "unreachable", "after": "ok"}, ours.text[-3000:]
    assert ours.one("first")["result"]["pid"] != ours.one("after")["result"]["pid"]
    assert "agent" in ours.one("kills")["result"]["msg"]


@pytest.mark.row("B8")
def test_out_of_memory_for_real(run, lab):
    """In a memory cgroup the kernel takes the module, not the agent."""
    groups = Path("/sys/fs/cgroup/memory")
    if not (groups / "memory.limit_in_bytes").exists() and not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        pytest.skip("no memory cgroups here")
    v1 = (groups / "memory.limit_in_bytes").exists()
    group = (groups if v1 else Path("/sys/fs/cgroup")) / f"churten-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(200 << 20))
    except OSError as ex:
        pytest.skip(f"memory cgroups cannot be made here: {ex}")
    text = "- do: {code: \"result['pid'] = os.getppid()\"}\n  name: first\n"
    text += "- do: {code: \"x = []\\nwhile True: x.append(bytearray(os.urandom(1 << 20)))\"}\n  name: hog\n  ignore_errors: true\n"
    text += "- do: {code: \"result['pid'] = os.getppid()\"}\n  name: after\n"
    try:
        with changed(lab, f"echo $$ >{group}/cgroup.procs"):
            stock, ours = (run(text, connection) for connection in ("ssh", CHURTEN))
        assert_same(stock, ours)
        assert ours.one("hog")["result"]["rc"] == 137
        assert ours.one("first")["result"]["pid"] == ours.one("after")["result"]["pid"]
    finally:
        soon(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


# --- environment ---

WRAPS = {
    "umask 0777": "umask 0777",
    "umask 0000": "umask 0000",
    "locale C": "unset LANG LC_ALL; LANG=C; export LANG",
    "locale odd": "LC_ALL=xx_YY.latin1; LANG=; export LC_ALL LANG",
    "TZ": "TZ=:/nonexistent; export TZ",
    "PYTHON": "export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONIOENCODING=latin-1 PYTHONHASHSEED=3",
    "nice": "renice -n 7 $$ >/dev/null; echo 300 >/proc/self/oom_score_adj",
    "signals": "trap '' HUP INT USR1 PIPE",
    "empty": "exec env -i /bin/sh -c \"$c\"",
    "odd": "A=\"$(printf 'a\\nb')\" B=\"'\\\"$\" ; export A B",
    "no PATH": "PATH=; export PATH",
}
STATE = """
- do:
    code: |
      import resource, locale
      u = os.umask(0); os.umask(u)
      result['state'] = [u, sorted(i for i in os.environ.items() if i[0][:4] != 'SSH_' and i[0] != '_'),
          [resource.getrlimit(r) for r in range(16)], [str(signal.getsignal(n)).split(' at ')[0] for n in range(1, 32)],
          sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), os.nice(0), open('/proc/self/oom_score_adj').read(),
          open('/proc/self/cgroup').read(), time.tzname, sys.getfilesystemencoding(), sys.stdout.encoding, list(sys.flags)[:9],
          [locale.setlocale(c) for c in (locale.LC_CTYPE, locale.LC_TIME)], sys.dont_write_bytecode, sys.stdout.errors]
- shell: umask; ulimit -a; echo "$PATH|$HOME|$LANG|$LC_ALL|$TZ|$A|$B|${PYTHONHASHSEED-unset}"
  ignore_errors: true
- raw: umask; nice
  ignore_errors: true
- file: {path: /dev/shm/churten-umask, state: touch}
- file: {path: /dev/shm/churten-umask, state: absent}
- copy: {content: "x", dest: /dev/shm/churten-umask}
  ignore_errors: true
- file: {path: /dev/shm/churten-umask, state: absent}
"""


@pytest.mark.row("B9")
@pytest.mark.parametrize("name", list(WRAPS))
def test_environments(run, lab, name):
    """A module sees what sshd gave, whatever that is."""
    with wrapped(lab, WRAPS[name]):
        run.same(STATE)


@pytest.mark.row("B9")
@pytest.mark.parametrize("text", ["print('hello from site')", "import sys; sys.stderr.write('site\\n')", "raise RuntimeError('no')", "import os; os._exit(4)"])
def test_sitecustomize(run, lab, text):
    """One that prints, or crashes the interpreter."""
    folder = lab.dir / "site"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(text + "\n")
    try:
        with wrapped(lab, f"PYTHONPATH={folder}; export PYTHONPATH"):
            run.same("- command: echo x\n  ignore_errors: true\n- raw: echo raw\n- ping:\n  ignore_errors: true\n")
    finally:
        shutil.rmtree(folder)


@pytest.mark.row("B10")
@pytest.mark.parametrize("what", ["no proc", "hidepid", "no shm"])
def test_nothing_special_is_needed(run, lab, what):
    """Neither /proc nor /dev/shm."""
    before = "mount --make-rprivate /\n"
    before += {
        "no proc": "mount -t tmpfs tmpfs /proc\n",
        "hidepid": "mount -t proc -o hidepid=2 proc /proc\n",
        "no shm": "mount -t tmpfs -o mode=000 tmpfs /dev/shm\n",
    }[what]
    with changed(lab, before):
        _, ours = run.same(COMMON + "- command: echo x\n- shell: echo $$ | wc -l\n")
    assert set(reasons(ours)) == {"the built-in plugin gives it a terminal"} and set(statuses(ours).values()) == {"ok"}


@pytest.mark.row("B11")
@pytest.mark.parametrize("clock", ["1970", "jump"])
def test_clocks(run, lab, tmp_path, clock):
    """No timer of the agent uses the wall clock."""
    lib = lab.dir / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(lib), Path(__file__).with_name("clock.c"), "-ldl"], check=True)
    text = """
- do: {code: "result['year'] = time.localtime().tm_year < 2020"}
  name: year
- command: sleep 1.5
  name: sleep
- shell: (sleep 0.05; echo late) & echo early
  name: late
- command: sleep 30
  name: timeout
  timeout: 2
  ignore_errors: true
- shell: head -c 3000000 /dev/zero | tr '\\0' x | wc -c
  name: much
- ping:
  name: after
"""
    try:
        with wrapped(lab, f"CHURTEN_CLOCK={clock} LD_PRELOAD={lib}; export CHURTEN_CLOCK LD_PRELOAD"):
            begun = time.monotonic()
            ours = run(text)
            assert time.monotonic() - begun < 60
    finally:
        lib.unlink()
    assert [line["status"] for line in ours.results] == ["ok", "ok", "ok", "failed", "ok", "ok"], ours.text[-3000:]
    assert ours.one("late")["result"]["stdout_lines"] == ["early", "late"]
    assert ours.one("year")["result"]["year"] is (clock == "1970") or clock == "jump"
    assert not reasons(ours)

