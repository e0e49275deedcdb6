"""A bad network between the pool and a real sshd: one session may be lost, nothing else is; nothing waits for ever; nothing runs twice."""

import contextlib
import hashlib
import os
import signal
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from far import Far
from lossy import Lossy
from sshds import SSHD, children, free_port, key_agent, keygen, kill
from talking import (
    ACCEPTED,
    CANCEL,
    CLOSE,
    DATA,
    END,
    EXIT,
    FAILED,
    FETCH,
    NO_AGENT,
    OPEN,
    OPENED,
    PUT,
    WINDOW,
)

from churten.lab.chaos import Chaos, Script, Way

MEGA = 1 << 20
FACTOR = int(os.environ.get("CHURTEN_FAULTS_FACTOR", "1"))  # sizes and counts, times this: 10 and more for a night


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    path = tmp_path_factory.mktemp("net")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def far(top):
    made = Far(top)
    yield made
    made.stop()


@pytest.fixture
def proxy(far):
    with Chaos(far.address) as made:
        yield made


@contextlib.contextmanager
def sshd(top, host, extra):
    made = Far(top, host, extra)
    try:
        yield made
    finally:
        made.stop()


def memory_kib(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0])


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Upload:
    """A PUT that sends whenever the window lets it."""

    def __init__(self, talk, session, path, data):
        self.talk, self.session, self.data, self.sent, self.window = talk, session, data, 0, MEGA
        self.request = talk.send(PUT, session, 0, [str(path), "0600", str(len(data))])
        self.feed()

    def feed(self):
        while self.sent < len(self.data) and self.window > 0:
            chunk = self.data[self.sent : self.sent + (128 << 10)]
            self.sent += len(chunk)
            self.window -= len(chunk)
            self.talk.send(DATA, self.session, 0, body=chunk, request=self.request, flags=END if self.sent == len(self.data) else 0)

    def step(self):
        """Handles one frame of this request; the final one is returned."""
        got = self.talk.until(lambda f: f.request == self.request and f.type in (WINDOW, EXIT, FAILED), "the upload goes on")
        if got.type != WINDOW:
            return got
        self.window += struct.unpack(">I", got.body)[0]
        self.feed()
        return None

    def finish(self):
        while (got := self.step()) is None:
            pass
        return got


def failure(talk, frame):
    assert frame.type == FAILED, frame
    from churten import _core

    return [item.decode() for item in _core.unpack(frame.body)]


# --- A11: stalls ---


@pytest.mark.row("A11")
@pytest.mark.parametrize("which", ["both", "down"])
def test_a_stalled_connection_is_given_up(own_pool, far, proxy, which):
    talk, other = own_pool.talk(), own_pool.talk()
    far.begin(other, key="other")
    far.begin(talk, at=proxy, alive_interval_ms=400, alive_count=3)
    request = talk.exec("sleep 60")
    talk.until(lambda f: f.request == request and f.type == ACCEPTED)
    proxy.links[0].stall(which)
    began = time.monotonic()
    cls, layer, words, started = talk.failed(request)
    assert (cls, layer, started) == ("unreachable", "agent", "1") and words == "no answer for 1 seconds"
    assert time.monotonic() - began > 0.8  # not at the first silent moment
    assert other.result(other.exec("echo fine"))[1] == b"fine\n"
    far.begin(talk, at=proxy, alive_interval_ms=400)
    assert talk.result(talk.exec("echo again"))[1] == b"again\n"


@pytest.mark.row("A11")
def test_a_long_silent_command_is_no_stall(own_pool, far, proxy):
    talk = own_pool.talk()
    far.begin(talk, at=proxy, alive_interval_ms=200, alive_count=3)
    assert talk.result(talk.exec("sleep 3; echo done"))[1] == b"done\n"


@pytest.mark.row("A11")
@pytest.mark.parametrize("offset", [0, 5, 300, 1200, 1600])
def test_a_stall_on_the_way_in_meets_a_deadline(own_pool, far, proxy, offset):
    proxy.script = lambda number: Script(down=Way(stall_at=offset))
    talk = own_pool.talk()
    opened = far.open(talk, at=proxy, timeout_ms=1500, login_timeout_ms=1000)
    start = far.start(talk, timeout_ms=500)
    cls, layer, words, started = talk.failed(opened)
    assert (cls, started) == ("unreachable", "0") and "timed out" in words
    assert layer == "kex" if offset < 1500 else layer in ("kex", "auth")
    assert talk.failed(start)[::3] == ["unreachable", "0"]


@pytest.mark.row("A11")
def test_the_kernel_asks_after_a_silent_connection(own_pool, far):
    """What has no agent that could be asked: probes of TCP, each 15 s. Seen in the kernel's own table of timers."""
    talk = own_pool.talk()
    assert talk.final(far.open(talk)).type == OPENED
    mine = {os.readlink(f"/proc/{own_pool.process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{own_pool.process.pid}/fd")}

    def timers():
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return {row[5].split(":")[0] for row in rows if row[3] == "01" and f"socket:[{row[9]}]" in mine}

    wait_for(lambda: timers() == {"02"}, 60)  # 02: a keepalive timer; 01, retransmission, while something is under way


@pytest.mark.row("A11")
def test_a_stall_while_the_agent_starts(own_pool, far, proxy):
    talk = own_pool.talk()
    assert talk.final(far.open(talk, at=proxy)).type == OPENED
    proxy.links[0].stall("down")
    request = far.start(talk, timeout_ms=800)
    cls, _, words, started = talk.failed(request)
    assert (cls, started) == ("agent", "0") and "in time" in words


# --- A13: a target that stops reading ---


@pytest.mark.row("A13")
@pytest.mark.parametrize("how", ["proxy", "sshd"])
def test_a_target_that_stops_reading_costs_nobody_else_anything(own_pool, far, proxy, top, how):
    talk, other = own_pool.talk(), own_pool.talk()
    far.begin(other, key="other")
    mine = set(children(far.server.process.pid))
    far.begin(talk, at=proxy, alive_interval_ms=3000, alive_count=2)
    sessions = [pid for pid in children(far.server.process.pid) if pid not in mine and b"sshd:" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for _ in range(5):
        assert other.result(other.exec("echo fine"))[1] == b"fine\n"
    before = memory_kib(own_pool.process.pid)
    assert talk.result(talk.exec("echo fine"))[1] == b"fine\n"  # not asked first whether it is still there
    if how == "proxy":
        proxy.links[0].stall("up")
    else:
        for pid in sessions:
            os.kill(pid, signal.SIGSTOP)
    upload = Upload(talk, 1, top / "never", bytes(20 * MEGA))
    began = time.monotonic()
    slowest = 0.0
    most = before
    while time.monotonic() - began < 3:
        at = time.monotonic()
        assert other.result(other.exec("echo fine"))[1] == b"fine\n"
        slowest = max(slowest, time.monotonic() - at)
        most = max(most, memory_kib(own_pool.process.pid))
    assert most - before <= 4 << 10, f"{most - before} KiB"
    assert slowest < 2.0  # a frozen loop would have taken until the session was given up
    cls, layer, words, started = failure(talk, upload.finish())
    assert (cls, layer, started) == ("unreachable", "agent", "1") and "no answer" in words
    assert upload.sent < 20 * MEGA
    for pid in sessions if how == "sshd" else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGKILL)
    far.begin(talk, session=2, key="next")
    assert talk.result(talk.exec("echo again", 2))[1] == b"again\n"


# --- A9, C14: the session ends under a request ---


@pytest.mark.row("A9")
@pytest.mark.parametrize("how", ["reset", "end"])
def test_a_broken_connection_ends_its_requests_at_once(own_pool, far, proxy, top, how):
    talk = own_pool.talk()
    far.begin(talk, at=proxy)
    running = talk.exec("echo $$; sleep 60")
    talk.until(lambda f: f.request == running and f.type == ACCEPTED)
    if how == "reset":
        proxy.links[0].reset()
    else:
        proxy.links[0].end("down")
    began = time.monotonic()
    cls, layer, words, started = talk.failed(running)
    assert ((cls, layer, started) == ("unreachable", "tcp", "1") and far.server.host in words) or "127.0.0.1" in words
    assert time.monotonic() - began < 10
    far.begin(talk, at=proxy)
    assert talk.result(talk.exec("echo again"))[1] == b"again\n"


@pytest.mark.row("C14")
def test_what_runs_when_the_connection_drops_goes_on_to_its_end(own_pool, far, proxy, top):
    mark = top / "natural-end"
    talk = own_pool.talk()
    far.begin(talk, at=proxy)
    pids = talk.exec(f"echo $PPID; sleep 0.3; echo $$ > {mark}.pid; sleep 2; echo done > {mark}")
    wait_for(lambda: Path(f"{mark}.pid").exists() and Path(f"{mark}.pid").read_text())
    child = int(Path(f"{mark}.pid").read_text())
    agent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    proxy.links[0].reset()
    assert talk.failed(pids)[::3] == ["unreachable", "1"]
    assert not gone(child) and not mark.exists()
    wait_for(mark.exists)
    wait_for(lambda: gone(child))
    wait_for(lambda: gone(agent))


# --- A10: reset in the middle of a file ---


@pytest.mark.row("A10")
@pytest.mark.parametrize("old", [True, False])
def test_an_upload_that_breaks_leaves_the_old_file(own_pool, far, proxy, top, old):
    folder = top / f"put-{old}"
    folder.mkdir()
    path = folder / "file"
    if old:
        path.write_text("old")
    size = 8 * MEGA * FACTOR
    proxy.script = lambda number: Script(up=Way(reset_at=size // 2))
    talk = own_pool.talk()
    far.begin(talk, at=proxy)
    got = failure(talk, Upload(talk, 1, path, os.urandom(size)).finish())
    assert got[::3] == ["unreachable", "1"]
    wait_for(lambda: [p.name for p in folder.iterdir()] == (["file"] if old else []))
    assert not old or path.read_text() == "old"


@pytest.mark.row("A10")
def test_a_download_that_breaks_says_so(own_pool, far, proxy, top):
    path = top / "large"
    path.write_bytes(os.urandom(4 * MEGA * FACTOR))
    proxy.script = lambda number: Script(down=Way(reset_at=2 * MEGA * FACTOR))
    talk = own_pool.talk()
    far.begin(talk, at=proxy)
    request = talk.send(FETCH, 1, 0, [str(path)])
    with pytest.raises(AssertionError, match=r"FAILED.*unreachable"):
        talk.result(request)


# --- A12, A14: slow, in pieces, with new keys all the time ---


@pytest.mark.row("A12")
def test_every_byte_a_packet_of_its_own(own_pool, far, proxy):
    proxy.script = lambda number: Script(up=Way(segment=1), down=Way(segment=1))
    talk = own_pool.talk()
    far.begin(talk, at=proxy, alive_interval_ms=1000)
    for size in (0, 1, 4095, 100_000):
        rc, out, _ = talk.result(talk.exec(f"head -c {size} /dev/zero; exit 3"))
        assert (rc, len(out)) == (3, size)


@pytest.mark.row("A12")
def test_a_far_and_thin_line_is_no_timeout(own_pool, far, proxy):
    proxy.script = lambda number: Script(
        up=Way(latency_s=0.25, bytes_per_s=16_000, hiccup=(0.05, 0.4)), down=Way(latency_s=0.25, bytes_per_s=16_000, hiccup=(0.05, 0.4))
    )
    talk = own_pool.talk()
    far.begin(talk, at=proxy, alive_interval_ms=1500, alive_count=3)
    assert talk.result(talk.exec("head -c 40000 /dev/zero; exit 3")) == (3, bytes(40000), b"")


@pytest.mark.row("A12")
@pytest.mark.slow
def test_a_line_that_loses_packets(own_pool, top):
    """Half a second there and back, each twentieth packet lost: nothing times out, every byte arrives."""
    try:
        line = Lossy(loss=0.05, delay_s=0.25)
    except (OSError, subprocess.CalledProcessError) as ex:
        pytest.skip(f"no TUN devices here: {ex}")
    data = os.urandom(200_000)
    with line, sshd(top, "0.0.0.0", "") as far:
        (top / "lossy-down").write_bytes(data)
        talk = own_pool.talk()
        far.begin(talk, host=line.far, alive_interval_ms=15000, alive_count=3, timeout_ms=60000)
        for n in range(5):
            assert talk.result(talk.exec(f"head -c {n * 5000} /dev/zero; exit {n}")) == (n, bytes(n * 5000), b"")
        assert Upload(talk, 1, top / "lossy-up", data).finish().type == EXIT
        assert (top / "lossy-up").read_bytes() == data
        assert talk.result(talk.send(FETCH, 1, 0, [str(top / "lossy-down")]))[1][: len(data)] == data
    assert line.dropped > 10, (line.carried, line.dropped)


@pytest.mark.row("A14")
def test_new_keys_all_the_time(own_pool, top):
    size = 16 * MEGA * FACTOR
    data = os.urandom(MEGA) * (size // MEGA)
    with sshd(top, "127.0.0.82", "RekeyLimit 256K\nLogLevel DEBUG1\n") as far, Chaos(far.address) as proxy:
        proxy.script = lambda number: Script(up=Way(segment=1400), down=Way(segment=1400))
        talk = own_pool.talk()
        far.begin(talk, at=proxy, alive_interval_ms=5000)
        (top / "down").write_bytes(data)
        upload = Upload(talk, 1, top / "up", data)
        download = talk.send(FETCH, 1, 0, [str(top / "down")])
        got, longest, last = hashlib.sha1(), 0.0, time.monotonic()
        count, ended = 0, {}
        while len(ended) < 2:
            frame = talk.until(lambda f: f.request in (upload.request, download) and f.type in (DATA, WINDOW, EXIT, FAILED), "progress")
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
            if frame.type in (EXIT, FAILED):
                ended[frame.request] = frame.type
            elif frame.type == WINDOW:
                upload.window += struct.unpack(">I", frame.body)[0]
                upload.feed()
            elif frame.body:
                got.update(frame.body)
                count += len(frame.body)
                talk.client.send(WINDOW, 1, 0, download, struct.pack(">I", len(frame.body)))
        assert set(ended.values()) == {EXIT}
        assert (count, got.digest()) == (size, hashlib.sha1(data).digest())
        assert (top / "up").read_bytes() == data
        log = (far.dir / "sshd.log").read_text(errors="replace")
        assert log.count("SSH2_MSG_NEWKEYS received") >= size // (256 << 10)
        assert longest < 10


# --- A15: the server drops a session that is kept ---


@pytest.mark.row("A15")
def test_a_session_that_was_dropped_while_idle_is_made_anew(own_pool, far):
    talk = own_pool.talk()
    for _ in range(20 * FACTOR):
        far.begin(talk)
        assert talk.result(talk.exec("echo fine"))[1] == b"fine\n"
        for pid in children(far.server.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ended = talk.until(lambda f: f.type == FAILED and f.request == 0)
        assert ended.session == 1
        assert talk.failed(talk.exec("echo late"))[::3] == ["unreachable", "0"]


@pytest.mark.row("A15")
def test_dropped_exactly_when_it_is_used_again(own_pool, far, top):
    """Whatever says that it never started did not; what was answered ran once."""
    talk = own_pool.talk()
    answers = []
    for n in range(30 * FACTOR):
        mark = top / f"race-{n}"
        far.begin(talk)
        victims = children(far.server.process.pid)
        request = talk.exec(f"echo x >> {mark}; echo fine") if n % 2 else None
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if request is None:
            request = talk.exec(f"echo x >> {mark}; echo fine")
        got = talk.until(lambda f, request=request: f.request == request and f.type in (EXIT, FAILED))
        answers.append("ran" if got.type == EXIT else failure(talk, got)[3])
        talk.until(lambda f: f.type == FAILED and f.request == 0)
        if answers[-1] == "0":
            assert not mark.exists()
        assert not mark.exists() or mark.read_text() == "x\n"
    assert len(answers) == 30 * FACTOR


@pytest.mark.row("A15")
def test_a_channel_on_a_session_that_has_just_died(own_pool, far, top):
    """Commands without an agent open a channel each: on a dead session that fails at once, as not begun or as lost, and ran no more than once."""
    talk = own_pool.talk()
    for n in range(10 * FACTOR):
        mark = top / f"channel-{n}"
        assert talk.final(far.open(talk)).type == OPENED
        victims = children(far.server.process.pid)
        requests = [far.raw(talk, f"echo x >> {mark}-{i}; sleep 0.5; echo fine") for i in range(n % 3)]
        wait_for(lambda mark=mark, n=n: all(Path(f"{mark}-{i}").exists() for i in range(n % 3)))
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002 * (n % 5))
        requests += [far.raw(talk, f"echo x >> {mark}-{i}; echo fine") for i in range(n % 3, 5)]
        for i, request in enumerate(requests):
            got = talk.until(lambda f, request=request: f.request == request and f.type in (EXIT, FAILED))
            if got.type == FAILED:
                cls, _, words, started = failure(talk, got)
                assert cls in ("unreachable", "reset") and words, got
                assert started == "1" or not Path(f"{mark}-{i}").exists()
        assert all(path.read_text() == "x\n" for path in top.glob(f"channel-{n}-*"))
        talk.send(CLOSE, 1, 0, body=b"", request=0)


# --- A16, A17: limits of the server ---


@pytest.mark.row("A16")
def test_everything_through_the_one_session_a_server_allows(own_pool, top):
    with sshd(top, "127.0.0.83", "MaxSessions 1\n") as far:
        talk = own_pool.talk()
        far.begin(talk)
        requests = [talk.exec(f"sleep 0.2; echo {n}") for n in range(50)]
        assert [int(talk.result(r)[1]) for r in requests] == list(range(50))
        cls, _, words, started = talk.failed(far.raw(talk, "echo one more"))
        assert ((cls, started) == ("unsupported", "0") and "refused" in words) or "open failed" in words
        assert talk.result(talk.exec("echo fine"))[1] == b"fine\n"


def test_commands_on_a_terminal(own_pool, top):
    with sshd(top, "127.0.0.84", "") as far:
        talk = own_pool.talk()
        far.begin(talk)
        command = 'tty | sed s/[0-9]*$//; echo "$TERM"; stty size; echo err >&2; exit 4'
        assert talk.result(talk.exec(command, agent=NO_AGENT, terminal="vt52"))[:2] == (4, b"/dev/pts/\r\nvt52\r\n0 0\r\nerr\r\n")
        # Its input stays open, and closing the channel hangs it up.
        request = talk.exec("echo $$; exec cat", agent=NO_AGENT, terminal="")
        pid = int(talk.until(lambda f: f.request == request and f.type == DATA).body)
        assert talk.result(talk.exec("sleep 0.5; echo fine"))[1] == b"fine\n"
        assert Path(f"/proc/{pid}").exists()
        talk.send(CANCEL, agent=NO_AGENT, request=request, body=b"")
        assert talk.result(request)[0] == -1
        wait_for(lambda: gone(pid))
    with sshd(top, "127.0.0.84", "PermitTTY no\n") as far:
        talk = own_pool.talk()
        far.begin(talk)
        cls, _, words, started = talk.failed(talk.exec("echo ran", agent=NO_AGENT, terminal="vt52"))
        assert (cls, started) == ("unsupported", "0") and "PTY allocation request failed" in words


@pytest.mark.row("A17")
def test_a_crowd_at_a_server_that_drops_most_of_it(own_pool, top):
    count = 100
    with sshd(top, "0.0.0.0", "MaxStartups 3:100:5\n") as far:
        talk = own_pool.talk()
        requests = [far.open(talk, n, key=f"c{n}", host=f"127.0.1.{n}") for n in range(1, count + 1)]
        for request in requests:
            got = talk.final(request)
            assert got.type == OPENED, failure(talk, got)
        dropped = (far.dir / "sshd.log").read_text().count("drop connection") + (far.dir / "sshd.log").read_text().count("MaxStartups")
        assert dropped > 0


@pytest.mark.row("A17")
def test_few_handshakes_at_once_to_one_address(own_pool, far):
    with Chaos(far.address) as proxy:
        proxy.script = lambda number: Script(down=Way(latency_s=0.3))
        talk = own_pool.talk()
        requests = [far.open(talk, n, at=proxy, key=f"p{n}") for n in range(1, 31)]
        proxy.wait(lambda: len(proxy.links) == 8)
        time.sleep(0.3)
        assert len(proxy.links) == 8
        assert [talk.final(r).type for r in requests] == [OPENED] * 30


NEWER = os.environ.get("CHURTEN_SSHD_ROOT")  # debootstrap --variant=minbase --include=openssh-server trixie THERE


@pytest.mark.row("A17")
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or NEWER is None, reason="penalties need OpenSSH 9.8 or later: CHURTEN_SSHD_ROOT names the root of a system that has it")
def test_a_server_that_punishes_whole_addresses(own_pool):
    """PerSourcePenalties as they come: a hundred hosts behind one sshd all open; only who fails to log in again and again is kept out, and not for ever."""
    with tempfile.TemporaryDirectory(dir=f"{NEWER}/tmp") as folder, contextlib.ExitStack() as stack:
        inside = "/" + os.path.relpath(folder, NEWER)
        host_key, key, wrong = (keygen(f"{folder}/{name}") for name in ("host", "id", "wrong"))
        port = free_port("127.0.0.1")
        Path(folder, "authorized").write_text(Path(f"{key}.pub").read_text())
        Path(folder, "known").write_text("* " + Path(f"{host_key}.pub").read_text())
        Path(folder, "config").write_text(
            f"Port {port}\nListenAddress 0.0.0.0\nHostKey {inside}/host\nPidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n"
            f"AuthorizedKeysFile {inside}/authorized\nPerSourcePenalties authfail:8\nMaxStartups 3:100:5\n"
        )
        Path(NEWER, "run/sshd").mkdir(exist_ok=True)
        log = Path(folder, "log")
        command = ["chroot", NEWER, "/usr/sbin/sshd", "-D", "-e", "-f", f"{inside}/config"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stack.enter_context(open(log, "wb")))
        stack.callback(process.wait)
        stack.callback(lambda: [kill(pid) for pid in [*children(process.pid), process.pid]])
        wait_for(lambda: "listening" in log.read_text(), 60)
        talk, known = own_pool.talk(), Path(folder, "known")

        def opened(number, host, **more):
            spec = {"key": f"p{number}", "name": "far", "transport": "libssh", "host": host, "port": port, "user": "root", "timeout_ms": 60000,
                    "identity_file": key, "auth": "publickey", "host_key_checking": "yes", "known_hosts": known, **more}  # fmt: skip
            return talk.send(OPEN, number, 0, [str(item) for pair in spec.items() for item in pair])

        requests = [opened(n, f"127.0.1.{n}") for n in range(1, 101)]
        for request in requests:
            got = talk.final(request)
            assert got.type == OPENED, (failure(talk, got), log.read_text()[-2000:])
        assert "penalt" not in log.read_text()
        for n in range(200, 203):
            assert talk.failed(opened(n, "127.0.0.1", identity_file=wrong))[::3] == ["auth", "0"]
        cls, _, words, started = talk.failed(opened(300, "127.0.0.1", timeout_ms=2000))
        assert (cls, started) == ("unreachable", "0") and "penalty" in log.read_text().lower(), (words, log.read_text()[-2000:])
        late = opened(301, "127.0.0.1", timeout_ms=90000)  # tried again until it is let in
        for _ in range(4):
            with contextlib.suppress(AssertionError):
                assert talk.final(late).type == OPENED
                break
        else:
            raise AssertionError(log.read_text()[-2000:])


# --- A2: packets dropped ---


@pytest.mark.row("A2")
def test_a_black_hole_is_given_up_when_its_time_is_over(own_pool, far):
    """Not before, and soon after: the bound of one host. `test_black_holes_hold_nobody_up` has that of many."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.84", 0))
        server.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        talk = own_pool.talk()
        begin = time.monotonic()
        request = far.open(talk, host="127.0.0.84", port=server.getsockname()[1], timeout_ms=2000)
        cls, layer, words, started = talk.failed(request)
        took_s = time.monotonic() - begin
    assert (cls, layer, started) == ("unreachable", "tcp", "0") and "timed out" in words
    assert 2.0 <= took_s < 4.0


# --- A20: reboots ---


@pytest.mark.row("A20")
@pytest.mark.slow
def test_fifty_reboots(own_pool, top):
    """sshd, its sessions and the agents die together, again and again: nothing of an earlier life answers, and nothing of it stays in the pool."""
    made = Far(top, "127.0.0.93")
    try:
        talk, agents, descriptors = own_pool.talk(), set(), []
        for _ in range(50):
            far_begin = time.monotonic()
            made.begin(talk)
            _, out, _ = talk.result(talk.exec("echo $PPID"))
            agents.add(out)
            running = talk.exec("sleep 60")
            talk.until(lambda f, running=running: f.request == running and f.type == ACCEPTED)
            old = made.server
            for pid in children(old.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert talk.failed(running)[::3] == ["unreachable", "1"]
            talk.until(lambda f: f.type == FAILED and f.request == 0)
            old.stop()
            assert talk.failed(talk.exec("echo stale"))[::3] == ["unreachable", "0"]
            with open(old.dir / "sshd.log", "ab") as log:
                old.process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(old.dir / "sshd_config")], stdin=subprocess.DEVNULL, stderr=log)
            wait_for(lambda: answers(made.address), 60)
            descriptors.append(len(os.listdir(f"/proc/{own_pool.process.pid}/fd")))
            assert time.monotonic() - far_begin < 60
        assert len(agents) == 50
        assert descriptors[-1] <= descriptors[0] + 1, descriptors
    finally:
        made.stop()


def answers(address):
    try:
        socket.create_connection(address, 1).close()
    except OSError:
        return False
    return True


# --- A5: many new hosts at once ---


@pytest.mark.row("A5", "F17")
def test_each_new_host_is_recorded_once(own_pool, top):
    count = 200
    with sshd(top, "0.0.0.0", "MaxStartups 500\n") as far:
        known = top / "accept-new"
        talk = own_pool.talk()
        more = {"known_hosts": known, "host_key_checking": "accept-new"}
        requests = [far.open(talk, n, key=f"n{n}", host=f"127.0.2.{n}", **more) for n in range(1, count + 1)]
        requests += [far.open(talk, n + count, key=f"m{n}", host=f"127.0.2.{n}", **more) for n in range(1, count + 1, 20)]
        for request in requests:
            got = talk.final(request)
            assert got.type == OPENED, failure(talk, got)
        names = [line.split()[0] for line in known.read_text().splitlines()]
        assert sorted(names) == sorted(f"[127.0.2.{n}]:{far.server.port}" for n in range(1, count + 1))


# --- A22: the ssh-agent ---


@pytest.mark.row("A22")
def test_a_used_ssh_agent_leaves_nothing_open(own_pool, far, tmp_path):
    talk = own_pool.talk()
    counts = [len(os.listdir(f"/proc/{own_pool.process.pid}/fd"))]
    with key_agent(tmp_path / "agent") as (add, process):
        add(far.key)
        for number, more in ((1, {}), (2, {"identity_file": "", "identity_agent": tmp_path / "agent"})):
            assert talk.final(far.open(talk, number, key=f"a{number}", **more)).type == OPENED
            counts.append(len(os.listdir(f"/proc/{own_pool.process.pid}/fd")))
        # One kind may open an epoll or event descriptor for good; a session is a socket and its duplicate.
        assert counts[2] - counts[1] <= counts[1] - counts[0] + 1, counts
        os.kill(process.pid, signal.SIGSTOP)
        more = {"identity_file": "", "identity_agent": tmp_path / "agent", "login_timeout_ms": 700}
        cls, layer, words, _ = talk.failed(far.open(talk, 3, key="a3", **more))
        assert (cls, layer) == ("unreachable", "auth") and words.endswith("timed out")
        far.begin(talk, 4, key="a4")
        os.kill(process.pid, signal.SIGCONT)
