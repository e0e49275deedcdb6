# SPDX-License-Identifier: GPL-3.0-or-later
"""What core's shell plugin asks around each file, done by the agent's child without a shell: the same tree, output and status as by /bin/sh.

The texts are made by the installed ansible-core. Each runs twice, in two trees made alike: by the child, which leaves to /bin/sh what it does not do, and by
/bin/sh alone.
"""

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import time

import pytest
from agent_client import AgentClient

from churten.agent import child, shell

NAME = "ansible-tmp-1795309896.7664196-30246-60864707149535"
GENERATE = """
import json, shlex, sys
from ansible.plugins.loader import init_plugin_loader, shell_loader
init_plugin_loader()
for line in sys.stdin:
    method, args, kwargs, tmp, pause = json.loads(line)
    shell = shell_loader.get("sh")
    shell.set_options(direct={"remote_tmp": tmp or "~/.ansible/tmp"})
    command = getattr(shell, method)(*args, **kwargs)
    if pause:
        command = shell.append_command(command, "sleep 0")
    print(json.dumps("/bin/sh -c " + shlex.quote(command)), flush=True)
"""


@pytest.fixture(scope="module", params=[True, False], ids=["pause", "no pause"])
def texts(request):
    """text(method, *args, tmp=remote_tmp): what core would send for it: 2.20 and older with a pause behind it."""
    process = subprocess.Popen([sys.executable, "-c", GENERATE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def text(method, *args, tmp=None, **kwargs):
        process.stdin.write(json.dumps([method, args, kwargs, tmp, request.param]) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield text
    process.stdin.close()
    process.wait(20)
    process.stdout.close()


def plain(home="/root"):
    programs = [os.fsencode(shutil.which(name, path="/usr/bin:/bin")) for name in shell.Plain.PROGRAMS]
    found = shell.Plain(b"", programs, b"/usr/bin:/bin", os.fsencode(home))
    found.now = lambda environ: b""
    return found


def snapshot(root):
    """Everything below `root`: mode, content or target."""
    found = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        what = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() and info.st_mode & 0o400 else ""
        found[str(path.relative_to(root))] = oct(info.st_mode), info.st_uid, info.st_gid, what
    return found


def alone(command, env):
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, env=env, stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


def by_child(command, env):
    """(did the child do it itself, status, stdout, stderr)"""
    out_r, out_w = os.pipe()
    act = shell.shell_act(os.fsencode(command))
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(out_w, 1)
            if act is not None:
                child.do_in_child(act, plain(env["HOME"]), env)
        finally:
            os._exit(99)
    os.close(out_w)
    with open(out_r, "rb") as file:
        said = file.read()
    status = os.WEXITSTATUS(os.waitpid(pid, 0)[1])
    if status != 99:
        return True, status, said, b""
    assert said == b""
    return False, *alone(command, env)


@contextlib.contextmanager
def umask(value):
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def same(tmp_path, make, itself, mask=0o022, prepare=lambda root: None):
    """make(root): the command. Whether the child does it alone is `itself`."""
    results = []
    for name in ("one", "two"):
        root = tmp_path / name / "tree"
        root.mkdir(parents=True)
        prepare(root)
        env = {"HOME": str(root), "PATH": "/usr/bin:/bin"}
        command = make(str(root))
        with umask(mask):
            did, *answer = by_child(command, env) if name == "one" else (None, *alone(command, env))
        if name == "one":
            assert did is itself, command
        answer[1:] = [text.replace(os.fsencode(root), b"ROOT") for text in answer[1:]]
        results.append((answer, snapshot(root)))
    assert results[0] == results[1]
    return results[0]


# ------------------------------------------------------------- the home


@pytest.mark.parametrize(
    "user, itself",
    [
        ("~root", True),
        ("~" + pwd.getpwuid(os.getuid()).pw_name, True),
        ("~", True),
        ("~nobody", True),
        ("~no-such-account", False),
        ("~o'odd name", False),
        ("~root/x", False),
        ("~+", False),
        ("~1", False),
    ],
)
def test_home(texts, tmp_path, user, itself):
    same(tmp_path, lambda root: texts("expand_user", user), itself)


# --------------------------------------------------- the temporary folder


def prepared(kind):
    def prepare(root):
        tmp = root / "tmp"
        if kind in ("there", "setgid", "taken", "odd mode"):
            tmp.mkdir()
        if kind == "setgid":
            os.chmod(tmp, 0o2775)
        elif kind == "odd mode":
            os.chmod(tmp, 0o1777)
        elif kind == "taken":
            (tmp / NAME).mkdir()
            (tmp / NAME / "file").write_text("somebody's")
        elif kind == "a file":
            tmp.write_text("x")
        elif kind == "link":
            (root / "elsewhere").mkdir()
            tmp.symlink_to("elsewhere")
        elif kind == "dangling":
            tmp.symlink_to("nowhere")
        elif kind == "acl":
            tmp.mkdir()
            if not shutil.which("setfacl") or subprocess.run(["setfacl", "-d", "-m", "u:nobody:rwx", str(tmp)], capture_output=True).returncode:
                pytest.skip("no ACLs here")
        elif kind == "closed":
            if os.geteuid() == 0:
                pytest.skip("nothing is closed to root")
            tmp.mkdir(mode=0o500)

    return prepare


@pytest.mark.parametrize(
    "kind, itself",
    [
        ("nothing", True),
        ("there", True),
        ("setgid", True),
        ("odd mode", True),
        ("link", True),
        ("acl", True),
        ("taken", False),
        ("a file", False),
        ("dangling", False),
        ("closed", False),
    ],
)
@pytest.mark.parametrize("mask", [0o022, 0o777])
def test_folder(texts, tmp_path, kind, itself, mask):
    same(tmp_path, lambda root: texts("mkdtemp", basefile=NAME, tmpdir=root + "/tmp"), itself, mask, prepared(kind))


@pytest.mark.parametrize(
    "folder, itself",
    [
        ("ROOT/.ansible/tmp", True),
        ("ROOT/a+b:c@d%e=f,g-h.i/j", True),
        ("ROOT/tmp/", False),
        ("ROOT//tmp", False),
        ("ROOT/./tmp", False),
        ("ROOT/a/../tmp", False),
        ("$HOME/tmp", False),
        ("~/tmp", False),
        ("ROOT/a b", False),
        ("ROOT/a\\tb", False),
        ("ROOT/*", False),
        ("ROOT/`echo tmp`", False),
        ("ROOT/tmp; echo x", False),
        ("ROOT/ä", False),
    ],
)
def test_where_the_folder_is(texts, tmp_path, folder, itself):
    same(tmp_path, lambda root: texts("mkdtemp", basefile=NAME, tmp=folder.replace("ROOT", root)), itself)


@pytest.mark.parametrize("change", [{"mode": 0o755}, {"mode": 0}, {"basefile": "other"}, {"basefile": "-n"}])
def test_other_folders(texts, tmp_path, change):
    same(tmp_path, lambda root: texts("mkdtemp", tmpdir=root + "/tmp", **{"basefile": NAME, **change}), False)


def test_no_space_is_told_by_mkdir(texts, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "mkdir", full)
    command = texts("mkdtemp", basefile=NAME, tmpdir=str(tmp_path / "tmp"))
    assert by_child(command, {"HOME": "/", "PATH": "/usr/bin:/bin"})[0] is False


# ---------------------------------------------------------- permissions


def files(root):
    for name, mode in (("file", 0o640), ("none", 0), ("both", 0o6711), ("it's", 0o600)):
        (root / name).write_text(name)
        os.chmod(root / name, mode)
    (root / "folder").mkdir()
    os.chmod(root / "folder", 0o3750)
    (root / "link").symlink_to("file")
    (root / "dangling").symlink_to("nowhere")


@pytest.mark.parametrize("mode", ["u+x", "u+rx", "u+wx", "u+rwx"])
@pytest.mark.parametrize(
    "names, itself",
    [
        (["file"], True),
        (["none", "both", "folder/", "link"], True),
        (["file", "missing", "none"], False),
        (["dangling"], False),
        (["it's"], False),
        (["."], False),
    ],
)
def test_permissions(texts, tmp_path, mode, names, itself):
    same(tmp_path, lambda root: texts("chmod", [f"{root}/{name}" for name in names], mode), itself, 0o077, files)


@pytest.mark.parametrize("mode", ["a+rx", "+x", "0755", "u+s", "u+xr", "u-x", "u=rwx"])
def test_other_permissions(texts, tmp_path, mode):
    same(tmp_path, lambda root: texts("chmod", [root + "/file"], mode), False, 0o022, files)


# -------------------------------------------------------------- removal


def filled(kind):
    def prepare(root):
        (root / "kept").write_text("kept")
        folder = root / "tmp" / NAME
        folder.parent.mkdir()
        if kind == "a file":
            folder.write_text("x")
        elif kind == "link":
            (root / "other").mkdir()
            (root / "other" / "kept").write_text("kept")
            folder.symlink_to("../other")
        elif kind != "missing":
            folder.mkdir(mode=0o700)
        if kind == "files":
            for name in ("source", ".source.txt", "o'dd\n", "-r"):
                (folder / name).write_text(name)
            (folder / "out").symlink_to("../../kept")
            os.mkfifo(folder / "fifo")
        elif kind == "folders":
            (folder / "a" / "b").mkdir(parents=True)
            (folder / "a" / "b" / "c").write_text("c")
            (folder / "z").write_text("z")

    return prepare


@pytest.mark.parametrize(
    "kind, itself", [("empty", True), ("files", True), ("folders", False), ("missing", False), ("a file", False), ("link", False)]
)
def test_removal(texts, tmp_path, kind, itself):
    _, tree = same(tmp_path, lambda root: texts("remove", f"{root}/tmp/{NAME}/", recurse=True), itself, 0o022, filled(kind))
    assert "kept" in tree


@pytest.mark.parametrize("name, recurse", [(f"tmp/{NAME}", True), (f"tmp/{NAME}/", False), ("tmp/", True), (f"tmp/{NAME}/../", True), ("", True)])
def test_other_removals(texts, tmp_path, name, recurse):
    same(tmp_path, lambda root: texts("remove", f"{root}/tree2/{name}", recurse=recurse), False, 0o022, lambda root: filled("files")(root))


@pytest.mark.parametrize(
    "command",
    [
        "echo ~root && sleep 0",
        "/bin/bash -c 'echo ~root && sleep 0'",
        "/bin/sh -c 'echo ~root && sleep 0 && sleep 0'",
        "/bin/sh -c 'echo ~root && sleep 1'",
        "/bin/sh -c 'echo ~root && sleep 0' ",
        "/bin/sh -c 'echo ~root; id && sleep 0'",
        "/bin/sh -c 'echo ~root\n && sleep 0'",
        "/bin/sh -c 'chmod u+x /etc/x && id && sleep 0'",
        f"/bin/sh -c 'rm -f -r /tmp/{NAME}/ /etc/ > /dev/null 2>&1 && sleep 0'",
    ],
)
def test_other_texts(command):
    assert shell.shell_act(command.encode()) is None


# ------------------------------------------------- whose shells are plain

ASKS = "/bin/sh -c 'echo ~ && sleep 0'"


@pytest.fixture
def home(tmp_path):
    """The home of an account whose bash reads its .bashrc for every command."""
    if os.path.basename(pwd.getpwuid(os.getuid()).pw_shell) != "bash":
        pytest.skip("the account's shell is not bash")
    (tmp_path / ".bashrc").write_text("echo x >> ~/count\n")
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:/usr/bin:/bin", "SSH_CLIENT": "::1 1 22"}
    subprocess.run(["bash", "-c", ":"], env=env, check=True, stdin=subprocess.DEVNULL)
    if not (tmp_path / "count").exists():
        pytest.skip("bash reads nothing here")
    (tmp_path / "count").unlink()
    (tmp_path / "bin").mkdir()
    return tmp_path, env


def shells(path):
    """How many shells were started, once no more are."""
    count = -1
    while True:
        now = len((path / "count").read_text().split()) if (path / "count").exists() else 0
        if now == count:
            return now
        count = now
        time.sleep(0.3)


def ask(client):
    done = client.exec(ASKS, shell="login")
    assert (done.rc, done.stderr) == (0, b"")
    return done.stdout


def test_shells_are_asked_once(home):
    path, env = home
    said = os.fsencode(path) + b"\n"
    with AgentClient(env=env) as client:
        assert ask(client) == said
        assert shells(path) == 2  # the first command, and the probe
        assert [ask(client) for _ in range(5)] == [said] * 5
        assert shells(path) == 2


def test_a_command_with_an_environment_is_for_the_shell(home):
    path, env = home
    with AgentClient(env=env) as client:
        ask(client)
        assert shells(path) == 2
        assert client.exec(ASKS, shell="login", env="HOME=/elsewhere").stdout == b"/elsewhere\n"


@pytest.mark.parametrize("change", ["start-up file", "program"])
def test_what_changes_afterwards_is_seen(home, change):
    path, env = home
    with AgentClient(env=env) as client:
        ask(client)
        assert shells(path) == 2
        if change == "program":
            (path / "bin" / "mkdir").write_text("#!/bin/sh\n")
            (path / "bin" / "mkdir").chmod(0o755)
        else:
            (path / ".bashrc").write_text("echo x >> ~/count; echo noise\n")
        assert ask(client).splitlines()[-1] == os.fsencode(path)
        assert shells(path) == 3


@pytest.mark.parametrize(
    "start",
    ["echo noise", "echo noise >&2", "exit 3", "PATH=~/bin:$PATH", "exec sleep 600"],
)
def test_shells_that_are_not_plain(home, start):
    path, env = home
    (path / "bin" / "rm").write_text("#!/bin/sh\n")
    (path / "bin" / "rm").chmod(0o755)
    env = {**env, "PATH": "/usr/bin:/bin"}
    (path / ".bashrc").write_text(f"echo x >> ~/count\n{start}\n")
    with AgentClient(env=env) as client:
        for number in range(2):
            client.exec(ASKS, shell="login", timeout_ms=500)
            assert shells(path) == 2 + number


def test_an_account_with_another_shell(home, monkeypatch):
    monkeypatch.setattr(shell, "account_shell", lambda: "/bin/rbash")
    with pytest.raises(ValueError):
        shell.Plain.now({"HOME": "/"})
    monkeypatch.setattr(shell, "account_shell", lambda: "/bin/dash")
    shell.Plain.now({"HOME": "/"})
    with pytest.raises(ValueError):
        shell.Plain.now({"HOME": "/", "BASH_ENV": "/x"})


# ------------------------------------------- what follows a folder's making


def test_a_folder_and_what_follows(texts, tmp_path):
    """Made by a child, then permissions and removal by the agent itself; what is not quick or fails by others."""
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    with AgentClient(env=env) as client:

        def run(*words, **more):
            return client.exec(texts(*words, **more), shell="login")

        run("expand_user", "~")
        time.sleep(1)  # the probe
        for number, inside in enumerate((None, "file", "folder", "many", "large")):
            name = NAME[:-1] + str(number)
            folder = tmp_path / "tmp" / name
            done = run("mkdtemp", basefile=name, tmpdir=str(tmp_path / "tmp"))
            assert (done.rc, done.stdout, done.stderr) == (0, f"{name}={folder}\n".encode(), b"")
            assert client.put(str(folder / ".source"), b"x", "600").rc == 0
            done = run("chmod", [f"{folder}/", f"{folder}/.source"], "u+rwx")
            assert (done.rc, done.stdout, done.stderr) == (0, b"", b"") and (folder / ".source").stat().st_mode & 0o777 == 0o700
            missing = run("chmod", [f"{folder}/missing"], "u+x")
            assert (missing.rc, missing.stdout, missing.stderr) == alone(f"chmod u+x {folder}/missing", env)
            for n in range(20 if inside == "many" else 0):
                (folder / str(n)).touch()
            if inside == "folder":
                (folder / "in" / "it").mkdir(parents=True)
            elif inside == "large":
                with open(folder / "hole", "wb") as file:
                    file.truncate(1 << 30)
            done = run("remove", f"{folder}/", recurse=True)
            assert (done.rc, done.stdout, done.stderr) == (0, b"", b"")
            assert list((tmp_path / "tmp").iterdir()) == []


def test_what_is_quick(texts, tmp_path):
    made = {os.fsencode(tmp_path / NAME): 0.0}

    def quick(*words, **more):
        return shell.shell_act(os.fsencode(texts(*words, **more))).is_quick(made)

    folder = f"{tmp_path}/{NAME}"
    os.mkdir(folder)
    assert quick("chmod", [f"{folder}/", f"{folder}/source"], "u+x")
    assert not quick("chmod", [f"{folder}/", f"{folder}/in/it"], "u+x")
    assert not quick("chmod", [f"{folder}/", str(tmp_path)], "u+x")
    assert not quick("mkdtemp", basefile=NAME, tmpdir=str(tmp_path))
    assert not quick("expand_user", "~")
    assert quick("remove", folder + "/", recurse=True)
    assert not quick("remove", f"{tmp_path}/{NAME}1/", recurse=True)
    with open(folder + "/large", "wb") as file:
        file.truncate(shell.QUICK_BYTES + 1)
    assert not quick("remove", folder + "/", recurse=True)
