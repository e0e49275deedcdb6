"""The agent over pipes, and modules in it against the stock wrapper really run.

The target's interpreters are those of $CHURTEN_TEST_PYTHONS (paths joined by `:`), or
one of each version found on PATH; the payloads are the installed ansible-core's."""

import ast
import base64
import fcntl
import functools
import io
import itertools
import json
import marshal
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import zipfile
import zlib

import agent_client
import pytest
from agent_client import AgentClient, Wrapper, build, frame, pack, unpack, wait_until

pytest.importorskip("ansible")

VERSION_CODE = "import sys; print('%d.%d' % sys.version_info[:2])"


def find_pythons():
    named = os.environ.get("CHURTEN_TEST_PYTHONS")
    if named:
        candidates = named.split(os.pathsep)
    else:
        names = ["python3.%d" % minor for minor in range(6, 16)] + ["/usr/bin/python3"]
        candidates = [sys.executable] + [shutil.which(name) for name in names]
    found = {}
    for path in filter(None, candidates):
        try:
            done = subprocess.run(
                [path, "-c", VERSION_CODE], capture_output=True, timeout=20
            )
        except OSError:
            continue
        if done.returncode == 0:
            found.setdefault(done.stdout.decode().strip(), path)
    return found


PYTHONS = find_pythons()


@pytest.fixture(scope="module", params=sorted(PYTHONS), ids=lambda v: "py" + v)
def python(request):
    return PYTHONS[request.param]


@functools.cache
def supported(path):
    """Whether the installed core's modules run on that interpreter at all."""
    return build("ping").stock(path)[0] == 0


@pytest.fixture
def modern(python):
    if not supported(python):
        pytest.skip("this core needs a newer Python")


@pytest.fixture(scope="module")
def warm(python):
    """An agent for all tests that leave nothing behind in it."""
    with AgentClient(python) as client:
        yield client


@pytest.fixture
def agent():
    """A fresh agent of the tests' own interpreter."""
    with AgentClient() as client:
        yield client


SERIAL = itertools.count()
MODULE = """
import sys
from ansible.module_utils.basic import AnsibleModule
{imports}

def main():
    module = AnsibleModule(argument_spec=dict(arg=dict(type='raw')))
    result = dict()
{body}
    module.exit_json(**result)

main()
"""


# One build by core for all of them; what it cannot know of is put into the zip file.
TEMPLATE = """
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common import respawn
import ansible.module_utils.service
"""


def make_module(tmp_path, source, args=None):
    path = tmp_path / "churten_template.py"
    path.write_text(TEMPLATE)
    template = build("churten_template", args, path)
    path.unlink()
    name = "custom_%d" % next(SERIAL)
    with zipfile.ZipFile(io.BytesIO(template.zip)) as file:
        (old,) = (n for n in file.namelist() if n.endswith("churten_template.py"))
    changes = {old: None, old.replace("churten_template", name): source}
    old = base64.b64encode(template.zip)
    data = base64.b64encode(changed_zip(template.zip, changes))
    assert old in template.text
    text = template.text.replace(old, data)
    return Wrapper(text.replace(b"churten_template", name.encode()))


@pytest.fixture
def custom(tmp_path):
    """A module from the lines of its main()."""

    def make(body, imports="", args=None):
        lines = "".join("    %s\n" % line for line in body.strip("\n").splitlines())
        return make_module(tmp_path, MODULE.format(imports=imports, body=lines), args)

    return make


@pytest.fixture
def raw_custom(tmp_path):
    def make(source):
        source = "from ansible.module_utils import basic\n" + source
        return make_module(tmp_path, source)

    return make


def plain(data):
    """Output without what differs from run to run."""
    text = re.sub(rb"ansible_\w+_payload_\w+", b"FOLDER", data)
    text = re.sub(rb"ansible_\w+_payload\.zip", b"ZIP", text)
    return re.sub(rb'"(start|end|delta)": "[^"]*"', b"", text)


def same_as_stock(client, wrapper, python=sys.executable, stderr=True):
    """Runs it twice in the agent (the first teaches it imports) and under stock."""
    rc, out, err = wrapper.stock(python)
    for _ in range(2):
        done = client.run(wrapper)
        assert not done.failed, done
        assert (done.rc if done.rc >= 0 else -done.signal) == rc, (done, err)
        assert plain(done.stdout) == plain(out)
        if stderr:
            assert plain(done.stderr) == plain(err)
    return done


# ------------------------------------------------------------ core's modules


def test_hello(warm, python):
    version = subprocess.run([python, "-c", VERSION_CODE], capture_output=True).stdout
    assert warm.hello["version"].startswith(version.decode().strip() + ".")
    assert warm.hello["uid"] == str(os.getuid())
    assert warm.hello["home"] == os.path.expanduser("~")
    assert warm.hello["hostname"] == os.uname().nodename
    assert os.path.exists(warm.hello["python"])
    assert len(bytes.fromhex(warm.hello["magic"])) == 4


def test_ping(warm, python):
    same_as_stock(warm, build("ping", {"data": "h\u00e9"}), python, stderr=False)


def test_command(warm, python):
    wrapper = build("command", {"_raw_params": "printf 'a b\\n'; id -u"})
    same_as_stock(warm, wrapper, python, stderr=False)


def test_command_shell(warm, python):
    args = {"_raw_params": "echo $HOME; umask; exit 4", "_uses_shell": True}
    same_as_stock(warm, build("command", args), python, stderr=False)


def test_file_and_stat(warm, python, tmp_path):
    path = tmp_path / "d"
    for state in ("directory", "absent"):
        done = warm.run(build("file", {"path": str(path), "state": state}))
        if supported(python):
            assert json.loads(done.stdout)["changed"]
            assert path.exists() == (state == "directory")
    (tmp_path / "f").write_text("x")
    wrapper = build("stat", {"path": str(tmp_path / "f")})
    wrapper.stock(python)  # reads the file: atime
    same_as_stock(warm, wrapper, python, stderr=False)


def test_copy(warm, python, tmp_path):
    source = tmp_path / "src"
    source.write_text("content\n")
    args = {"src": str(source), "dest": str(tmp_path / "dest"), "mode": "0640"}
    done = warm.run(build("copy", args))
    source.write_text("content\n")
    rc, out, _ = build("copy", args).stock(python)
    assert done.rc == rc
    if supported(python):
        assert json.loads(done.stdout)["changed"] and not json.loads(out)["changed"]
        assert stat.S_IMODE((tmp_path / "dest").stat().st_mode) == 0o640


def test_setup(warm, python):
    wrapper = build("setup", {"gather_subset": ["!all", "min"]})
    rc, out, _ = wrapper.stock(python)
    for _ in range(3):
        done = warm.run(wrapper)
        assert done.rc == rc
        if not supported(python):
            continue
        mine, stock = (json.loads(o)["ansible_facts"] for o in (done.stdout, out))
        assert mine.keys() == stock.keys()
        for name, value in stock.items():
            if not re.search("date_time|env$", name):
                assert mine[name] == value, name


@pytest.mark.usefixtures("modern")
def test_marshalled(python, custom):
    bootstrap = agent_client.bootstrap()
    wrapper = custom("result['file'] = sys.modules['ansible'].__file__")
    with AgentClient(python) as client:
        compiled = bootstrap.marshal_payload(wrapper.zip)
        import importlib.util

        if client.hello["magic"] != importlib.util.MAGIC_NUMBER.hex():
            pytest.skip("another Python than ours")
        assert json.loads(client.run(wrapper, marshalled=compiled).stdout)
        same_as_stock(client, wrapper, python)


@pytest.mark.parametrize("own", [True, False])
def test_packed_code_is_used_by_its_own_python_only(python, custom, own):
    wrapper = custom("result['told'] = 'by the archive'")
    code = compile("print('by the code')", "x", "exec")
    told = marshal.dumps({wrapper.module: (False, marshal.dumps(code))}, 2)
    with AgentClient(python) as client:
        if client.hello["version"][:4] != "%d.%d" % sys.version_info[:2]:
            pytest.skip("another Python than ours")
        out = client.run(wrapper, marshalled=told, packed_for=client.hello["magic"] if own else "00000000").stdout
        assert (b"by the code" if own else b"by the archive") in out


# ------------------------------------- a module sees what it sees under stock

PROBE = """
import __main__ as m
result['argv'] = [strip(a) for a in sys.argv]
result['orig_argv'] = len(getattr(sys, 'orig_argv', [1]))
result['path'] = [strip(p) for p in sys.path]
result['main'] = sorted(k for k in m.__dict__)
result['file'] = strip(m.__file__)
result['spec'] = [m.__spec__.name, strip(m.__spec__.origin), m.__package__]
result['loader'] = 'zipimporter' in [c.__name__ for c in type(m.__loader__).__mro__]
result['modlib'] = strip(m._modlib_path)
result['zip'] = sorted(n for n in zipfile.ZipFile(m._modlib_path).namelist())
result['flags'] = repr(sys.flags)
result['bytecode'] = sys.dont_write_bytecode
result['cwd'] = os.getcwd()
u = os.umask(0); os.umask(u)
result['umask'] = u
result['env'] = dict(os.environ)
result['signals'] = [re.sub(' at 0x.*', '', str(signal.getsignal(n))) for n in range(1, 32)]
result['mask'] = len(signal.pthread_sigmask(signal.SIG_BLOCK, []))
result['wakeup'] = signal.set_wakeup_fd(-1)
result['fds'] = [f for f in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + f)]
result['limits'] = [resource.getrlimit(r) for r in range(10)]
result['locale'] = [locale.setlocale(c) for c in (locale.LC_CTYPE, locale.LC_TIME)]
result['streams'] = [[s.encoding, s.errors, s.fileno(), s.isatty(), s.line_buffering]
                     for s in (sys.stdin, sys.stdout, sys.stderr)]
result['stdin'] = sys.stdin.read()
result['gc'] = [gc.isenabled(), gc.get_threshold()]
result['threads'] = len(os.listdir('/proc/self/task'))
result['tz'] = time.tzname
result['temp'] = tempfile.gettempdir()
result['fs'] = sys.getfilesystemencoding()
result['children'] = subprocess.call(['/bin/sh', '-c', 'exit 7'])
result['source'] = len(inspect.getsource(basic)) > 1000
result['data'] = len(pkgutil.get_data('ansible.module_utils', 'basic.py')) > 1000
result['modules'] = sorted(x.name for x in pkgutil.iter_modules(sys.modules['ansible'].__path__))
"""
PROBE_IMPORTS = """
import gc, inspect, locale, os, pkgutil, re, resource, signal, subprocess, tempfile, time, zipfile
from ansible.module_utils import basic

def strip(path):
    return re.sub(r'.*/ansible_\\w+?_payload_\\w+/ansible_\\w+?_payload', 'X', path)
"""


def probe(client, wrapper, python, agent_env="", stock_env=None, cwd=None):
    rc, out, err = wrapper.stock(python, env=stock_env, cwd=cwd)
    done = client.run(wrapper, env=agent_env)
    assert done.rc == rc == 0, (done, err)
    mine, stock = json.loads(done.stdout), json.loads(out)
    assert mine["zip"] == sorted(set(mine["zip"]))
    assert set(mine.pop("zip")) >= set(stock.pop("zip"))
    # modules of other payloads are in the same zip file
    assert set(mine.pop("modules")) >= set(stock.pop("modules"))
    for one in (mine, stock):
        # listing them opens one more
        one["fds"] = sorted(int(fd) for fd in one["fds"])
        for name in ("_", "PWD", "OLDPWD", "PYTEST_CURRENT_TEST"):
            one["env"].pop(name, None)  # of the shell, of pytest
    return mine, stock


@pytest.mark.usefixtures("modern")
def test_probe(warm, python, custom):
    wrapper = custom(PROBE, PROBE_IMPORTS)
    for _ in range(3):
        mine, stock = probe(warm, wrapper, python)
        assert mine == stock


@pytest.mark.usefixtures("modern")
@pytest.mark.parametrize(
    "start, env",
    [
        ({}, {"FOO": "b\u00e4r baz", "TZ": "Asia/Tokyo", "PATH": "/usr/bin:/bin"}),
        ({}, {"LC_ALL": "C"}),
        ({}, {"LANG": "C.UTF-8"}),
        ({}, {"LC_MESSAGES": "C"}),
        ({}, {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "latin-1"}),
        ({"LANG": "C.UTF-8"}, {"TMPDIR": "/var/tmp"}),
        ({"LANG": "C.UTF-8"}, {"LC_ALL": "C.UTF-8"}),
        ({"LANG": "C.UTF-8"}, {"LC_ALL": "C"}),
    ],
    ids=lambda env: "-".join(env) or "C",
)
def test_probe_environment(python, custom, env, start, tmp_path):
    """With `environment:`, in agents started under two locales, elsewhere."""
    keep = ("HOME", "PATH", "USER", "LOGNAME", "SHELL")
    base = {name: os.environ[name] for name in keep if name in os.environ}
    base.update(start)
    os.chmod(tmp_path, 0o755)
    wrapper = custom(PROBE, PROBE_IMPORTS)
    with AgentClient(python, env=base, cwd=str(tmp_path)) as client:
        pairs = "\0".join("%s=%s" % pair for pair in env.items())
        for _ in range(2):
            mine, stock = probe(
                client, wrapper, python, pairs, dict(base, **env), str(tmp_path)
            )
            assert mine == stock


@pytest.mark.usefixtures("modern")
@pytest.mark.row("C7")
def test_nothing_stays(warm, python, custom):
    """What one module does to its process the next one does not see."""
    dirty = custom(
        """
os.chdir('/'); os.umask(0o777); os.environ['DIRT'] = '1'; sys.path.append('/dirt')
signal.signal(signal.SIGTERM, signal.SIG_IGN); locale.setlocale(locale.LC_ALL, 'C')
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGUSR1])
basic.FILE_ATTRIBUTES = None; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
sys.modules['dirt'] = sys; result['done'] = open('/dev/null').fileno() and None
""",
        PROBE_IMPORTS,
    )
    clean = custom(PROBE + "result['dirt'] = 'dirt' in sys.modules", PROBE_IMPORTS)
    for _ in range(2):
        before = probe(warm, clean, python)
        assert warm.run(dirty).rc == 0
        after = probe(warm, clean, python)
        assert before[0] == before[1] == after[0]


@pytest.mark.usefixtures("modern")
def test_run_command(warm, python, custom):
    """Also with a umask, which core sets between fork and exec."""
    wrapper = custom(
        """
result['plain'] = module.run_command(['/bin/sh', '-c', 'umask; echo $0 $PPID >/dev/null; exit 3'])
result['umask'] = module.run_command('umask', umask=0o123, use_unsafe_shell=True)
ignored = int(module.run_command('grep SigIgn /proc/self/status')[1].split()[1], 16)
result['ignored'] = [n for n in range(1, 32) if ignored >> (n - 1) & 1]
result['cwd'] = module.run_command('pwd', cwd='/', environ_update={'A': 'b'})
result['data'] = module.run_command('cat', data='fed')
result['own'] = subprocess.check_output('umask', preexec_fn=lambda: os.umask(0o17), shell=True).decode()
try:
    subprocess.call(['/no/such/program'])
except OSError as error:
    result['error'] = str(error)
""",
        "import os, subprocess",
    )
    done = same_as_stock(warm, wrapper, python)
    assert json.loads(done.stdout)["umask"][1].strip() == "0123"


ENDS_BETWEEN_TWO_QUESTIONS = """
class Popen(subprocess.Popen):
    def poll(self):
        if self.stdout.closed or not at_end(self.stdout) or not at_end(self.stderr):
            return super().poll()
        asked.append(self.pid)
        if len(asked) == 1:
            return None
        self.wait()
        return self.returncode

def at_end(pipe):
    return pipe.fileno() not in [key.fd for s in made for key in s.get_map().values()]

class Selector(basic.selectors.PollSelector):
    def __init__(self):
        super().__init__()
        made.append(self)

    def select(self, timeout=None):
        before = time.monotonic()
        ready = super().select(timeout)
        waited.append(bool(self.get_map()) or time.monotonic() - before < timeout)
        return ready

asked, made, waited = [], [], []
basic.selectors.PollSelector = Selector
subprocess.Popen = Popen
result['ran'] = module.run_command(['/bin/sh', '-c', 'echo out; echo err >&2; exit 3'])
result['asked'] = len(asked)
result['waited'] = waited
"""


@pytest.mark.usefixtures("modern")
def test_run_command_of_a_program_that_ends_between_two_questions(warm, python, custom):
    """core's loop then waits for a second in a selector with nothing in it; not here."""
    imports = "import subprocess, time\nfrom ansible.module_utils import basic"
    wrapper = custom(ENDS_BETWEEN_TWO_QUESTIONS, imports)
    stock = json.loads(wrapper.stock(python)[1])
    ours = json.loads(warm.run(wrapper).stdout)
    assert stock["ran"] == ours["ran"] == [3, "out\n", "err\n"]
    assert stock["asked"] == ours["asked"] == 3
    assert stock["waited"][-1] is False
    assert ours["waited"][-1] is True


def test_rlimit_nofile(agent, custom):
    wrapper = custom(
        "result['l'] = resource.getrlimit(resource.RLIMIT_NOFILE)", "import resource"
    )
    hard = json.loads(agent.run(wrapper).stdout)["l"][1]
    done = agent.run(wrapper, rlimit_nofile=123)
    assert json.loads(done.stdout)["l"] == [123, hard]
    done = agent.run(wrapper, rlimit_nofile=123, env="PYTHONHASHSEED=0")
    assert json.loads(done.stdout)["l"] == [123, hard]


# ----------------------------------------------------------- ways to end


@pytest.mark.parametrize(
    "source",
    [
        "import sys; sys.exit(3)",
        "import sys; print('{}'); sys.exit('text for stderr')",
        "import sys; sys.exit(None)",
        "import sys; sys.exit(-1)",
        "import sys; sys.exit(256 + 7)",
        "import sys; sys.exit(2**80)",
        "import sys; sys.exit(True)",
        "import sys; sys.exit((1, 2))",
        "print('falls off its end')",
        "import os; print('lost'); os._exit(7)",
        "import os, sys; print('kept'); sys.stdout.flush(); os._exit(7)",
        "import os; os.kill(os.getpid(), 9)",
        "import os; os.kill(os.getpid(), 15)",
        "import os, sys; sys.stderr.write('noise\\n'); print('junk'); print('{\"a\": 1}'); sys.exit(0)",
        "import atexit, sys; atexit.register(print, 'at exit'); print('first'); sys.exit(5)",
        "import sys, threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\n"
        "print('main'); sys.exit(1)",
        "import sys, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print('main'); sys.exit(1)",
        "import sys; sys.stdout.close(); sys.exit(2)",
        "import os, sys; print('x'); os.close(1); sys.exit(0)",
        "import os, sys\nif os.fork() == 0:\n    print('child'); sys.exit(0)\n"
        "os.wait(); print('parent'); sys.exit(4)",
        "import sys; sys.stdout.buffer.write(b'\\xff\\x00binary'); sys.exit(0)",
        "import sys; print('\\udcff'.encode('utf-8', 'surrogateescape')); sys.exit(0)",
        "import sys; sys.excepthook = lambda *a: print('hook', a[0]); raise SystemExit(9)",
        "import json, sys; print(json.dumps({'x': 'y' * 3000000})); sys.exit(0)",
        "import multiprocessing, sys\n"
        "if __name__ == '__main__':\n"
        "    p = multiprocessing.get_context('fork').Process(target=print, args=('in child',))\n"
        "    p.start(); p.join(); print(p.exitcode); sys.exit(0)",
    ],
)
def test_exits(warm, python, raw_custom, source):
    same_as_stock(warm, raw_custom(source + "\n"), python, stderr=False)


@pytest.mark.parametrize(
    "source",
    [
        "raise RuntimeError('broken')",
        "1 / 0",
        "raise KeyboardInterrupt()",
        "import no_such_module_at_all",
        "import sys; sys.stdout.write('before'); raise OSError(2, 'no')",
    ],
)
def test_crashes(warm, python, raw_custom, source):
    """The result (or the end of the trace) is stock's; the trace's first lines are
    those of the wrapper there and missing here."""
    wrapper = raw_custom(source + "\n")
    rc, out, err = wrapper.stock(python)
    for _ in range(2):
        done = warm.run(wrapper)
        assert (done.rc if done.rc >= 0 else -done.signal) == rc
        assert plain(done.stdout) == plain(out)
        mine, stock = plain(done.stderr).splitlines(), plain(err).splitlines()
        assert mine[-1:] == stock[-1:]
        # stock has removed the zip file by then and may not show source lines
        in_module = [line for line in stock if b"/custom_" in line]
        assert [line for line in mine if b"/custom_" in line] == in_module
        assert b"churten" not in done.stderr


def test_syntax_error(warm, python, tmp_path):
    """Newer than any Python: core builds it if the controller can parse it, so the
    zip file is changed afterwards."""
    wrapper = build("ping")
    wrapper.zip = changed_zip(wrapper.zip, {"ansible/modules/ping.py": b"def (:\n"})
    done = warm.run(wrapper)
    assert done.rc == 1
    assert b"SyntaxError" in done.stderr + done.stdout


def changed_zip(data, changes):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            if name not in changes:
                new.writestr(name, old.read(name))
        for name, content in changes.items():
            if content is not None:
                new.writestr(name, content)
    return out.getvalue()


@pytest.mark.usefixtures("modern")
def test_files_left_open(warm, python, raw_custom, tmp_path):
    """Finalization flushes open files and removes temporary ones."""
    wrapper = raw_custom(
        "import sys, tempfile\n"
        "a = open(%r, 'w'); a.write('left in a global')\n"
        "t = tempfile.NamedTemporaryFile(dir=%r)\n"
        "class Ring:\n    pass\n"
        "r = Ring(); r.me = r; r.temp = tempfile.NamedTemporaryFile(dir=%r)\n"
        "def f():\n"
        "    b = open(%r, 'w'); b.write('left in a frame'); sys.exit(0)\n"
        "f()\n"
        % (
            str(tmp_path / "a"),
            str(tmp_path),
            str(tmp_path),
            str(tmp_path / "b"),
        )
    )
    left = []
    for run in (warm.run, warm.run, lambda w: w.stock(python)):
        run(wrapper)
        left.append({p.name: p.read_text() for p in tmp_path.iterdir()})
        for path in tmp_path.iterdir():
            path.unlink()
    # (stock may lose what a global file still has in its buffer)
    assert left[0] == left[1] == dict(left[2], a="left in a global")
    assert left[0]["b"] == "left in a frame"


@pytest.mark.row("C6")
def test_background_process(agent, custom, tmp_path):
    """One that keeps the module's pipes open does not keep the answer back."""
    wrapper = custom("result['pid'] = subprocess.Popen(['sleep', '600']).pid", "import subprocess")
    rc = agent.run(wrapper)
    pid = json.loads(rc.stdout)["pid"]
    os.kill(pid, 0)  # still there
    assert rc.truncated == b"1"
    os.kill(pid, signal.SIGKILL)


@pytest.mark.row("C6")
def test_output_of_a_background_process(agent):
    done = agent.exec("(sleep 0.05; echo late) & echo early")
    assert done.stdout == b"early\nlate\n"


# ----------------------------------------------- respawn, libraries, the zip


RESPAWN = """
from ansible.module_utils.common.respawn import has_respawned, respawn_module
from ansible.module_utils.common.respawn import probe_interpreters_for_module
"""
RESPAWN_BODY = """
found = probe_interpreters_for_module([module.params['arg']], 'json')
result['found'] = found == module.params['arg']
if not has_respawned():
    respawn_module(module.params['arg'])
result['respawned'] = True
"""


def test_respawn(warm, python, custom):
    wrapper = custom(RESPAWN_BODY, RESPAWN, args={"arg": python})
    done = same_as_stock(warm, wrapper, python, stderr=False)
    if supported(python):
        assert json.loads(done.stdout)["respawned"]


def test_zip_file(custom, tmp_path):
    """One folder, private, written again when a play removes it, gone at the end."""
    temp = tmp_path / "temp"
    temp.mkdir()
    wrapper = custom("result['p'] = sys.modules['__main__']._modlib_path")
    with AgentClient(env=dict(os.environ, TMPDIR=str(temp))) as client:
        path = json.loads(client.run(wrapper).stdout)["p"]
        client.run(build("ping"))
        assert os.listdir(str(temp)) == [os.path.basename(os.path.dirname(path))]
        assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
        with zipfile.ZipFile(path) as file:
            assert file.testzip() is None
            assert b"sys.path.insert" in file.read("sitecustomize.py")
            assert "ansible/modules/ping.py" in file.namelist()
        shutil.rmtree(os.path.dirname(path))
        assert json.loads(client.run(wrapper).stdout)["p"] == path
        assert os.path.exists(path)
    assert os.listdir(str(temp)) == []


def old(folder):
    os.utime(str(folder), (0, 0))
    return folder


def test_what_killed_agents_left_is_removed(python, tmp_path):
    """... by the next agent: folders of libraries, ours, old and unlocked, and nothing else. A living agent's is locked, whatever its age."""
    temp = tmp_path / "temp"
    temp.mkdir()
    env = dict(os.environ, TMPDIR=str(temp))

    client = AgentClient(python, env=env)
    client.run(build("ping"))
    (dead,) = temp.iterdir()
    os.kill(int(client.hello["pid"]), signal.SIGKILL)
    client.close()

    def copied(where):
        shutil.copytree(str(dead), str(where))
        where.chmod(0o700)
        return where

    def folder(number):
        return temp / ("ansible_ping_payload_%08x" % number)

    young, locked, more, stocks, public, inner = (copied(folder(n)) for n in range(6))
    elsewhere, link, name = copied(tmp_path / "elsewhere"), folder(6), "ansible_ping_payload.zip"
    lock = os.open(str(locked), os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (more / "other").write_text("")
    with zipfile.ZipFile(str(stocks / name), "w") as file:
        file.writestr("ansible/__init__.py", "")
    public.chmod(0o755)
    link.symlink_to(elsewhere)
    (inner / name).unlink()
    (inner / name).symlink_to(elsewhere / name)
    os.utime(str(young))
    for one in (dead, locked, more, stocks, public, inner, elsewhere):
        old(one)
    kept = {young, locked, more, stocks, public, inner, link}
    with AgentClient(python, env=env) as living:
        living.run(build("ping"))
        (alive,) = set(temp.iterdir()) - kept - {dead}
        old(alive)
        wait_until(lambda: not dead.exists(), 60)
        with AgentClient(python, env=env) as client:
            client.run(build("ping"))
            again = folder(7)
            shutil.copytree(str(elsewhere), str(again))
            again.chmod(0o700)
            old(again)
            wait_until(lambda: not again.exists(), 60)
            assert kept | {alive} <= set(temp.iterdir())
            assert all(os.listdir(str(one)) for one in [*kept, alive])
            assert living.run(build("ping")).rc == client.run(build("ping")).rc == 0
    os.close(lock)


def test_temp_path(agent, custom, tmp_path):
    wrapper = custom("result['p'] = sys.modules['__main__']._modlib_path")
    path = json.loads(agent.run(wrapper, temp=str(tmp_path)).stdout)["p"]
    assert path.startswith(str(tmp_path))


def test_module_of_the_same_name(agent, custom):
    """Another module under a known name, or another module_utils file."""
    first, second = custom("result['n'] = 1"), custom("result['n'] = 2")
    name = first.module.replace(".", "/") + ".py"
    source = "print('{\"n\": 2}'); import sys; sys.exit(0)"
    second.module, second.zip = first.module, changed_zip(first.zip, {name: source})
    ping = build("ping")
    other = build("ping")
    source = zipfile.ZipFile(io.BytesIO(ping.zip)).read(
        "ansible/module_utils/common/text/formatters.py"
    )
    other.zip = changed_zip(
        ping.zip,
        {"ansible/module_utils/common/text/formatters.py": source + b"\nprint('mine')\n"},
    )
    for _ in range(3):
        assert json.loads(agent.run(first).stdout)["n"] == 1
        assert json.loads(agent.run(second).stdout)["n"] == 2
        assert agent.run(ping).stdout.lstrip().startswith(b'{"ping"')
        assert agent.run(other).stdout.lstrip().startswith(b'mine\n')


def test_another_core(agent):
    """Another basic.py runs in a fresh interpreter: its patches of the standard
    library would meet those of the first."""
    ping, other = build("ping"), build("ping")
    name = "ansible/module_utils/basic.py"
    with zipfile.ZipFile(io.BytesIO(ping.zip)) as file:
        source = file.read(name)
    other.zip = changed_zip(ping.zip, {name: source + b"\nprint(sys.flags, sys.argv)\n"})
    assert agent.run(ping).rc == 0
    done = agent.run(other)
    assert done.rc == 0 and done.stdout.startswith(b"sys.flags")
    assert json.loads(agent.run(ping).stdout)["ping"] == "pong"


def test_import_that_starts_a_thread(agent, custom, raw_custom, tmp_path):
    """... or fails: never imported ahead again, and the module runs as it would."""
    ping = build("ping")
    assert agent.run(ping).rc == 0
    for name, more in (("thread", b"import threading, time\nthreading.Thread(target=time.sleep, "
                        b"args=(3,), daemon=True).start()\n"), ("exit", b"raise SystemExit(6)\n")):
        wrapper = build("ping")
        wrapper.module = "ansible.modules." + name
        wrapper.zip = changed_zip(
            wrapper.zip,
            {
                "ansible/module_utils/service.py": more,
                "ansible/modules/%s.py" % name: b"import ansible.module_utils.service\nprint('ran')\n",
            },
        )
        # a library of its own would hide what is tested
        with AgentClient() as client:
            for _ in range(3):
                done = client.run(wrapper)
                assert (b"ran" in done.stdout) == (name == "thread"), done
                assert done.rc == (1 if name == "thread" else 6)
            assert client.run(ping).rc == 0


def test_package_installed_meanwhile(custom, tmp_path):
    """An optional import that failed in the agent works after an installation."""
    site = tmp_path / "site-packages"
    site.mkdir()
    wrapper = custom("result['journal'] = basic.has_journal", "from ansible.module_utils import basic")
    env = dict(os.environ, PYTHONPATH=str(site))
    with AgentClient(env=env) as client:
        for _ in range(2):
            if json.loads(client.run(wrapper).stdout)["journal"]:
                pytest.skip("systemd's Python package is installed")
        package = site / "systemd"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "journal.py").write_text("def sendv(*a, **k): pass\ndef send(*a, **k): pass\n")
        (package / "daemon.py").write_text("def booted(): return True\n")
        os.utime(str(site), (1, 1))
        assert json.loads(client.run(wrapper).stdout)["journal"]


def test_interpreter_changed(tmp_path):
    real = os.path.realpath(sys.executable)
    link = tmp_path / "python3"
    link.symlink_to(real)
    env = dict(os.environ, PYTHONHOME=sys.base_prefix)
    client = AgentClient(str(link), env=env)
    assert client.run(build("ping")).rc == 0
    slow = client.exec_request("echo started; read x", stdin="data")
    link.unlink()
    link.symlink_to("/bin/sh")
    done = client.run(build("ping"))
    assert (done.fail_class, done.started) == ("agent", b"0")
    assert "interpreter changed" in done.message
    client.send("DATA", b"x\n", slow, flags=agent_client.END)
    assert client.wait(slow).stdout == b"started\n"
    with pytest.raises(EOFError):
        client.frame()
    client.close()


def test_unknown_payload(agent):
    done = agent.wait(
        agent.request("RUN", pack("key", "m", "{}", "legacy", "", 0, 0, "219", "", ""))
    )
    assert done.failed and done.started == b"0"


@pytest.mark.usefixtures("modern")
def test_old_form(raw_custom, warm):
    """The form of core 2.16-2.18: arguments in basic._ANSIBLE_ARGS, no loader."""
    wrapper = raw_custom(
        "import sys\n"
        "print(basic._ANSIBLE_ARGS.decode(), _module_fqn, __name__, sys.argv[0] == __file__)\n"
    )
    wrapper.form, wrapper.params = "218", b'{"a": 1}'
    done = warm.run(wrapper)
    lines = done.stdout.decode().splitlines()
    assert lines[0] == '{"a": 1} %s __main__ True' % wrapper.module
    assert json.loads(lines[1])["msg"] == "New-style module did not handle its own exit"
    assert done.rc == 1


def test_many_at_once(agent, custom):
    slow = custom("time.sleep(1)", "import time")
    requests = [agent.run_request(slow)]
    ping = build("ping")
    requests += [agent.run_request(ping) for _ in range(20)]
    order = []
    while len(order) < len(requests):
        kind, number, _, _, _ = agent.frame()
        if kind == "EXIT":
            order.append(number)
    assert sorted(order) == requests and order[-1] == requests[0]


# -------------------------------------------------------------------- EXEC


def test_exec(warm):
    done = warm.exec("echo out; echo err >&2; exit 3")
    assert (done.rc, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert done.accepted and done.us > 0
    assert warm.exec("kill -9 $$").signal == 9
    assert warm.exec("cat").stdout == b""
    assert warm.exec("echo $A$B", env="A=1\0B=x=y").stdout == b"1x=y\n"
    assert warm.exec("no-such-command").rc == 127
    assert warm.exec("pwd").stdout.decode().strip() == os.getcwd()


def test_exec_login(warm):
    import pwd

    shell = pwd.getpwuid(os.getuid()).pw_shell
    done = warm.exec("echo $0", shell="login")
    assert done.stdout.decode().strip() == os.path.basename(shell)
    assert warm.exec("exit 9", shell="login").rc == 9


def test_exec_stdin(warm):
    data = os.urandom(3000000)
    request = warm.exec_request("cat", stdin="data")
    credit, sent, got = 1 << 20, 0, b""
    while True:
        while sent < len(data) and credit > 0:
            part = data[sent : sent + 60000]
            sent += len(part)
            credit -= len(part)
            flags = agent_client.END if sent == len(data) else 0
            warm.send("DATA", part, request, flags=flags)
        kind, number, _, flags, body = warm.frame()
        assert number == request
        if kind == "WINDOW":
            credit += struct.unpack(">I", body)[0]
        elif kind == "DATA":
            got += body
            warm.send("WINDOW", struct.pack(">I", len(body)), request)
        elif kind == "EXIT":
            got += unpack(body)[3]
            break
    assert got == data


def test_exec_stdin_nobody_reads(warm):
    request = warm.exec_request("exec 0<&-; sleep 0.2; echo done", stdin="data")
    for _ in range(10):
        warm.send("DATA", b"x" * 65536, request)
    warm.send("DATA", b"", request, flags=agent_client.END)
    assert warm.wait(request).stdout == b"done\n"


def test_exec_signals_and_descriptors(warm):
    code = (
        "import os,signal;print([n for n in range(1,32) if signal.getsignal(n)==signal.SIG_IGN"
        " and n not in (signal.SIGPIPE,signal.SIGXFSZ)], len(signal.pthread_sigmask(0,[])),"
        "os.getsid(0)==os.getppid(), sorted(os.listdir('/proc/self/fd'))[:4])"
    )
    done = warm.exec("%s -c '%s'; true" % (sys.executable, code.replace("'", "'\\''")))
    assert done.stdout == b"[] 0 True ['0', '1', '2', '3']\n", done
    done = warm.exec("yes | head -n 1; grep SigIgn /proc/self/status")
    assert done.stdout.splitlines()[0] == b"y"
    # 32 and 33 belong to the C library; glibc's posix_spawn (make uses it) leaves them ignored.
    assert int(done.stdout.split()[-1], 16) & ~(3 << 31) == 0


def test_ten_megabytes(warm, custom):
    done = warm.exec("head -c 10000000 /dev/zero; echo end >&2")
    assert len(done.stdout) == 10000000 and done.stderr == b"end\n"


def test_window(agent):
    """Without WINDOW no more than 1 MiB comes, and others are served."""
    request = agent.exec_request("head -c 5000000 /dev/zero")
    got = 0
    while got < 1 << 20:
        kind, number, _, _, body = agent.frame()
        got += len(body) if kind == "DATA" else 0
    assert agent.exec("echo other").stdout == b"other\n"
    assert all(item[0] != "DATA" for item in agent.waiting)
    assert got <= (1 << 20) + 262144
    agent.send("WINDOW", struct.pack(">I", got), request)
    done = agent.wait(request)
    assert got + len(done.stdout) == 5000000


def test_cancel_of_an_unread_request(agent):
    request = agent.exec_request("head -c 3000000 /dev/zero")
    got = 0
    while got < 1 << 20:
        kind, _, _, _, body = agent.frame()
        got += len(body) if kind == "DATA" else 0
    agent.send("CANCEL", b"", request)
    assert agent.wait(request, windows=False).kind == "EXIT"


def gone(pid):
    try:
        os.kill(pid, 0)
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def children_of(pid):
    # Without a preloaded ASan: programs that it was not made for may hang in it.
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, env=env, timeout=20)
    return [int(one) for one in done.stdout.split()]


@pytest.mark.row("C10")
@pytest.mark.parametrize(
    "way, trap",
    [
        ("cancel", ""),
        ("timeout", ""),
        ("sigterm", ""),
        ("cancel", "trap '' TERM;"),
        ("sigterm", "trap '' TERM;"),
    ],
)
def test_killing(way, trap):
    """The whole process group, TERM first, then KILL."""
    client = AgentClient()
    request = client.exec_request(
        "%s sleep 600 & echo $$ $!; sleep 601; sleep 602; sleep 603" % trap,
        timeout_ms=1000 if way == "timeout" else 0,
    )
    shell = []

    def find():
        shell[:] = children_of(client.hello["pid"])
        return len(shell) == 1 and len(children()) == 2

    def children():
        return children_of(shell[0])

    if way != "timeout":
        assert wait_until(find)
        pids = shell + children()
    if way == "cancel":
        client.send("CANCEL", b"", request)
    elif way == "sigterm":
        os.kill(int(client.hello["pid"]), signal.SIGTERM)
    if way in ("cancel", "timeout"):
        done = client.wait(request)
        assert (done.rc, done.signal) == (-1, 9 if trap else 15)
        if way == "timeout":
            pids = [int(pid) for pid in done.stdout.split()]
            assert len(pids) == 2
        assert client.exec("echo alive").stdout == b"alive\n"
    assert wait_until(lambda: all(gone(pid) for pid in pids))
    client.close()
    assert client.process.returncode == 0


@pytest.mark.row("C14")
@pytest.mark.parametrize("form", ["login", "sub"])
def test_what_runs_outlives_the_connection(tmp_path, form):
    """As under a plain sshd: to its natural end, whatever it prints; then the agent ends too."""
    mark = tmp_path / "mark"
    client = AgentClient()
    agent = 0
    if form == "sub":
        client.wait(start_sub(client, become("COMMAND"), **SUDO))
        agent = 1
    script = f"echo $$ $PPID > {mark}.pids; cat >/dev/null; head -c 3000000 /dev/zero; sleep 1; echo end >> {mark}"
    client.request("EXEC", pack(script, "", 0, "data", "sh"), agent)
    assert wait_until(lambda: os.path.exists(f"{mark}.pids") and open(f"{mark}.pids").read().endswith("\n"))
    pids = [int(pid) for pid in open(f"{mark}.pids").read().split()] + [int(client.hello["pid"])]
    client.process.stdin.close()
    client.process.stdout.close()
    assert not mark.exists()
    assert wait_until(mark.exists)
    assert wait_until(lambda: all(gone(pid) for pid in pids))
    assert client.process.wait(10) == 0 and mark.read_text() == "end\n"


def test_cancelled_at_once(agent, custom):
    """TERM reaches a child that has only just been forked."""
    slow = custom("time.sleep(600)", "import time")
    agent.run(build("ping"))
    for _ in range(20):
        for request in (agent.exec_request("exec sleep 600"), agent.run_request(slow)):
            agent.send("CANCEL", b"", request)
            assert agent.wait(request).signal == 15


# ------------------------------------------------------------- PUT, FETCH


@pytest.fixture
def no_leftovers(tmp_path):
    yield
    for folder, _, names in os.walk(str(tmp_path)):
        assert not [name for name in names if ".churten-" in name], folder


@pytest.mark.usefixtures("no_leftovers")
def test_put_and_fetch(warm, tmp_path):
    old = os.umask(0)
    os.umask(old)
    for size in (0, 1, 70000, 900000):
        data = os.urandom(size)
        path = str(tmp_path / ("f%d" % size))
        assert warm.put(path, data).rc == 0
        assert open(path, "rb").read() == data
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o666 & ~old
        done = warm.fetch(path)
        assert done.rc == 0 and done.data.get(0, b"") == data
    assert warm.put(path, b"mode", mode="0751").rc == 0
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o751
    assert warm.put(path, b"kept").rc == 0
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o751


@pytest.mark.usefixtures("no_leftovers")
def test_put_in_pieces(agent, tmp_path):
    """Frames of files and others, cut anywhere."""
    one, two = os.urandom(300000), os.urandom(5000)
    stream = b""
    for request, name, data in ((901, "one", one), (902, "two", two)):
        stream += agent_client.frame("PUT", pack(str(tmp_path / name), "", len(data)), request)
        for at in range(0, len(data), 200000):
            flags = agent_client.END if at + 200000 >= len(data) else 0
            stream += agent_client.frame("DATA", data[at : at + 200000], request, flags=flags)
            stream += agent_client.frame("PING", b"between", 0)
    for at in range(0, len(stream), 7919):
        agent.write(stream[at : at + 7919])
        time.sleep(0.001)
    assert [agent.wait(request).rc for request in (901, 902)] == [0, 0]
    assert (tmp_path / "one").read_bytes() == one
    assert (tmp_path / "two").read_bytes() == two


def test_put_that_ends_within_a_frame(agent, tmp_path):
    """What cannot be written is read and thrown away, and the next frame is understood."""
    if os.getuid() != 0:
        pytest.skip("mounts a small file system")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.check_call(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(small)])
    try:
        request = agent.request("PUT", pack(str(small / "f"), "", 600000))
        for last in range(3):
            body = os.urandom(200000)
            flags = agent_client.END if last == 2 else 0
            stream = agent_client.frame("DATA", body, request, flags=flags)
            for at in range(0, len(stream), 30000):
                agent.write(stream[at : at + 30000])
                time.sleep(0.001)
        done = agent.wait(request)
        assert done.fail_class == "file" and "No space left" in done.message
        assert agent.exec("echo on").stdout == b"on\n"
        assert os.listdir(str(small)) == []
    finally:
        subprocess.check_call(["umount", str(small)])


def test_put_keeps_owner_links(warm, tmp_path):
    target = tmp_path / "target"
    target.write_text("old")
    link, hard = tmp_path / "link", tmp_path / "hard"
    link.symlink_to(target)
    if os.getuid() == 0:
        os.chown(str(target), 1234, 2345)
    assert warm.put(str(link), b"new").rc == 0
    assert link.is_symlink() and target.read_bytes() == b"new"
    if os.getuid() == 0:
        assert (target.stat().st_uid, target.stat().st_gid) == (1234, 2345)
    os.link(str(target), str(hard))
    assert warm.put(str(target), b"both").rc == 0
    assert hard.read_bytes() == b"both"


@pytest.mark.usefixtures("no_leftovers")
def test_put_failures(warm, tmp_path):
    done = warm.put(str(tmp_path / "none" / "f"), b"x")
    assert (done.fail_class, done.layer) == ("file", "file")
    assert "No such file or directory" in done.message
    done = warm.put(str(tmp_path), b"x")
    assert done.fail_class == "file" and "irectory" in done.message
    target = tmp_path / "f"
    target.write_text("old")
    done = warm.put(str(target), b"short", size=9)
    assert done.fail_class == "file" and target.read_text() == "old"
    done = warm.put("/dev/full", b"x")
    assert done.fail_class == "file" and "space" in done.message
    assert warm.put("/dev/null", b"x" * 100000).rc == 0


@pytest.mark.usefixtures("no_leftovers")
def test_put_cancelled(warm, tmp_path):
    request = warm.request("PUT", pack(str(tmp_path / "f"), "", 100))
    warm.send("DATA", b"part", request)
    warm.send("CANCEL", b"", request)
    assert warm.wait(request).fail_class == "cancelled"
    assert os.listdir(str(tmp_path)) == []


def test_put_ended_by_eof(tmp_path):
    client = AgentClient()
    request = client.request("PUT", pack(str(tmp_path / "f"), "", 100))
    client.send("DATA", b"part", request)
    assert wait_until(lambda: os.listdir(str(tmp_path)))
    client.close()
    assert os.listdir(str(tmp_path)) == []


def test_put_to_a_fifo(agent, tmp_path):
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    request = agent.request("PUT", pack(path, "", 5))
    agent.send("DATA", b"fifo!", request, flags=agent_client.END)
    assert agent.exec("echo served").stdout == b"served\n"
    with open(path, "rb") as file:
        assert file.read() == b"fifo!"
    assert agent.wait(request).rc == 0


def test_fetch_failures(warm, tmp_path):
    done = warm.fetch(str(tmp_path / "none"))
    assert done.fail_class == "file" and "No such file" in done.message
    done = warm.fetch(str(tmp_path))
    assert done.fail_class == "file" and "directory" in done.message
    assert b"processor" in warm.fetch("/proc/cpuinfo").data[0]


def test_fetch_window_and_cancel(agent):
    request = agent.request("FETCH", pack("/dev/zero"))
    got = 0
    while got < 1 << 20:
        kind, _, _, _, body = agent.frame()
        got += len(body)
    assert agent.exec("echo other").stdout == b"other\n"
    assert got <= (1 << 20) + 262144
    agent.send("CANCEL", b"", request)
    assert agent.wait(request, windows=False).fail_class == "cancelled"


# --------------------------------------------------------------- sub-agents

SUB_NONCE = "f" * 32


def start_sub(client, command, index=1, **spec):
    bootstrap = agent_client.bootstrap()
    fields = dict(
        command=command, nonce=SUB_NONCE, timeout_ms="20000",
        input=bootstrap.start_input(SUB_NONCE),
    )  # fmt: skip
    fields.update(spec)
    items = []
    for key, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            items += [key, one]
    return client.request("START", pack(*items), agent=index)


def become(script, python=sys.executable):
    """What a become plugin's command does: ask, then run the command."""
    import shlex

    command = agent_client.bootstrap().sub_command(python)
    inner = "echo BECOME-SUCCESS-abc; " + command
    return script.replace("COMMAND", "/bin/sh -c " + shlex.quote(inner))


ASK = 'printf "[sudo] password: " >&2; read p; [ "$p" = secret ] || { echo "Sorry, try again." >&2; sleep 60; }; '
SUDO = dict(
    become_success="BECOME-SUCCESS-abc",
    become_prompt="[sudo] password:",
    become_wrong=["Sorry, try again.", "Sorry."],
    become_missing=["a password is required"],
)


def test_a_sub_agent_that_stands_still(agent):
    """A silent command is none; whoever nobody listens to any more is told so."""
    command = agent_client.bootstrap().sub_command(sys.executable)
    for index, patience in ((1, "1000"), (2, "0")):
        started = agent.wait(start_sub(agent, command, index, alive_ms=patience))
        assert started.kind == "STARTED", started
    items = [item.decode() for item in started.items]
    pids = [int(dict(zip(items[::2], items[1::2]))["pid"])]
    long = agent.request("EXEC", pack("sleep 3; echo $PPID", "", 0, "null", "sh"), 1)
    done = agent.wait(long)
    assert (done.kind, done.rc) == ("EXIT", 0)
    pids.insert(0, int(done.stdout))
    requests = [agent.request("EXEC", pack("sleep 0.5", "", 0, "null", "sh"), index) for index in (1, 2)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    while True:
        kind, request, index, _flags, body = agent.frame(timeout=20)
        if kind == "FAILED":
            break
    failure = [item.decode() for item in unpack(body)]
    assert (index, request, failure[0]) == (1, 0, "unreachable") and "no answer for 1 seconds" in failure[2]
    os.kill(pids[1], signal.SIGCONT)
    assert agent.wait(requests[1]).rc == 0  # nobody had asked for that one
    os.kill(pids[0], signal.SIGKILL)  # it would stay as it is


@pytest.mark.parametrize("form", ["password", "none needed", "no prompt expected"])
def test_sub_agent(agent, python, form):
    spec = dict(SUDO, become_password="secret")
    script = "echo 'Last login: never'; COMMAND"
    if form == "password":
        script = ASK + script
    elif form == "no prompt expected":
        spec = dict(become_success="BECOME-SUCCESS-abc")
    started = agent.wait(start_sub(agent, become(script, python), **spec))
    assert started.kind == "STARTED", started
    items = [item.decode() for item in started.items]
    hello = dict(zip(items[::2], items[1::2]))
    assert hello["reused"] == "0" and hello["pid"] != agent.hello["pid"]
    ping = build("ping")
    for _ in range(2):
        done = agent.run(ping, agent=1)
        assert done.stdout == agent.run(ping).stdout or done.rc
    request = agent.request("EXEC", pack("head -c 3000000 /dev/zero", "", 0, "null", "sh"), 1)
    assert len(agent.wait(request).stdout) == 3000000
    agent.send("CLOSE", b"", 0, 1)
    assert wait_until(lambda: gone(int(hello["pid"])))
    request = agent.request("EXEC", pack("true", "", 0, "null", "sh"), 1)
    done = agent.wait(request)
    assert done.fail_class == "agent" and done.started == b"0"
    assert agent.exec("echo alive").stdout == b"alive\n"


@pytest.mark.parametrize(
    "script, spec, expected",
    [
        (ASK, dict(SUDO, become_password="bad"), "become_password_wrong"),
        (ASK, dict(SUDO), "become_password_missing"),
        ("echo 'sudo: a password is required' >&2; exit 1", SUDO, "become_password_missing"),
        ("echo 'sudo: sorry, you must have a tty to run sudo' >&2; exit 1", SUDO, "become"),
        ("exit 3", SUDO, "become"),
        ("sleep 60", dict(SUDO, timeout_ms="300"), "become"),
        ("echo BECOME-SUCCESS-abc; exit 1", SUDO, "agent"),
        ("echo BECOME-SUCCESS-abc; sleep 60", dict(SUDO, timeout_ms="300"), "agent"),
        ("echo BECOME-SUCCESS-abc; echo CHURTEN-%s-NOPYTHON" % SUB_NONCE, SUDO, "no_python"),
        ("yes", SUDO, "agent"),
    ],
)
def test_sub_agent_failures(agent, script, spec, expected):
    done = agent.wait(start_sub(agent, script, **spec))
    assert done.failed and done.fail_class == expected, done
    assert "secret" not in done.message
    if "tty" in script:
        assert "you must have a tty" in done.message
    # the same number can be used again
    started = agent.wait(start_sub(agent, become("COMMAND"), **SUDO))
    assert started.kind == "STARTED"


def test_sub_agent_dies(agent):
    started = agent.wait(start_sub(agent, become("COMMAND"), **SUDO))
    items = [item.decode() for item in started.items]
    pid = int(dict(zip(items[::2], items[1::2]))["pid"])
    os.kill(pid, signal.SIGKILL)
    kind, request, index, _, body = agent.frame()
    assert (kind, request, index) == ("FAILED", 0, 1)
    assert unpack(body)[0] == b"agent" and unpack(body)[3] == b"1"
    assert agent.exec("echo alive").stdout == b"alive\n"


def test_sub_agents_end_with_the_agent():
    client = AgentClient()
    started = client.wait(start_sub(client, become("COMMAND"), **SUDO))
    items = [item.decode() for item in started.items]
    pid = int(dict(zip(items[::2], items[1::2]))["pid"])
    body = pack("sleep 1", "", 0, "null", "sh")
    request = client.request("EXEC", body, 1)
    while client.frame()[:2] != ("ACCEPTED", request):
        pass
    client.close()
    assert wait_until(lambda: gone(pid))


@pytest.mark.skipif(not shutil.which("sudo") or os.getuid() != 0, reason="needs root and sudo")
def test_sudo(agent):
    import pwd

    shell = become("sudo -H -S -n -u nobody COMMAND", "/usr/bin/python3")
    started = agent.wait(start_sub(agent, shell, become_success="BECOME-SUCCESS-abc"))
    assert started.kind == "STARTED", started
    request = agent.request("EXEC", pack("id -u", "", 0, "null", "sh"), 1)
    assert agent.wait(request).stdout == b"%d\n" % pwd.getpwnam("nobody").pw_uid
    assert agent.run(build("ping"), agent=1).rc == 0


# ------------------------------------------------------------ the protocol


def test_ping_pong(warm):
    warm.send("PING", b"opaque")
    assert warm.frame() == ("PONG", 0, 0, 0, b"opaque")


def test_a_request_is_asked_after(warm):
    warm.send("PING", b"", 77)
    kind, request, _agent, _flags, body = warm.frame()
    assert (kind, request) == ("FAILED", 77) and b"does not know" in body
    request = warm.request("EXEC", pack("cat", "", 0, "data", "sh"))
    warm.send("PING", b"still?", request)
    warm.send("DATA", b"", request, flags=2)
    kinds = [warm.frame()[:2] for _ in range(3)]
    assert kinds == [("ACCEPTED", request), ("PONG", request), ("EXIT", request)]


def test_compressed_frame(agent):
    raw = pack("echo " + "z" * 5000, "", 0, "null", "sh")
    body = struct.pack(">I", len(raw)) + zlib.compress(raw)
    agent.send("EXEC", body, 1, flags=1)
    agent.next = 1
    assert agent.wait(1).stdout == b"z" * 5000 + b"\n"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.0\r\n\r\nxxxxxxxx",
        frame("PING")[:2] + b"\2" + frame("PING")[3:],
        frame("PING")[:3] + b"\x63" + frame("PING")[4:],
        agent_client.HEADER.pack(0x4348, 1, 9, 0, 0, 0, 0, 1, 1 << 30),
        frame("STATUS", b"", 1),
        frame("EXEC", b"\0\1\0\0\0\x09abc", 1),
        frame("EXEC", pack("true"), 1),
        frame("EXEC", pack("true", "", "x", "null", "sh"), 1),
        frame("EXEC", struct.pack(">I", 5) + zlib.compress(b"123456"), 1, flags=1),
        frame("EXEC", b"\xff\xff\xff\xff" + zlib.compress(b"123456"), 1, flags=1),
        frame("PAYLOAD", pack("key", b"this is no zip file at all....")),
        frame("PAYLOAD", pack("key", b"\0\0\0\5" + zlib.compress(b"123456"), b"", b"")),
        frame("PAYLOAD", pack("key", b"\xff\xff\xff\xff" + zlib.compress(b"123456"), b"", b"")),
        frame("PAYLOAD", pack("key", b"", b"", b"")),
    ],
)
def test_broken_frames(data):
    client = AgentClient()
    request = client.exec_request("sleep 600")
    while client.frame()[:2] != ("ACCEPTED", request):
        pass
    client.process.stdin.write(data)
    client.process.stdin.flush()
    with pytest.raises((EOFError, BrokenPipeError)):
        while True:
            client.frame()
    client.close()


def test_marshalled_garbage(agent):
    """Compiled code that does not load is compiled again."""
    ping = build("ping")
    assert agent.run(ping, marshalled=b"garbage").rc == 0


# --------------------------------------------------------------- bootstrap


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish", "csh", "tcsh", "ksh", "mksh"])
def test_login_shells(shell):
    path = shutil.which(shell)
    if not path:
        pytest.skip("no " + shell)
    bootstrap = agent_client.bootstrap()
    for interpreter in (sys.executable, ["python3.99", sys.executable, "/usr/bin/python3"]):
        command = bootstrap.login_command(interpreter, agent_client.NONCE)
        done = subprocess.run(
            [path, "-c", command],
            input=bootstrap.start_input(agent_client.NONCE),
            capture_output=True,
        )
        assert b"\nCHURTEN-" + agent_client.NONCE.encode() + b"-READY\nCH" in done.stdout
    command = bootstrap.login_command(["python3.99"], agent_client.NONCE)
    done = subprocess.run([path, "-c", command], input=b"x" * 100, capture_output=True)
    assert b"CHURTEN-%s-NOPYTHON\n" % agent_client.NONCE.encode() in done.stdout


def test_login_command_is_plain():
    bootstrap = agent_client.bootstrap()
    for interpreter in ("/usr/bin/python3", ["python3", "/usr/libexec/platform-python"]):
        command = bootstrap.login_command(interpreter, agent_client.NONCE)
        before, script, after = command.split("'")
        assert (before, after) == ("/bin/sh -c ", "")
        assert not re.search(r"['\\!\n]", script)
    for bad in ("py'thon", "/x; rm", "$HOME/python", "", "a\nb\n;c", "`x`"):
        with pytest.raises(ValueError):
            bootstrap.login_command(bad, agent_client.NONCE)
    with pytest.raises(ValueError):
        bootstrap.login_command("python3", "short")


def test_discovery_order():
    names = ["python3.99", sys.executable, "/bin/sh"]
    command = agent_client.bootstrap().login_command(names, agent_client.NONCE)
    with AgentClient(command=command) as client:
        assert client.hello["interpreters"].split("\n") == names[1:]


@pytest.mark.row("B4")
def test_too_old_python(tmp_path):
    old = shutil.which("python2") or shutil.which("python2.7")
    if not old or subprocess.run([old, "-c", "1"], capture_output=True).returncode:
        pytest.skip("no Python 2")
    bootstrap = agent_client.bootstrap()
    command = bootstrap.login_command(old, agent_client.NONCE)
    data = bootstrap.start_input(agent_client.NONCE)
    done = subprocess.run(["/bin/sh", "-c", command], input=data, capture_output=True)
    assert done.stdout.strip() == b"CHURTEN-%s-NOPYTHON" % agent_client.NONCE.encode()


def test_short_input():
    bootstrap = agent_client.bootstrap()
    command = bootstrap.login_command(sys.executable, agent_client.NONCE)
    done = subprocess.run(["/bin/sh", "-c", command], input=b"x", capture_output=True)
    assert done.returncode == 1 and done.stdout == b""


def test_the_packed_agent_is_the_one_of_these_sources(tmp_path, monkeypatch):
    """What was built is used only if it is whole and was made of these sources; whatever is used starts an agent."""
    bootstrap = agent_client.bootstrap()
    monkeypatch.setenv("CHURTEN_POOL_DIR", str(tmp_path / "pool"))
    monkeypatch.setattr(bootstrap, "BUILT", tmp_path / "agent.start")
    made = []
    monkeypatch.setattr(bootstrap, "_make_parts", lambda make=bootstrap._make_parts: made.append(1) or make())

    def parts():
        made.clear()
        shutil.rmtree(tmp_path / "pool", ignore_errors=True)
        bootstrap._input_parts.cache_clear()
        return bootstrap._input_parts()

    before, after = parts()
    assert made, "there is no file"
    bootstrap.build(bootstrap.BUILT)
    whole = bootstrap.BUILT.read_bytes()
    used = parts()
    assert not made and b"".join(used) == whole[64:] and used[0] == before
    size = int(used[1][:8])
    assert zlib.decompress(used[1][16 : 16 + size]) == zlib.decompress(after[16 : 16 + int(after[:8])])
    for damaged in (whole[:-1], whole[:100] + b"x" + whole[101:], b"", b"0" * 64):
        bootstrap.BUILT.write_bytes(damaged)
        parts()
        assert made, damaged[:20]
    bootstrap.BUILT.write_bytes(whole)
    monkeypatch.setattr(bootstrap.importlib.util, "MAGIC_NUMBER", b"1234")
    parts()
    assert made, "for another Python"
    bootstrap._input_parts.cache_clear()


def shape(text):
    """The program that a text is, apart from docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            first = node.body[0]
            value = getattr(first, "value", None)
            if isinstance(first, ast.Expr) and isinstance(value, ast.Constant):
                node.body[0] = ast.Pass()
    return ast.dump(tree)


def test_strip_source():
    """Only comments and docstrings go; every line stays where it was."""
    bootstrap = agent_client.bootstrap()
    for path in bootstrap.PARTS:
        source = path.read_text(encoding="utf-8")
        stripped = bootstrap.strip_source(source)
        assert "#" not in re.sub(r'"[^"\n]*"', "", stripped)
        assert shape(source) == shape(stripped)
        assert source.count("\n") == stripped.count("\n")


def test_the_parts_become_one_program():
    """Everything of each part is there, where `place` says, but what it imports from others, or another has imported; and nothing else."""
    bootstrap = agent_client.bootstrap()
    whole = {bootstrap.place(node.lineno): ast.dump(node) for node in ast.parse(bootstrap._agent_source()).body}
    imported = set()
    for path in bootstrap.PARTS:
        for node in ast.parse(bootstrap.strip_source(path.read_text(encoding="utf-8"))).body:
            text, found = ast.dump(node), whole.pop(f"{path.name}:{node.lineno}", None)
            if isinstance(node, ast.ImportFrom) and node.module.startswith("churten."):
                assert found is None
            elif isinstance(node, ast.Import) and text in imported:
                assert found is None
            else:
                assert found == text
                imported.add(text)
    assert whole == {}


def test_marshal_payload_leaves_out_what_does_not_compile():
    import marshal

    wrapper = build("ping")
    data = changed_zip(wrapper.zip, {"ansible/modules/bad.py": b"def (:\n", "x.txt": b""})
    modules = marshal.loads(agent_client.bootstrap().marshal_payload(data))
    assert "ansible.modules.ping" in modules and "ansible.modules.bad" not in modules
    assert modules["ansible"][0] and not modules["ansible.modules.ping"][0]


def test_marshal_payload_takes_what_was_compiled_already(tmp_path, monkeypatch):
    """The same code as compiling gives; nothing that may be older than its source."""
    import importlib.util
    import py_compile
    import types

    bootstrap = agent_client.bootstrap()
    name = "ansible/module_utils/one.py"
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    text = b'"""One."""\ndef f(x):\n    return [y for y in x]\n'
    monkeypatch.setitem(sys.modules, "ansible", types.SimpleNamespace(__path__=[str(tmp_path / "ansible")]))
    kept = tmp_path / importlib.util.cache_from_source(name)

    def compiled(source, written=1000, at=1001, mode=py_compile.PycInvalidationMode.TIMESTAMP):
        file.write_bytes(source)
        os.utime(file, (written, written))
        py_compile.compile(str(file), str(kept), invalidation_mode=mode, doraise=True)
        os.utime(kept, (at, at))

    assert bootstrap._kept_code(name, text) is None, "not installed"
    compiled(text)
    ours, theirs = bootstrap._kept_code(name, text), compile(text, name, "exec", 0, True, 0)
    assert ours == theirs and marshal.dumps(ours, 2) == marshal.dumps(theirs, 2) and ours.co_consts[1].co_filename == name
    assert bootstrap._kept_code(name, text + b"\n") is None, "another source"
    compiled(text, at=1000)
    assert bootstrap._kept_code(name, text) is None, "within the same second"
    other = text.replace(b"One", b"Two")
    for mode, size, written in (("TIMESTAMP", None, 1005), ("UNCHECKED_HASH", None, 1000), ("TIMESTAMP", 20, 1000)):
        compiled(text, mode=py_compile.PycInvalidationMode[mode])
        kept.write_bytes(kept.read_bytes()[:size])
        os.utime(kept, (1009, 1009))
        file.write_bytes(other)
        os.utime(file, (written, written))
        found = bootstrap._kept_code(name, other)
        assert found is None or "Two." in found.co_consts, (mode, size)
    assert sorted(p.name for p in kept.parent.iterdir()) == [kept.name]


def test_wrapper_is_understood():
    assert isinstance(build("ping"), Wrapper) and build("ping").form in ("218", "219")
