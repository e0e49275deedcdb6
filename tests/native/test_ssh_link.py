"""Links over libssh against a real sshd of our own: tests/unit/linkcheck.c drives, this file judges."""

import hashlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from sshds import KEYGEN, Server, free_port, key_agent, keygen

REPO = Path(__file__).resolve().parents[2]
SANITIZE = os.environ.get("CH_SANITIZE", "")
DRIVER = REPO / "tests" / "unit" / "bin" / ("asan" if SANITIZE else "") / "linkcheck"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a password account needs root")
MEGA = 1000 * 1000


def pattern(size):
    """What linkcheck sends as stdin."""
    out, x = bytearray(size), 1
    for i in range(size):
        x = (x * 1664525 + 1013904223) & 0xFFFFFFFF
        out[i] = x >> 24
    return bytes(out)


def sha1(data):
    return hashlib.sha1(data).hexdigest()


class Report:
    """linkcheck's lines, by what they say."""

    def __init__(self, text):
        self.text = text
        self.lines = text.splitlines()

    def words(self, start, maxsplit=-1):
        return [line.split(" ", maxsplit) for line in self.lines if line.startswith(start + " ")]

    @property
    def failed(self):
        """(class, layer, message) or None."""
        found = self.words("failed", 3)
        return tuple(found[0][1:]) if found else None

    def exit(self, chan=0):
        """(rc, signal, error)"""
        for _, number, rc, sig, error in self.words("exit", 4):
            if int(number) == chan:
                return int(rc), int(sig), error
        raise AssertionError(self.text)

    def out(self, chan=0, stream=1):
        for words in self.words("text", 3):
            if words[1:3] == [str(chan), str(stream)]:
                return words[3].replace("\\n", "\n")
        raise AssertionError(self.text)

    def stream(self, chan=0, stream=1):
        """(bytes, sha1)"""
        for words in self.words("stream"):
            if words[1:3] == [str(chan), str(stream)]:
                return int(words[3]), words[4]
        raise AssertionError(self.text)


@pytest.fixture(scope="session", autouse=True)
def driver():
    command = ["make", "-s", "-C", str(REPO / "tests" / "unit"), "all"]
    subprocess.run([*command, *(["CH_SANITIZE=1"] if SANITIZE else [])], check=True)
    # Where the tests of the extension preload a sanitizer, the driver brings its own.
    os.environ.pop("LD_PRELOAD", None)


@pytest.fixture(scope="module")
def top():
    path = Path(tempfile.mkdtemp(prefix="ch-link-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def server(top):
    server = Server(top)
    keygen(top / "id")
    shutil.copy(top / "id.pub", top / "authorized")
    yield server
    server.stop()


@pytest.fixture
def link(server, tmp_path):
    known = tmp_path / "known_hosts"
    known.write_text(server.host_line() + "\n")
    user = pwd.getpwuid(os.geteuid()).pw_name

    def run(*commands, code=0, **options):
        settings = {
            "host": server.host,
            "port": server.port,
            "user": user,
            "identity": server.dir / "id",
            "known": known,
            "check": "yes",
            "timeout_ms": 10000,
        }
        settings.update(options)
        args = []
        for key, value in settings.items():
            args += [f"{key}={v}" for v in (value if isinstance(value, list) else [value]) if v is not None]
        args += [f"exec={command}" for command in commands]
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ASAN_OPTIONS": "detect_leaks=1"}
        done = subprocess.run([str(DRIVER), *args], capture_output=True, encoding="latin-1", timeout=90, env=env)
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stderr == ""
        return Report(done.stdout)

    run.known = known
    run.user = user
    return run


# --- commands ---


def test_streams_and_exit_code(link):
    report = link("echo out; echo err >&2; exit 3")
    assert report.lines[0].startswith("open ok SSH-2.0-OpenSSH")
    assert report.exit() == (3, 0, "")
    assert (report.out(), report.out(stream=2)) == ("out\n", "err\n")


@pytest.mark.parametrize("rc", [0, 1, 127, 255])
def test_exit_codes(link, rc):
    assert link(f"exit {rc}").exit() == (rc, 0, "")


def test_signal(link):
    assert link("kill -TERM $$").exit() == (-1, 15, "")
    assert link("kill -KILL $$").exit() == (-1, 9, "")


def test_environment_is_sent_and_refusals_ignored(link):
    assert link('echo "$CH_A $NOT_ACCEPTED $CH_B"', env=["CH_A=1 2", "NOT_ACCEPTED=x", "CH_B=="]).out() == "1 2  =\n"


def test_several_commands_at_once(link):
    report = link(*[f"echo {i}; exit {i}" for i in range(8)])
    assert [report.exit(i)[0] for i in range(8)] == list(range(8))
    assert [report.out(i) for i in range(8)] == [f"{i}\n" for i in range(8)]


def test_ten_megabytes_both_ways(link):
    report = link("cat", stdin=10 * MEGA)
    sent = report.words("sent")[0]
    assert sent[1:] == [str(10 * MEGA), sha1(pattern(10 * MEGA))]
    assert report.stream() == (10 * MEGA, sent[2])


def test_both_streams_large(link):
    report = link("head -c 3000000 /dev/zero & head -c 2000000 /dev/zero >&2; wait; exit 7")
    assert report.exit()[0] == 7
    assert report.stream() == (3000000, sha1(bytes(3000000)))
    assert report.stream(stream=2) == (2000000, sha1(bytes(2000000)))


def test_a_paused_reader_loses_nothing(link):
    report = link("head -c 6000000 /dev/zero; echo end >&2", pause_ms=20)
    assert report.stream() == (6000000, sha1(bytes(6000000)))
    assert report.out(stream=2) == "end\n"


def test_stdin_nobody_reads(link):
    report = link("exec <&-; sleep 0.2; echo gone", stdin=5 * MEGA)
    assert report.exit() == (0, 0, "")
    assert report.out() == "gone\n"


@pytest.mark.row("A14")
def test_key_exchange_again_and_again(top, link):
    other = top / "rekey"
    other.mkdir()
    shutil.copy(top / "authorized", other / "authorized")
    server = Server(other, "127.0.0.72", "RekeyLimit 256K\n")
    try:
        link.known.write_text(server.host_line() + "\n")
        report = link("cat", stdin=4 * MEGA, host=server.host, port=server.port)
        assert report.stream() == (4 * MEGA, sha1(pattern(4 * MEGA)))
    finally:
        server.stop()


@pytest.mark.parametrize("limit", [{"rekey_bytes": 256 * 1024}, {"rekey_seconds": 1}])
def test_new_keys_as_often_as_asked_for(top, link, limit):
    other = top / f"client-rekey-{next(iter(limit))}"
    other.mkdir()
    shutil.copy(top / "authorized", other / "authorized")
    server = Server(other, "127.0.0.73", "LogLevel DEBUG1\n")
    try:
        link.known.write_text(server.host_line() + "\n")
        report = link("cat; sleep 2.5; echo", stdin=4 * MEGA, host=server.host, port=server.port, **limit)
        assert report.exit() == (0, 0, "")
        assert (server.dir / "sshd.log").read_text(errors="replace").count("SSH2_MSG_KEXINIT received") >= 2  # one without a limit
    finally:
        server.stop()


def test_a_chan_can_go_while_its_command_runs(link):
    report = link("sleep 30", "sleep 0.4; echo second", drop_chan_ms=100)
    assert "dropped chan" in report.lines
    assert report.out(1) == "second\n"


@pytest.mark.parametrize("after_ms", [1, 5, 20, 60])
def test_a_link_can_go_at_any_time(link, after_ms):
    assert "dropped" in link("sleep 30", stdin=MEGA, drop_ms=after_ms, links=4).lines


def test_many_links_at_once(link):
    report = link("echo hi", links=24)
    assert len(report.words("open")) == 24
    assert report.text.count("exit 0 0 0") == 24


def test_more_sessions_than_the_server_gives(top, link):
    other = top / "sessions"
    other.mkdir()
    shutil.copy(top / "authorized", other / "authorized")
    server = Server(other, "127.0.0.73", "MaxSessions 1\n")
    try:
        link.known.write_text(server.host_line() + "\n")
        report = link("sleep 0.3; echo first", "echo second", host=server.host, port=server.port, drop_ms=6000)
        results = sorted(report.exit(i)[0] for i in range(2))
        assert results == [-1, 0]
        assert "channel open failed" in report.text
    finally:
        server.stop()


# --- failures on the way ---


@pytest.mark.row("A1")
def test_refused(link):
    report = link(port=free_port("127.0.0.71"))
    assert report.failed[:2] == ("unreachable", "tcp")
    assert re.fullmatch(r"ssh: connect to host 127.0.0.71 port \d+: Connection refused", report.failed[2])


def test_unresolvable(link):
    report = link(host="no-such-host.invalid")
    assert report.failed[:2] == ("unreachable", "dns")
    assert report.failed[2].startswith("ssh: Could not resolve hostname no-such-host.invalid: ")


def test_a_name_is_resolved(link):
    failed = link(host="localhost", port=free_port("127.0.0.1")).failed
    assert re.fullmatch(r"ssh: connect to host localhost port \d+: Connection refused", failed[2])


def test_a_silent_server_meets_the_deadline(link):
    with socket.socket() as s:
        s.bind(("127.0.0.74", 0))
        s.listen()
        report = link(host="127.0.0.74", port=s.getsockname()[1], timeout_ms=400)
        words = f"Connection timed out during banner exchange\\r\\nConnection to 127.0.0.74 port {s.getsockname()[1]} timed out"
    assert report.failed == ("unreachable", "kex", words)


def test_a_full_backlog_meets_the_deadline(link):
    with socket.socket() as s:
        s.bind(("127.0.0.74", 0))
        s.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(s.getsockname())
        report = link(host="127.0.0.74", port=s.getsockname()[1], timeout_ms=400)
        for filler in fillers:
            filler.close()
    assert report.failed[:2] == ("unreachable", "tcp")
    assert report.failed[2].endswith("Connection timed out")


class Closer(threading.Thread):
    """Accepts `refusals` connections and closes them at once, then passes on to a server."""

    def __init__(self, refusals, target=None):
        super().__init__(daemon=True)
        self.refusals, self.target, self.seen = refusals, target, 0
        self.listener = socket.create_server(("127.0.0.75", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.seen += 1
            if self.target is None or self.seen <= self.refusals:
                client.close()
                continue
            server = socket.create_connection((self.target.host, self.target.port))
            for a, b in ((client, server), (server, client)):
                threading.Thread(target=self.copy, args=(a, b), daemon=True).start()

    @staticmethod
    def copy(a, b):
        try:
            while data := a.recv(65536):
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.mark.row("A17")
def test_a_server_that_is_too_busy_is_asked_again(link, server):
    relay = Closer(2, server)
    link.known.write_text(server.host_line(f"[127.0.0.75]:{relay.port}") + "\n")
    report = link("echo hi", host="127.0.0.75", port=relay.port)
    relay.listener.close()
    assert report.out() == "hi\n"
    assert relay.seen == 3


def test_a_server_that_always_hangs_up(link):
    relay = Closer(0)
    report = link(host="127.0.0.75", port=relay.port, timeout_ms=900)
    relay.listener.close()
    assert report.failed[:2] == ("unreachable", "kex")
    assert "closed by remote host" in report.failed[2] or "reset" in report.failed[2]
    assert 2 <= relay.seen <= 7


def test_bind_address(link):
    assert link("echo ${SSH_CLIENT%% *}", bind="127.0.0.99").out() == "127.0.0.99\n"
    assert link(bind="not-an-address").failed[:2] == ("unsupported", "tcp")


def test_address_family(link):
    assert link(host="127.0.0.71", family="inet6").failed[:2] == ("unreachable", "dns")


# --- algorithms ---


def test_no_common_algorithm_is_for_the_ssh_client(link):
    failed = link(ciphers="aes128-cbc").failed
    assert failed[:2] == ("unsupported", "kex")
    assert re.match(r"Unable to negotiate with 127.0.0.71 port \d+: no matching cipher found. Their offer: ", failed[2])


def test_a_list_libssh_knows_nothing_of(link):
    assert link(kex="sntrup761x25519-sha512@openssh.com").failed[:2] == ("unsupported", "kex")


def test_unknown_names_in_a_list_are_skipped(link):
    report = link(
        "echo hi",
        kex="sntrup761x25519-sha512@openssh.com,curve25519-sha256",
        ciphers="x,aes256-ctr",
        macs="hmac-sha2-256",
    )
    assert report.out() == "hi\n"


# --- host keys ---


@pytest.mark.row("A5")
def test_unknown_host_key(link, server):
    link.known.write_text("")
    report = link("echo hi")
    assert report.failed[:2] == ("hostkey", "hostkey")
    assert (
        report.failed[2]
        == f"No ED25519 host key is known for {server.name} and you have requested strict checking.\\r\\nHost key verification failed."
    )
    assert link.known.read_text() == ""


@pytest.mark.row("A5")
def test_accept_new_records_the_key(link, server, tmp_path):
    known = tmp_path / "new" / "known_hosts"
    assert link("echo hi", known=known, check="accept-new").out() == "hi\n"
    assert known.read_text() == server.host_line() + "\n"
    assert (known.stat().st_mode & 0o777, known.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert link("echo hi", known=known).out() == "hi\n"
    assert known.read_text().count("\n") == 1


def test_a_recorded_key_is_readable_for_ssh(link, server, tmp_path):
    known = tmp_path / "hashed"
    known.write_text("# no newline at the end")
    assert link("echo hi", known=known, check="accept-new", hash=1).out() == "hi\n"
    assert server.host not in known.read_text()
    found = subprocess.run([KEYGEN, "-F", server.name, "-f", str(known)], capture_output=True, text=True)
    assert found.returncode == 0 and "found: line 2" in found.stdout
    assert link("echo hi", known=known).out() == "hi\n"


@pytest.mark.row("A6")
@pytest.mark.parametrize("mode", ["yes", "accept-new"])
def test_changed_host_key(link, server, tmp_path, mode):
    keygen(tmp_path / "other")
    link.known.write_text(server.host_line(key=tmp_path / "other") + "\n")
    before = link.known.read_text()
    failed = link("echo hi", check=mode).failed
    assert failed[:2] == ("hostkey", "hostkey")
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in failed[2] and f"{link.known}:1" in failed[2]
    assert failed[2].endswith("Host key verification failed.")
    assert link.known.read_text() == before


@pytest.mark.row("A6")
def test_checking_off_accepts_a_changed_key(link, server, tmp_path):
    keygen(tmp_path / "other")
    link.known.write_text(server.host_line(key=tmp_path / "other") + "\n")
    before = link.known.read_text()
    assert link("echo hi", check="no").out() == "hi\n"
    assert link.known.read_text() == before


def test_alias_and_second_file(link, server, tmp_path):
    (tmp_path / "second").write_text(server.host_line("the-alias") + "\n")
    assert link("echo hi", known=["/dev/null", tmp_path / "second"], alias="The-Alias").out() == "hi\n"
    assert link("echo hi", known="/dev/null", **{"global": tmp_path / "second"}, alias="other").failed[0] == "hostkey"


@pytest.mark.row("A7")
def test_revoked_and_authority(link, server):
    link.known.write_text(server.host_line() + "\n@revoked * " + server.host_line().split(" ", 1)[1] + "\n")
    assert "REVOKED" in link("echo hi").failed[2]
    link.known.write_text("@cert-authority * " + server.host_line().split(" ", 1)[1] + "\n")
    assert link("echo hi").failed[:2] == ("unsupported", "hostkey")


# --- authentication ---


def test_no_key(link):
    assert link(identity=None).failed == (
        "auth",
        "auth",
        f"{link.user}@127.0.0.71: Permission denied (publickey,password,keyboard-interactive).",
    )


@pytest.mark.row("A8")
def test_keys_are_tried_one_by_one(link, server, tmp_path):
    keygen(tmp_path / "wrong")
    keygen(tmp_path / "rsa", "rsa", "", "-b", "2048", "-m", "PEM")
    assert (
        link("echo hi", identity=[tmp_path / "missing", tmp_path / "wrong", tmp_path / "rsa", server.dir / "id"]).out()
        == "hi\n"
    )
    assert link("echo hi", identity=[tmp_path / "wrong"]).failed[:2] == ("auth", "auth")


def test_key_types(link, server, tmp_path):
    before = (server.dir / "authorized").read_text()
    try:
        for kind, *extra in (
            ("rsa", "-b", "2048"),
            ("rsa", "-b", "2048", "-m", "PEM"),
            ("ecdsa",),
            ("ecdsa", "-m", "PEM"),
        ):
            path = keygen(tmp_path / f"k{len(extra)}{kind}", kind, "", *extra)
            (server.dir / "authorized").write_text(Path(f"{path}.pub").read_text())
            assert link("echo hi", identity=path).out() == "hi\n", (kind, extra)
    finally:
        (server.dir / "authorized").write_text(before)


@pytest.mark.parametrize("extra", [(), ("-m", "PEM")])
def test_a_passphrase_is_for_the_ssh_client(link, tmp_path, extra):
    keygen(tmp_path / "locked", "rsa", "secret-words", "-b", "2048", *extra)
    assert link("echo hi", identity=tmp_path / "locked").failed[:2] == ("unsupported", "auth")


def test_a_key_others_can_read_is_not_used(link, server, tmp_path):
    shutil.copy(server.dir / "id", tmp_path / "open")
    (tmp_path / "open").chmod(0o644)
    assert link("echo hi", identity=tmp_path / "open").failed[:2] == ("auth", "auth")


@pytest.fixture
def agent(tmp_path):
    with key_agent(tmp_path / "agent") as (add, process):
        yield tmp_path / "agent", add, process


def test_agent(link, server, agent, tmp_path):
    path, add, _ = agent
    keys = [keygen(tmp_path / f"k{i}") for i in range(3)]
    add(*keys, server.dir / "id")
    assert link("echo hi", identity=None, agent=path).out() == "hi\n"


@pytest.mark.row("A8")
def test_agent_with_identities_only(link, server, agent, tmp_path):
    path, add, _ = agent
    keys = [keygen(tmp_path / f"k{i}") for i in range(8)]
    add(*keys, server.dir / "id")
    # Without the filter, MaxAuthTries (6) ends it before the right key.
    report = link("echo hi", identity=None, agent=path)
    assert report.failed[:2] == ("auth", "auth") and ":2: Too many authentication failures\\r\\nDisconnected from" in report.failed[2]
    # A public key file selects; so does a private key file.
    shutil.copy(server.dir / "id.pub", tmp_path / "chosen.pub")
    assert link("echo hi", identity=tmp_path / "chosen.pub", agent=path, only=1).out() == "hi\n"
    assert link("echo hi", identity=server.dir / "id", agent=path, only=0).out() == "hi\n"
    assert link("echo hi", identity=None, agent=path, only=1).failed[:2] == ("auth", "auth")


def test_a_locked_key_that_the_agent_holds(link, server, agent, tmp_path):
    path, add, _ = agent
    add(server.dir / "id")
    shutil.copy(server.dir / "id", tmp_path / "locked")
    subprocess.run(
        [KEYGEN, "-q", "-p", "-P", "", "-N", "secret-words", "-f", str(tmp_path / "locked")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert link("echo hi", identity=tmp_path / "locked", agent=path, only=1).out() == "hi\n"


@pytest.mark.row("A22")
def test_no_agent_there(link, tmp_path):
    assert link("echo hi", agent=tmp_path / "nothing").out() == "hi\n"


@pytest.mark.row("A22")
def test_an_agent_that_does_not_answer_meets_the_deadline(link, server, agent):
    path, add, process = agent
    add(server.dir / "id")
    os.kill(process.pid, signal.SIGSTOP)
    report = link("echo hi", identity=None, agent=path, login_timeout_ms=500)
    assert report.failed[:2] == ("unreachable", "auth")
    assert report.failed[2].endswith("timed out")


class SlowSigner(threading.Thread):
    """An ssh-agent that lists keys as the real one does and never signs (or refuses, or hangs up)."""

    def __init__(self, path, real, manner):
        super().__init__(daemon=True)
        self.real, self.manner = real, manner
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.start()

    def run(self):
        client, _ = self.listener.accept()
        while head := client.recv(4, socket.MSG_WAITALL):
            body = client.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
            if body[0] == 13 and self.manner == "silent":
                continue
            if body[0] == 13 and self.manner == "slow":
                time.sleep(1.5)
            elif body[0] == 13 and self.manner == "refuse":
                client.sendall(b"\0\0\0\1\5")
                continue
            elif body[0] == 13:
                client.close()
                return
            with socket.socket(socket.AF_UNIX) as real:
                real.connect(str(self.real))
                real.sendall(head + body)
                answer = real.recv(4, socket.MSG_WAITALL)
                client.sendall(answer + real.recv(int.from_bytes(answer, "big"), socket.MSG_WAITALL))


@pytest.mark.row("A22")
@pytest.mark.parametrize("manner", ["silent", "refuse", "close"])
def test_an_agent_that_does_not_sign(link, server, agent, tmp_path, manner):
    path, add, _ = agent
    add(server.dir / "id")
    SlowSigner(tmp_path / "slow", path, manner)
    report = link("echo hi", identity=None, agent=tmp_path / "slow", login_timeout_ms=700)
    assert report.failed[0] == ("unreachable" if manner == "silent" else "auth"), report.text


@pytest.mark.row("A22")
def test_a_login_may_take_longer_than_the_connection(link, server, agent, tmp_path):
    """As with ssh: ConnectTimeout is for the connection, not for the person who must touch a key."""
    path, add, _ = agent
    add(server.dir / "id")
    SlowSigner(tmp_path / "slow", path, "slow")
    assert link("echo hi", identity=None, agent=tmp_path / "slow", timeout_ms=700).out() == "hi\n"


def test_a_link_can_go_while_the_agent_thinks(link, server, agent, tmp_path):
    path, add, _ = agent
    add(server.dir / "id")
    SlowSigner(tmp_path / "slow", path, "silent")
    report = link("echo hi", identity=None, agent=tmp_path / "slow", drop_ms=300)
    assert report.lines == ["dropped"]


@pytest.fixture(scope="module")
def account(top):
    """A throw-away account with a password; (name, password)."""
    name, password = f"chlink{os.getpid()}", "Pass-w0rd one"
    subprocess.run(["useradd", "-M", "-d", "/", "-s", "/bin/sh", name], check=True)
    try:
        subprocess.run(["chpasswd"], input=f"{name}:{password}\n", text=True, check=True)
        yield name, password
    finally:
        subprocess.run(["userdel", name], check=True)


@needs_root
def test_password(link, account):
    name, password = account
    assert (
        link("id -un", user=name, identity=None, password=password, auth=["publickey", "password"]).out() == name + "\n"
    )
    failed = link(user=name, identity=None, password="wrong", auth=["password"]).failed
    assert failed == (
        "auth",
        "auth",
        f"{name}@127.0.0.71: Permission denied (publickey,password,keyboard-interactive).",
    )


@pytest.mark.row("A8")
@needs_root
def test_password_is_sent_once_only(link, account, server):
    name, _ = account
    start = (server.dir / "sshd.log").stat().st_size
    link(user=name, identity=None, password="wrong", auth=["password", "keyboard-interactive", "password"])
    assert server.log_until("Connection closed by authenticating user", start).count("Failed password") == 1


@needs_root
def test_prompts(top, link, account):
    other = top / "prompts"
    other.mkdir()
    (other / "authorized").touch()
    extra = "KbdInteractiveAuthentication yes\nPasswordAuthentication no\n"
    server = Server(other, "127.0.0.76", extra, pam="yes")
    try:
        link.known.write_text(server.host_line() + "\n")
        name, password = account
        options = {"host": server.host, "port": server.port, "user": name, "identity": None}
        assert link("id -un", **options, password=password).out() == name + "\n"
        assert link(**options, password="wrong").failed[:2] == ("auth", "auth")
    finally:
        server.stop()


@pytest.mark.row("A6")
@needs_root
def test_no_password_for_a_changed_key(link, server, account, tmp_path):
    name, password = account
    keygen(tmp_path / "other")
    link.known.write_text(server.host_line(key=tmp_path / "other") + "\n")
    start = (server.dir / "sshd.log").stat().st_size
    assert link(user=name, identity=None, password=password, check="no").failed[:2] == ("auth", "auth")
    assert "password" not in server.log_until("Connection closed by authenticating user", start)


# --- broken in the middle ---


@pytest.mark.row("A9")
def test_killed_session(link):
    report = link("echo $PPID; sleep 30", "sleep 30", on_line="kill")
    assert report.failed[:2] == ("unreachable", "tcp")
    # Reset if bytes of ours were still unread there.
    assert report.failed[2] in (
        "Connection to 127.0.0.71 closed by remote host.",
        "Read from remote host 127.0.0.71: Connection reset by peer",
    )
    assert [report.exit(i) for i in range(2)] == [(-1, 0, report.failed[2])] * 2
    assert report.out().strip().isdigit()
    assert report.lines[-1].startswith("failed")


@pytest.mark.row("A13")
def test_a_stopped_server_does_not_stop_the_loop(link):
    report = link("echo $PPID; sha1sum", stdin=4 * MEGA, on_line="stop")
    # 1 s of ticks of 5 ms; a loop that sleeps in send() has none.
    assert int(report.words("stalled")[0][1]) > 20
    assert report.exit() == (0, 0, "")
    assert report.out().split()[1] == sha1(pattern(4 * MEGA))
