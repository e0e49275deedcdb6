# SPDX-License-Identifier: GPL-3.0-or-later
"""The standing child (churten/agent/standing.py): a module that runs in a process that has run it before finds, and leaves, what it would in a new one."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys

import agent_client
import pytest
from agent_client import AgentClient, build, wait_until
from test_agent import MODULE, PROBE, PROBE_IMPORTS, become, children_of, gone, make_module, plain, start_sub

PYTHON = os.environ.get("CHURTEN_TEST_PYTHON", sys.executable)  # the target's


@pytest.fixture
def agent():
    with AgentClient(PYTHON) as client:
        yield client


@pytest.fixture
def custom(tmp_path):
    """A module from the lines of its main()."""

    def make(body, imports=""):
        lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
        return make_module(tmp_path, MODULE.format(imports=imports, body=lines))

    return make


def arguments(wrapper, **given):
    params = json.loads(wrapper.params)
    params["ANSIBLE_MODULE_ARGS"].update(given)
    return json.dumps(params).encode()


def run(client, wrapper, **given):
    """Runs it so that its child may stand afterwards."""
    done = client.run(wrapper, stays="1", params=arguments(wrapper, **given))
    assert not done.failed, done
    return done


def stand(client, wrapper, **given):
    """Until one stands: the first run teaches the agent imports, the second is a child that may stay. Its pid."""
    run(client, wrapper, **given)
    run(client, wrapper, **given)
    (pid,) = children_of(client.hello["pid"])
    return pid


# What a module may do to its process, and whether the child goes for it.
DIRT = {
    "nothing": ("pass", False),
    "working directory": ("os.chdir('/')", False),
    "umask": ("os.umask(0o777)", False),
    "global of module_utils": ("basic.FILE_ATTRIBUTES = None; basic.dirt = 1", False),
    "container of module_utils": ("basic.FILE_COMMON_ARGUMENTS['dirt'] = 1; basic.FILE_COMMON_ARGUMENTS['mode']['dirt'] = 1", False),
    "warning": ("module.warn('dirt'); module.deprecate('dirt', version='9.9')", False),
    "argument's default": ("basic.AnsibleModule.__init__.__kwdefaults__", False),
    "temporary folder": ("tempfile.tempdir = '/var/tmp'", False),
    "locale": ("locale.setlocale(locale.LC_ALL, 'C')", False),
    "command": ("subprocess.call(['/bin/true'])", False),
    "daemon": ("subprocess.call(['setsid', 'sh', '-c', 'sleep 20 & exit'])", False),
    "at exit": ("import atexit; atexit.register(print, 'dirt')", False),
    "signal of module_utils": ("f = lambda *_: None; f.__module__ = 'ansible.module_utils.x'; signal.signal(signal.SIGUSR1, f)", False),
    "environment": ("os.environ['DIRT'] = '1'", True),
    "signal": ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", True),
    "mask": ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])", True),
    "timer": ("signal.setitimer(signal.ITIMER_REAL, 30)", True),
    "limit": ("resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))", True),
    "nice": ("os.nice(1)", True),
    "module": ("sys.modules['dirt'] = sys", True),
    "import": ("import colorsys", True),
    "path hook": ("sys.path_hooks.append(str)", True),
    "class": ("basic.AnsibleModule.dirt = 1", True),
    "standard library": ("os.dirt = 1", True),
    "builtins": ("import builtins; builtins.dirt = 1", True),
    "descriptor": ("os.open('/dev/null', 0)", True),
    "standard output": ("os.dup2(os.dup(1), 1); os.dup2(os.open('/dev/null', 1), 2)", True),
    "thread": ("import _thread; _thread.start_new_thread(time.sleep, (0.5,))", True),
    "child": ("result['left'] = subprocess.Popen(['sleep', '20'], stdout=-3, stderr=-3).pid", True),
    "background": ("subprocess.call(['sh', '-c', 'sleep 20 > /dev/null 2>&1 &'])", True),
    "recursion limit": ("sys.setrecursionlimit(2000)", True),
    "garbage": ("gc.disable()", True),
}
SEEN = """
result['dirt'] = [hasattr(basic, 'dirt'), hasattr(os, 'dirt'), hasattr(basic.AnsibleModule, 'dirt'), 'dirt' in sys.modules]
result['common'] = repr(basic.FILE_COMMON_ARGUMENTS)
result['pid'] = os.getpid()
result['group'] = os.getpgrp() == os.getpid()
result['priority'] = os.getpriority(os.PRIO_PROCESS, 0)
"""


@pytest.fixture
def dirty(custom):
    """A module that says what it finds, then does `arg`."""
    return custom(PROBE + SEEN + "exec(module.params['arg'] or '')", PROBE_IMPORTS)


def seen(done):
    assert done.rc == 0, done
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(b"{")]
    found = json.loads(line)
    found["fds"] = [fd for fd in found["fds"] if int(fd) < 3]  # the way to the agent is beside them
    for name in ("left", "warnings", "deprecations", "invocation"):
        found.pop(name, None)
    return found.pop("pid"), found


def end_sleepers():
    subprocess.run(["pkill", "-f", "^sleep 20$"])


@pytest.mark.row("C7")
@pytest.mark.parametrize("name", DIRT)
def test_the_next_one_finds_a_new_process(agent, dirty, name):
    dirt, ends = DIRT[name]
    agent.run(dirty)
    new, clean = seen(run(agent, dirty, arg=""))
    first, found = seen(run(agent, dirty, arg=dirt))
    assert found == clean
    second, found = seen(run(agent, dirty, arg=""))
    assert found == clean
    assert new == first and (first == second) != ends
    if name not in ("child", "background"):
        assert run(agent, dirty, arg="").stderr == b""
    end_sleepers()


def test_what_a_new_process_finds(agent, custom):
    """A module that stands sees the same as under stock."""
    wrapper = custom(PROBE, PROBE_IMPORTS)
    _, out, _ = wrapper.stock(PYTHON)
    stock = json.loads(out)
    pid = stand(agent, wrapper)
    found = json.loads(run(agent, wrapper).stdout)
    assert children_of(agent.hello["pid"]) == [pid]
    for one in (stock, found):
        one["fds"] = sorted(int(fd) for fd in one["fds"] if int(fd) < 3)
        for name in ("_", "PWD", "OLDPWD", "PYTEST_CURRENT_TEST"):
            one["env"].pop(name, None)
        one.pop("zip"), one.pop("modules")
    assert found == stock


ENDINGS = {
    "normal": "pass",
    "status": "sys.exit(3)",
    "text": "sys.exit('words')",
    "none": "sys.exit()",
    "large status": "sys.exit(2**70)",
    "failure": "module.fail_json(msg='failed', a=[1])",
    "exception": "raise RuntimeError('broken')",
    "base exception": "raise GeneratorExit()",
    "interrupt": "raise KeyboardInterrupt()",
    "output": "sys.stdout.write('x' * 3000000); sys.stderr.write('y' * 100000)",
    "child's output": "subprocess.call(['sh', '-c', 'echo out; echo err >&2'])",
    "left open": "f = open(module.params['arg'], 'w'); f.write('left'); me = [f]; me.append(me); sys.exit(0)",
    "at exit": "import atexit; atexit.register(print, 'last words')",
    "hard": "sys.stdout.flush(); os._exit(7)",
    "killed": "os.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("name", ENDINGS)
def test_endings(agent, custom, tmp_path, name):
    wrapper = custom(ENDINGS[name], "import os, subprocess, sys")
    file = tmp_path / "file"
    wanted = None
    for stays in ("", "1", "1", "1", "1"):
        done = agent.run(wrapper, stays=stays, params=arguments(wrapper, arg=str(file)))
        ended = done.rc, done.signal, plain(done.stdout), plain(done.stderr), done.truncated
        wanted = wanted or ended
        assert ended == wanted, stays
        if name == "left open":
            assert file.read_text() == "left"
            file.unlink()


MODULES = [
    ("ping", {"data": "h\u00e9"}),
    ("ping", {"data": "crash"}),
    ("command", {"_raw_params": "printf 'a b\\n'; id -u"}),
    ("command", {"_raw_params": "echo $HOME; umask; pwd; exit 4", "_uses_shell": True, "chdir": "/usr"}),
    ("command", {"_raw_params": "cat", "stdin": "fed"}),
    ("command", {"_raw_params": "/no/such/program"}),
    ("command", {"_raw_params": "kill $$", "_uses_shell": True}),
    ("command", {"_raw_params": "kill 0", "_uses_shell": True}),
    ("command", {}),
    ("stat", {"path": "PATH"}),
    ("file", {"path": "PATH", "state": "touch", "modification_time": "preserve", "access_time": "preserve", "mode": "0604"}),
    ("file", {"path": "PATH/none", "state": "file"}),
    ("slurp", {"src": "PATH"}),
    ("lineinfile", {"path": "PATH", "line": "more"}),
    ("lineinfile", {"path": "PATH", "regexp": "(", "line": "more"}),
    ("blockinfile", {"path": "PATH", "block": "a\nb"}),
    ("replace", {"path": "PATH", "regexp": "a", "replace": "b"}),
    ("find", {"paths": "FOLDER", "file_type": "any"}),
    ("getent", {"database": "passwd", "key": "root"}),
    ("async_status", {"jid": "1.2", "_async_dir": "FOLDER"}),
]


@pytest.mark.parametrize("name, args", MODULES, ids=lambda value: value if isinstance(value, str) else "-".join(value) or "nothing")
def test_core_modules(agent, tmp_path, name, args):
    (tmp_path / "f").write_text("a line\n")
    given = {k: v.replace("PATH", str(tmp_path / "f")).replace("FOLDER", str(tmp_path)) if isinstance(v, str) else v for k, v in args.items()}
    wrapper = build(name, given)
    agent.run(wrapper)  # what changes a file does it now
    results = []
    for stays in ("", "1", "1", "1"):
        done = agent.run(wrapper, stays=stays)
        out = re.sub(rb'"(a|m|c)time": [0-9.]+|\b[0-9]{3,7}\b', b"", plain(done.stdout))  # also pids, in what a killed one leaves
        results.append((done.rc, done.signal, out, plain(done.stderr)))
    assert results[1:] == results[:1] * 3
    alive = "kill 0" not in str(args)
    assert len(children_of(agent.hello["pid"])) == alive


def test_they_change_what_they_should(agent, tmp_path):
    """Other parameters each time."""
    path = tmp_path / "f"
    wrapper = build("lineinfile", {"path": str(path), "create": True})
    for number in range(6):
        run(agent, wrapper, line=f"line {number}")
    assert path.read_text() == "".join(f"line {number}\n" for number in range(6))
    wrapper = build("file", {"path": str(path)})
    for mode in ("0600", "0640", "0604", "0755"):
        done = json.loads(run(agent, wrapper, mode=mode).stdout)
        assert done["changed"] and path.stat().st_mode & 0o7777 == int(mode, 8)
        assert json.loads(run(agent, wrapper, mode=mode).stdout)["changed"] is False


def test_who_may_stand(agent, custom):
    """Only who is asked to, in its own environment and with its own limit, for its own payload."""
    body = "result['pid'] = os.getpid(); result['env'] = os.environ.get('A'); result['limit'] = resource.getrlimit(7)[0]"
    one, other = custom(body, "import os, resource"), custom(body, "import os, resource")

    def pid(wrapper, **change):
        done = json.loads(agent.run(wrapper, **{"stays": "1", **change}).stdout)
        return done["pid"], done["env"], done["limit"]

    for wrapper in (one, other):
        pid(wrapper), pid(wrapper)
    first, _, limit = pid(one)
    assert pid(one)[0] == first != pid(other)[0]
    assert pid(one, stays="")[0] != first
    with_a = pid(one, env="A=1")
    assert with_a[1] == "1" and with_a == pid(one, env="A=1") != pid(one, env="A=2")
    assert pid(one)[:2] == (first, None)
    limited = pid(one, rlimit_nofile=64)
    assert limited[2] == 64 and limited[0] != first
    assert pid(one) == (first, None, limit)
    assert len(children_of(agent.hello["pid"])) <= 4


def test_two_at_once(agent, custom):
    wrapper = custom("time.sleep(1); result['pid'] = os.getpid()", "import os, time")
    stand(agent, wrapper)
    for _ in range(2):
        requests = [agent.run_request(wrapper, stays="1") for _ in range(3)]
        pids = {json.loads(agent.wait(request).stdout)["pid"] for request in requests}
        assert len(pids) == 3
    assert len(children_of(agent.hello["pid"])) == 2


@pytest.mark.row("C10")
@pytest.mark.parametrize("way", ["cancel", "timeout", "killed while it stands", "stopped while it stands"])
def test_killing(agent, custom, tmp_path, way):
    """The whole group dies with it, and nothing of another run."""
    wrapper = custom("module.run_command(module.params['arg'], use_unsafe_shell=True); result['pid'] = os.getpid()", "import os")
    pid = stand(agent, wrapper, arg="true")
    if way.endswith("stands"):
        os.kill(pid, signal.SIGKILL if way.startswith("killed") else signal.SIGSTOP)
        if way.startswith("stopped"):  # it is no better than one that hangs: what has a limit ends by it
            done = agent.run(wrapper, stays="1", timeout_ms=500, params=arguments(wrapper, arg="true"))
            assert (done.rc, done.signal) in ((-1, 9), (-1, 15))
    else:
        script = f"sleep 601 & echo $$ $! > {tmp_path}/pids; wait"
        request = agent.run_request(wrapper, stays="1", timeout_ms=500 if way == "timeout" else 0, params=arguments(wrapper, arg=script))
        assert wait_until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().endswith("\n"))
        if way == "cancel":
            agent.send("CANCEL", b"", request)
        done = agent.wait(request)
        assert (done.rc, done.signal) == (-1, 15)
        assert wait_until(lambda: all(gone(int(one)) for one in (tmp_path / "pids").read_text().split()))
    done = run(agent, wrapper, arg="true")
    assert done.rc == 0 and json.loads(done.stdout)["pid"] != pid
    assert wait_until(lambda: gone(pid))


@pytest.mark.parametrize("way", ["closed", "killed"])
def test_none_is_left(custom, way):
    wrapper = custom("pass")
    client = AgentClient(PYTHON)
    pid = stand(client, wrapper)
    if way == "killed":
        os.kill(int(client.hello["pid"]), signal.SIGKILL)
        client.process.wait(10)
    client.close()
    assert wait_until(lambda: gone(pid))


def test_an_idle_one_goes(custom, tmp_path, monkeypatch):
    """After some seconds; and the agent goes on."""
    bootstrap = agent_client.bootstrap()
    source = bootstrap._agent_source().replace("IDLE = 60.0", "IDLE = 0.3")
    monkeypatch.setattr(bootstrap, "_agent_source", lambda: source)
    monkeypatch.setattr(bootstrap, "_input_parts", bootstrap._make_parts)
    wrapper = custom("pass")
    with AgentClient(PYTHON) as client:
        pid = stand(client, wrapper)
        assert wait_until(lambda: gone(pid))
        assert run(client, wrapper).rc == 0
        assert len(children_of(client.hello["pid"])) == 1


def test_a_large_request_gets_a_new_child(agent, custom):
    wrapper = custom("result['pid'] = os.getpid(); result['size'] = len(module.params['arg'])", "import os")
    pid = stand(agent, wrapper, arg="")
    done = json.loads(run(agent, wrapper, arg="x" * 200000).stdout)
    assert done["pid"] != pid and done["size"] == 200000
    assert pid in children_of(agent.hello["pid"])


def test_packages_installed_meanwhile(agent, custom, tmp_path):
    """The agent forgets what it has imported: so do those that stand."""
    wrapper = custom("result['pid'] = os.getpid()", "import os")
    pid = stand(agent, wrapper)
    code = "import os, site; os.utime(next(path for path in site.getsitepackages() if os.path.isdir(path)))"
    subprocess.run([PYTHON, "-c", code], check=True)
    assert json.loads(run(agent, wrapper).stdout)["pid"] != pid


def test_for_another_account(agent):
    started = agent.wait(start_sub(agent, become("COMMAND", PYTHON), become_success="BECOME-SUCCESS-abc"))
    assert started.kind == "STARTED", started
    items = [item.decode() for item in started.items]
    sub = dict(zip(items[::2], items[1::2]))["pid"]
    ping = build("ping")
    for _ in range(4):
        done = agent.run(ping, agent=1, stays="1")
        assert json.loads(done.stdout)["ping"] == "pong"
    (pid,) = children_of(sub)
    agent.send("CLOSE", b"", 0, 1)
    assert wait_until(lambda: gone(pid))


ACTS = ("/bin/sh -c 'echo ~root'", "/bin/sh -c '( umask 77 && mkdir -p \"` echo {0} `\"&& mkdir \"` echo {0}/{1} `\" && echo {1}=\"` echo {0}/{1} `\" )'")
NAME = "ansible-tmp-1700000000.1-2-3"


@pytest.mark.parametrize("answer", ["foretold", "cannot"])
def test_commands_around_the_temporary_folder(agent, tmp_path, answer):
    """A child that stands does them; what it cannot, the shell does."""
    ping = build("ping")
    pid = stand(agent, ping)
    agent.exec(ACTS[0], shell="login")  # asks for the probe
    assert wait_until(lambda: children_of(agent.hello["pid"]) == [pid])
    parent = tmp_path / "parent"
    if answer == "cannot":
        (parent / NAME).mkdir(parents=True)
    done = agent.exec(ACTS[1].format(parent, NAME), shell="login")
    if answer == "cannot":
        assert done.rc == 1 and b"File exists" in done.stderr
    else:
        assert (done.rc, done.stdout) == (0, f"{NAME}={parent}/{NAME}\n".encode())
        assert (parent / NAME).stat().st_mode & 0o777 == 0o700
        removed = agent.exec(f"/bin/sh -c 'rm -f -r {parent}/{NAME}/ > /dev/null 2>&1'", shell="login")
        assert removed.rc == 0 and not (parent / NAME).exists()
    assert children_of(agent.hello["pid"]) == [pid]
    assert run(agent, ping).rc == 0


def test_time_zone(agent, custom):
    wrapper = custom("result['tz'] = time.tzname", "import time")
    pid = stand(agent, wrapper)
    for zone in ("Asia/Tokyo", "Europe/Berlin"):
        for _ in range(3):
            done = agent.run(wrapper, stays="1", env=f"TZ={zone}")
            assert json.loads(done.stdout)["tz"] == list(time_zone(zone))
    assert pid in children_of(agent.hello["pid"])


def time_zone(name):
    done = subprocess.run([PYTHON, "-c", "import time; print(*time.tzname)"], env={**os.environ, "TZ": name}, capture_output=True, text=True)
    return done.stdout.split()


def copied(client, tmp_path, known):
    """The result of a copy, and who stands after it."""
    source, dest = tmp_path / "source", tmp_path / "dest"
    source.write_bytes(b"content" * 30000)
    dest.unlink(missing_ok=True)
    wrapper = build("copy", {"src": str(source), "dest": str(dest)})
    done = client.run(wrapper, stays="1", known=known)
    assert dest.read_bytes() == b"content" * 30000
    return json.loads(done.stdout), children_of(client.hello["pid"])


def test_an_md5_that_is_known(agent, tmp_path):
    """Told what goes with a SHA-1, the module reads the file once; the child is as good as new after it."""
    content = b"content" * 30000
    sha1, md5 = hashlib.sha1(content).hexdigest(), hashlib.md5(content).hexdigest()
    nonsense = "0" * 32  # shows who has said it
    for _ in range(2):
        assert copied(agent, tmp_path, "")[0]["md5sum"] == md5
    _, before = copied(agent, tmp_path, "")
    found, after = copied(agent, tmp_path, f"{sha1} {nonsense}")
    assert (found["checksum"], found["md5sum"], found["changed"]) == (sha1, nonsense, True)
    assert after == before and len(before) == 1
    for known in ("", f"{'1' * 40} {nonsense}", "x", f"{sha1} {nonsense} x"):
        found, after = copied(agent, tmp_path, known)
        assert (found["checksum"], found["md5sum"], after) == (sha1, md5, before), known


def test_an_md5_is_known_only_of_the_file_as_it_was(tmp_path):
    from ansible.module_utils import basic

    from churten.agent import run as agent_code

    path = tmp_path / "file"
    path.write_bytes(b"content")
    sha1 = hashlib.sha1(b"content").hexdigest()
    digest = agent_code.spare_md5(basic, basic.AnsibleModule.digest_from_file, sha1, "known")
    assert digest(None, str(path), "md5") == hashlib.md5(b"content").hexdigest()
    assert digest(None, str(path), "sha1") == sha1
    assert digest(None, str(path), "md5") == "known"
    assert digest(None, str(path), "sha256") == hashlib.sha256(b"content").hexdigest()
    path.write_bytes(b"CONTENT")
    os.utime(path, (1, 1))
    assert digest(None, str(path), "md5") == hashlib.md5(b"CONTENT").hexdigest()
    assert digest(None, str(path), "sha1") != sha1
    assert digest(None, str(path), "md5") == hashlib.md5(b"CONTENT").hexdigest()
    assert digest(None, str(tmp_path / "none"), "md5") is None
