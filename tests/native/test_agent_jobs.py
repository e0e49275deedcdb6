# SPDX-License-Identifier: GPL-3.0-or-later
"""Asynchronous jobs (churten/agent/jobs.py): core's async_wrapper, run by the agent, leaves the file that it leaves as a program; the module finds the same.

Stock is the pair of programs that core would have put on the target, started with the same words.
"""

import contextlib
import glob
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from io import BytesIO

import pytest
from agent_client import AgentClient, Exit, build, pack, wait_until
from test_agent import MODULE, PROBE, PROBE_IMPORTS, become, changed_zip, gone, make_module, plain, start_sub

PYTHON = os.environ.get("CHURTEN_TEST_PYTHON", sys.executable)  # the target's
WRAPPER = "ansible/modules/async_wrapper.py"


@pytest.fixture
def agent():
    # (with nothing in its environment that only the C library of this process knows)
    with AgentClient(PYTHON, env=dict(os.environ)) as client:
        yield client


@pytest.fixture(scope="module")
def async_wrapper():
    return build("async_wrapper", {})


def words_of(async_wrapper, tmp, limit, interpreter):
    """What core gives its program: from 2.22 on the module's whole command."""
    program = str(tmp / "AnsiballZ_x.py")
    with zipfile.ZipFile(BytesIO(async_wrapper.zip)) as file:
        is_new = b"<preserve_tmp> <module_path>" in file.read(WRAPPER)
    preserve = str("-tmp-" not in str(tmp)).lower()
    return [str(tmp / "async_wrapper.py"), "j123", str(limit), *([preserve, program, interpreter, program] if is_new else [program, "_"])]


class Folder:
    """Where jobs of one test are: core's temporary folder and the job files."""

    def __init__(self, path):
        self.path, self.count = path, 0

    def new(self):
        self.count += 1
        where = self.path / f"ansible-tmp-{self.count}"
        where.mkdir()
        return where


class Job:
    """A start that was made: its answer, and its file."""

    def __init__(self, folder, tmp, rc, out, err):
        self.folder, self.tmp, self.rc, self.out, self.err = folder, tmp, rc, out, err
        self.answer, self.session = json.loads(out), None

    def file(self):
        with open(self.answer["results_file"]) as file:
            return json.loads(file.read())

    def result(self, seconds=20):
        """What the file says at last."""
        assert wait_until(lambda: self.file().get("finished", True), seconds), self.file()
        return self.file()

    def processes(self):
        """Pids of its session, as the module said its own (SAY): the watcher, its child, the module's process and what that started."""
        if self.session is None:
            said = self.tmp.parent / f"{self.tmp.name}.pid"
            assert wait_until(lambda: said.exists() and said.read_text().endswith("."))
            self.session = os.getsid(int(said.read_text()[:-1]))
        found = []
        for path in glob.glob("/proc/[0-9]*/stat"):
            with contextlib.suppress(OSError), open(path) as file:
                fields = file.read().rpartition(")")[2].split()
                if int(fields[3]) == self.session and fields[0] != "Z":
                    found.append(int(path.split("/")[2]))
        return found


SAY = "open(os.environ['JOB_FOLDER'] + '.pid', 'w').write('%d.' % os.getpid())\n"


@pytest.fixture
def stock(tmp_path, async_wrapper):
    folder = Folder(tmp_path / "stock")
    folder.path.mkdir()

    def start(wrapper, limit=30, env=None):
        tmp = folder.new()
        (tmp / "async_wrapper.py").write_bytes(async_wrapper.text)
        program = tmp / "AnsiballZ_x.py"
        program.write_bytes(wrapper.text.replace(b"/usr/bin/python3", PYTHON.encode(), 1))
        words = [PYTHON, *words_of(async_wrapper, tmp, limit, PYTHON)]
        environ = {**os.environ, "ANSIBLE_ASYNC_DIR": str(folder.path / "jobs"), "JOB_FOLDER": str(tmp), **(env or {})}
        done = subprocess.run(words, capture_output=True, env=environ, stdin=subprocess.DEVNULL, timeout=30)
        return Job(folder, tmp, done.returncode, done.stdout, done.stderr)

    return start


def job_request(client, folder, wrapper, async_wrapper, limit=30, env=None, agent=0, tmp=None, umask="", limits="", environ="", **change):
    """The number of the RUN that starts `wrapper` as a job, and the folder of its programs."""
    with zipfile.ZipFile(BytesIO(async_wrapper.zip)) as more, zipfile.ZipFile(BytesIO(wrapper.zip)) as file:
        missing = {name: more.read(name) for name in more.namelist() if name not in file.namelist()}
    tmp = tmp or folder.new()
    words = words_of(async_wrapper, tmp, limit, PYTHON)
    data = changed_zip(wrapper.zip, missing)
    key = f"job-{wrapper.key()}"
    if (agent, key) not in client.keys:
        client.send("PAYLOAD", pack(key, data), 0, agent)
        client.keys[agent, key] = True
    environment = {"ANSIBLE_ASYNC_DIR": str(folder.path / "jobs"), "JOB_FOLDER": str(tmp), **(env or {})}
    fields = dict(module=wrapper.module, params=wrapper.params, form=wrapper.form)
    fields.update(change)
    job = pack("job", async_wrapper.profile, umask, limits, environ, *words)
    body = pack(
        key, fields["module"], fields["params"], wrapper.profile, "\0".join(f"{k}={v}" for k, v in environment.items()),
        0, 0, fields["form"], "", "", "1", "", job,
    )  # fmt: skip
    return client.request("RUN", body, agent), tmp


@pytest.fixture
def start(tmp_path, async_wrapper):
    """Starts a job by an agent."""
    folder = Folder(tmp_path / "agent")
    folder.path.mkdir()
    folder.path.chmod(0o777)

    def begin(client, wrapper, **options):
        request, tmp = job_request(client, folder, wrapper, async_wrapper, **options)
        done = client.wait(request)
        assert isinstance(done, Exit) and not done.failed, done
        return Job(folder, tmp, done.rc, done.stdout, done.stderr)

    begin.folder = folder
    return begin


@pytest.fixture
def custom(tmp_path):
    """A module from the lines of its main()."""

    def make(body, imports="import os"):
        lines = "".join(f"    {line}\n" for line in body.strip("\n").splitlines())
        return make_module(tmp_path, MODULE.format(imports=imports, body=lines))

    return make


def neutral(value, job):
    """Without what differs from job to job."""
    text = json.dumps(value).replace(str(job.folder.path), "PLACE").replace(os.path.basename(job.tmp), "TMP")
    text = re.sub(r"j123\.\d+", "JID", text)
    text = re.sub(r'"child_pid": \d+', '"child_pid": 0', text)
    # Up to core 2.18 a trace begins with the lines of the wrapper program, where there is one.
    text = re.sub(r'  File \\"[^"]*AnsiballZ_x\.py\\", line \d+, in [^\\]+\\n(?:    [^\\]*\\n)?', "", text)
    return json.loads(plain(text.encode()))


def same_as_stock(agent, start, stock, wrapper, seconds=20, **options):
    """Two jobs of the agent (the first teaches it imports) and one of stock end alike; returns the last one and stock's."""
    theirs = stock(wrapper, **options)
    for _ in range(2):
        mine = start(agent, wrapper, **options)
        assert (mine.rc, mine.err) == (theirs.rc, theirs.err)
        assert neutral(mine.answer, mine) == neutral(theirs.answer, theirs)
        assert neutral(mine.result(seconds), mine) == neutral(theirs.result(seconds), theirs)
    return mine, theirs


# What a module may do, in the words of its main().
WAYS = {
    "a result": "result['arg'] = 'h\\u00e9\\u20ac'",
    "its own exit": "module.exit_json(changed=True, stdout='x')",
    "a failure": "module.fail_json(msg='no')",
    "an exception": "raise ValueError('no')",
    "an exit": "sys.exit(3)",
    "garbage before and after": "print('noise'); print('{\"a\": 1}'); print('trailing'); sys.exit(0)",
    "no JSON": "print('nothing'); sys.exit(0)",
    "nothing at all": "os._exit(0)",
    "bytes that are no text": "os.write(1, b'\\xff\\xfe{\"a\": \"\\xe4\"}\\n'); os._exit(0)",
    "words on stderr": "sys.stderr.write('word\\n'); os.write(2, b'\\xff\\n')",
    "much output": "result['much'] = 'x' * 3000000; os.write(2, b'y' * 200000)",
    "killed": "os.kill(os.getpid(), 9)",
    "ended": "os.kill(os.getpid(), 15)",
    "at exit": "import atexit; atexit.register(lambda: sys.stderr.write('late\\n'))",
    "a command": "result['done'] = module.run_command(['sh', '-c', 'cat; echo out; echo err >&2; exit 4'])",
    "a thread": "import threading; threading.Thread(target=lambda: (time.sleep(0.3), sys.stderr.write('thread\\n'))).start()",
    "another subprocess": "result['out'] = subprocess.check_output(['/bin/echo', 'x']).decode()",
    "multiprocessing": "import multiprocessing; p = multiprocessing.Process(target=os.getpid); p.start(); p.join(); result['rc'] = p.exitcode",
    "a syslog line": "import syslog; syslog.syslog('x'); syslog.openlog('y')",
}


@pytest.mark.parametrize("name", WAYS)
def test_the_file_is_as_under_stock(agent, start, stock, custom, name):
    same_as_stock(agent, start, stock, custom(WAYS[name], PROBE_IMPORTS))


def test_what_the_module_finds(agent, start, stock, custom, async_wrapper):
    """The same interpreter, process and surroundings."""
    more = """
result['session'] = [os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid()]
result['nice'] = os.getpriority(os.PRIO_PROCESS, 0)
result['tty'] = open('/proc/self/stat').read().rpartition(')')[2].split()[4]
result['argv_given'] = sys.argv[1:]
result['popen'] = subprocess.Popen.__name__ + subprocess.Popen.__module__
"""
    wrapper = custom(PROBE + more, PROBE_IMPORTS)
    theirs = stock(wrapper)
    for _ in range(2):
        mine = start(agent, wrapper)
    found, wanted = mine.result(), theirs.result()
    assert "msg" not in found and "msg" not in wanted
    with zipfile.ZipFile(BytesIO(async_wrapper.zip)) as file:  # what a job's archive has in addition
        found["zip"] = [name for name in found["zip"] if name in wanted["zip"] or name not in file.namelist()]
    found["modules"] = [name for name in found["modules"] if name != "modules" or name in wanted["modules"]]
    for one, job in ((found, mine), (wanted, theirs)):
        environment = one.pop("env")
        assert environment.pop("JOB_FOLDER") == str(job.tmp)
        for name in ("_", "OLDPWD", "SHLVL", "PWD", "ANSIBLE_ASYNC_DIR", "PYTEST_CURRENT_TEST"):
            environment.pop(name, None)
        one["names"] = environment
    assert neutral(found, mine) == neutral(wanted, theirs)


def test_the_processes_are_as_under_stock(agent, start, stock, custom):
    """A watcher that is nobody's child, in a session of its own; in another group its child and the module's process. None has anything of the agent's."""
    wrapper = custom("sys.stdin.read()\n" + SAY + "time.sleep(60)", "import os, time")

    def shape(job):
        assert wait_until(lambda: len(job.processes()) == 3)
        pids, rows = job.processes(), []
        stats = {}
        for pid in pids:
            with open(f"/proc/{pid}/stat") as file:
                stats[pid] = [int(field) for field in file.read().rpartition(")")[2].split()[1:6]]
        (watcher,) = (pid for pid in pids if stats[pid][0] not in pids)
        (middle,) = (pid for pid in pids if stats[pid][0] == watcher)
        (module,) = (pid for pid in pids if stats[pid][0] == middle)
        names = {watcher: "watcher", middle: "middle", module: "module", stats[watcher][1]: "left"}
        for pid in (watcher, middle, module):
            parent, group, session, tty, foreground = stats[pid]
            links = {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
            streams = [re.sub(r"\d+", "N", links.pop(fd)) for fd in ("0", "1", "2")]
            with open(f"/proc/{pid}/status") as file:
                masks = [line for line in file if line.startswith(("SigB", "SigC", "SigI", "SigP", "Shd", "Umask"))]
            # (whether async_wrapper gets its child into a group of its own before that starts the module is chance)
            rows.append([names.get(parent, "somebody"), pid == module or names.get(group), names.get(session, "?"), tty, foreground, streams, masks])
            others = [re.sub(r"\d+", "N", link) for link in links.values()]
            if pid == module:
                assert others == []
            elif pid == watcher:
                assert [link for link in others if "payload" not in link] == []
            else:
                assert [link for link in others if "payload" not in link] == ["pipe:[N]"] * 2
        for pid in (watcher, middle, module):
            os.kill(pid, signal.SIGKILL)
        return rows

    start(agent, wrapper)
    assert shape(start(agent, wrapper)) == shape(stock(wrapper))


def test_the_job_file_from_start_to_end(agent, start, stock, custom, tmp_path):
    """While it runs, and where `jobs` was not there before; its permissions, too."""
    body = "while not os.path.exists(%r): time.sleep(0.02)" % str(tmp_path / "go")
    wrapper = custom(body, "import os, time")
    jobs = [stock(wrapper), start(agent, wrapper)]
    seen = [(neutral(job.file(), job), oct(os.stat(job.answer["results_file"]).st_mode), sorted(os.listdir(job.folder.path))) for job in jobs]
    assert seen[0] == seen[1] and jobs[1].file() == {"started": True, "finished": False, "ansible_job_id": jobs[1].answer["ansible_job_id"]}
    assert jobs[1].answer["ansible_job_id"] in os.listdir(jobs[1].folder.path / "jobs")
    (tmp_path / "go").touch()
    assert neutral(jobs[0].result(), jobs[0]) == neutral(jobs[1].result(), jobs[1])
    for job in jobs:
        assert job.answer["_ansible_suppress_tmpdir_delete"]
        assert wait_until(lambda job=job: not job.tmp.exists(), 15), "the watcher removes it"


def test_a_folder_of_another_name_stays(agent, start, custom):
    tmp = start.folder.path / "elsewhere"
    tmp.mkdir()
    job = start(agent, custom(SAY + "time.sleep(1)", "import os, time"), tmp=tmp)
    assert not job.answer["_ansible_suppress_tmpdir_delete"]
    assert job.processes()
    job.result()
    assert wait_until(lambda: not job.processes(), 15) and tmp.exists()


def test_a_job_that_is_too_slow(agent, start, stock, custom, tmp_path):
    """Its group is killed, and the file says so. (Whether the module is in that group is chance, see above: what is not goes on, under stock as well.)"""
    body = SAY + "subprocess.Popen(['sleep', '61']); subprocess.call(['sleep', '61'])"
    wrapper = custom(body, "import os, subprocess")
    jobs = [stock(wrapper, limit=6), start(agent, wrapper, limit=6)]
    assert all(job.processes() for job in jobs)
    ended = [neutral(job.result(), job) for job in jobs]
    assert ended[0] == ended[1] and ended[1]["msg"] == "Timeout exceeded"
    for job in jobs:
        assert wait_until(lambda job=job: not job.tmp.exists(), 15)
        for pid in job.processes():
            os.kill(pid, signal.SIGKILL)


def test_no_folder_for_job_files(agent, start, stock, custom, tmp_path):
    (tmp_path / "file").touch()
    wrapper = custom("pass")
    env = {"ANSIBLE_ASYNC_DIR": str(tmp_path / "file")}
    jobs = [stock(wrapper, env=env), start(agent, wrapper, env=env)]
    answers = [neutral(job.answer, job) for job in jobs]
    assert jobs[0].rc == jobs[1].rc == 1 and answers[0] == answers[1] and answers[0]["failed"]


# ---------------------------------------------------- what a job outlives


def library_folders(job):
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for pid in job.processes() for fd in os.listdir(f"/proc/{pid}/fd")]
    return {link for link in links if "payload" in link}


@pytest.mark.parametrize("way", ["left", "signal", "killed"])
def test_a_job_outlives_its_agent(start, custom, tmp_path, way):
    """And still finds its files, of which it leaves nothing."""
    body = """
while not os.path.exists(%r): time.sleep(0.02)
import ansible.module_utils.service, pkgutil, zipfile
result['source'] = len(pkgutil.get_data('ansible.module_utils', 'service.py')) > 1000
result['zip'] = len(zipfile.ZipFile(__import__('__main__')._modlib_path).namelist()) > 5
""" % str(tmp_path / "go")
    wrapper = custom(SAY + body, "import os, time")
    client = AgentClient(PYTHON)
    job = start(client, wrapper)
    assert wait_until(lambda: len(job.processes()) == 3)
    (folder,) = library_folders(job)
    pid = int(client.hello["pid"])
    if way != "left":
        os.kill(pid, signal.SIGTERM if way == "signal" else signal.SIGKILL)
    client.close()
    assert wait_until(lambda: gone(pid)) and os.listdir(folder)
    (tmp_path / "go").touch()
    found = job.result()
    assert found["source"] and found["zip"], found
    assert wait_until(lambda: not job.processes() and not os.path.exists(folder), 15)


def test_an_agent_outlives_its_jobs(agent, start, custom):
    """The last one to leave removes the files, and that is the agent."""
    wrapper = custom(SAY + "time.sleep(1)", "import os, time")
    job = start(agent, wrapper)
    (folder,) = library_folders(job)
    job.result()
    assert wait_until(lambda: not job.processes(), 15) and os.path.exists(folder)
    assert not agent.run(wrapper).failed
    agent.close()
    assert not os.path.exists(folder)


def test_the_agent_waits_for_no_job(agent, start, custom, tmp_path):
    """It is no child of it: the agent goes on, and ends at once."""
    body = SAY + "while not os.path.exists(%r): time.sleep(0.02)" % str(tmp_path / "go")
    job = start(agent, custom(body, "import os, time"))
    assert len(job.processes()) == 3
    assert agent.exec("echo x").stdout == b"x\n"
    agent.close()
    assert len(job.processes()) == 3 and not job.file()["finished"]
    (tmp_path / "go").touch()
    job.result()


def test_no_process_of_a_job_stands(agent, start, custom):
    """However often its module has run, and though RUN says that it may stay."""
    wrapper = custom("result['pid'] = os.getpid()", "import os")
    pids = {start(agent, wrapper).result()["pid"] for _ in range(4)}
    assert len(pids) == 4
    with open(f"/proc/{agent.hello['pid']}/task/{agent.hello['pid']}/children") as file:
        assert file.read() == ""


# ------------------------------------------------- what only a terminal knows


def limits():
    with open("/proc/self/limits") as file:
        return file.read()


def test_surroundings(agent, start, custom):
    """umask for what is made before the job is a daemon, and the environment."""
    wrapper = custom("result['env'] = dict(os.environ)", "import os")
    environ = {**os.environ, "TERM": "vt100", "SSH_TTY": "/dev/pts/77", "_": "/bin/cat"}
    del environ["HOME"]
    text = "".join(f"{k}={v}\0" for k, v in environ.items())
    job = start(agent, wrapper, umask="0007", environ=text, limits=limits(), env={"TASK": "own", "TERM": "tasks"})
    found = job.result()["env"]
    assert (found["TERM"], found["SSH_TTY"], found["TASK"]) == ("tasks", "/dev/pts/77", "own")
    assert "HOME" not in found and found["_"] != "/bin/cat" and found["PATH"] == os.environ["PATH"]
    assert os.stat(job.folder.path / "jobs").st_mode & 0o777 == 0o770


@pytest.mark.parametrize("name", ["limits", "locale", "PYTHONPATH", "LD_PRELOAD", "umask"])
def test_other_surroundings_are_not_for_an_agent(agent, start, custom, async_wrapper, name):
    """It says so before anything is done."""
    text = "".join(f"{k}={v}\0" for k, v in os.environ.items() if not k.startswith("LC_"))
    odd = {
        "limits": {"limits": limits().replace("Max open files", "Max open doors")},
        "locale": {"environ": text + "LC_ALL=de_DE.ISO-8859-1\0"},
        "umask": {"umask": "u=rwx"},
    }.get(name, {"environ": f"{text}{name}=/x\0"})
    request, tmp = job_request(agent, start.folder, custom("pass"), async_wrapper, **odd)
    done = agent.wait(request)
    assert (done.fail_class, done.started, done.accepted) == ("unsupported", b"0", False)
    assert list(tmp.iterdir()) == [] and not (start.folder.path / "jobs").exists()


def test_an_interpreter_of_its_own_is_not_for_an_agent(agent, start, custom, async_wrapper):
    request, tmp = job_request(agent, start.folder, custom("pass"), async_wrapper, env={"PYTHONUTF8": "1"})
    assert agent.wait(request).fail_class == "unsupported"
    assert list(tmp.iterdir()) == []


def test_no_folder_for_its_programs(agent, start, custom, async_wrapper):
    wrapper = custom("pass")
    request, tmp = job_request(agent, start.folder, wrapper, async_wrapper, tmp=start.folder.path / "missing")
    done = agent.wait(request)
    assert (done.fail_class, done.started, done.accepted) == ("unsupported", b"0", False) and "No such file" in done.message
    (start.folder.path / "taken").mkdir()
    (start.folder.path / "taken" / "AnsiballZ_x.py").write_text("somebody's")
    request, tmp = job_request(agent, start.folder, wrapper, async_wrapper, tmp=start.folder.path / "taken")
    assert agent.wait(request).fail_class == "unsupported"
    assert (tmp / "AnsiballZ_x.py").read_text() == "somebody's"


def test_the_program_in_its_place_starts_nothing(agent, start, custom, tmp_path):
    body = "while not os.path.exists(%r): time.sleep(0.02)" % str(tmp_path / "go")
    job = start(agent, custom(body, "import os, time"))
    (program,) = job.tmp.iterdir()
    with pytest.raises(OSError, match="No such file"):
        subprocess.run([program], check=False)
    done = subprocess.run([PYTHON, program], capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"") and done.stderr
    (tmp_path / "go").touch()
    job.result()


def test_an_async_wrapper_that_starts_something_else(agent, start, custom, async_wrapper, monkeypatch):
    """The module does not run unless it is started as core does it."""
    wrapper = custom("open(%r, 'w')" % str(start.folder.path / "made"))
    with zipfile.ZipFile(BytesIO(async_wrapper.zip)) as file:
        source = file.read(WRAPPER).decode()
    changed = source.replace("script = subprocess.Popen(", "cmd.insert(0, b'nice'); script = subprocess.Popen(")
    assert changed != source
    other = type("Other", (), {"profile": async_wrapper.profile, "zip": changed_zip(async_wrapper.zip, {WRAPPER: changed})})
    request, tmp = job_request(agent, start.folder, wrapper, other)
    done = agent.wait(request)
    found = Job(start.folder, tmp, done.rc, done.stdout, done.stderr).result()
    assert found["failed"] and not (start.folder.path / "made").exists()


def test_what_async_wrapper_prints_may_be_long(agent, start, custom, async_wrapper):
    """No output comes before the request is accepted, as for any other."""
    with zipfile.ZipFile(BytesIO(async_wrapper.zip)) as file:
        source = file.read(WRAPPER).decode()
    changed = source.replace("def main():", "print('x' * 300000)\n\n\ndef main():")
    other = type("Other", (), {"profile": async_wrapper.profile, "zip": changed_zip(async_wrapper.zip, {WRAPPER: changed})})
    request, tmp = job_request(agent, start.folder, custom("pass"), other)
    kinds = []
    while kinds[-1:] != ["EXIT"]:
        kind, number, _, _, body = agent.frame()
        kinds.append(kind)
        if kind == "DATA" and body:
            agent.send("WINDOW", len(body).to_bytes(4, "big"), number)
    assert kinds[0] == "ACCEPTED" and kinds.count("ACCEPTED") == 1 and "DATA" in kinds


def test_a_broken_item_ends_the_agent(start, custom, async_wrapper):
    client = AgentClient(PYTHON)
    wrapper = custom("pass")
    client.send("PAYLOAD", pack("key", wrapper.zip))
    job = pack("job", "", "", "", "", "one")
    client.request("RUN", pack("key", wrapper.module, wrapper.params, wrapper.profile, "", 0, 0, wrapper.form, "", "", "", "", job))
    assert client.process.wait(10) == 0
    client.close()


def test_a_sub_agent_starts_jobs(agent, start, custom):
    assert not agent.wait(start_sub(agent, become("COMMAND", PYTHON), become_success="BECOME-SUCCESS-abc")).failed
    job = start(agent, custom("result['parent'] = os.getppid()", "import os"), agent=1)
    assert job.result()["parent"] not in (0, 1)


def test_a_link_is_no_job(agent, custom):
    """The item of a link is in the same place."""
    wrapper = custom("result['a'] = 1")
    agent.send("PAYLOAD", pack("key", wrapper.zip))
    link = pack(os.urandom(8), 0, "", "", "")
    body = pack("key", wrapper.module, wrapper.params, wrapper.profile, "", 0, 0, wrapper.form, "", "", "", link)
    agent.next += 1
    agent.send("RUN", body, agent.next, flags=16)
    assert json.loads(agent.wait(agent.next).stdout)["a"] == 1


def test_many_at_once(agent, start, custom, async_wrapper):
    wrapper = custom("time.sleep(0.2)", "import time")
    begun = [job_request(agent, start.folder, wrapper, async_wrapper) for _ in range(20)]
    jobs = [Job(start.folder, tmp, done.rc, done.stdout, done.stderr) for request, tmp in begun for done in [agent.wait(request)]]
    assert len({job.answer["ansible_job_id"] for job in jobs}) == 20
    for job in jobs:
        assert "invocation" in job.result(), job.file()
