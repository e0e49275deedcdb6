"""churten.transport.warm: what becomes of a request that fails, without hosts: repeated, left to stock, or an error Ansible knows."""

import pytest
from ansible.errors import AnsibleConnectionFailure

from churten.compat import connection as core
from churten.transport import pool, ssh, warm
from churten.transport.pool import PoolFailure
from churten.transport.warm import Route, Stock, WarmConnection


class Opened:
    final = (pool.OPENED, b"")


class Opening:
    final = None


class Connection(WarmConnection):
    """As much of a connection as `_attempt` needs."""

    def __init__(self, *outcomes, retries=0, opened=False, refuses=False, asks=False):
        self.outcomes = list(outcomes)
        self.retries = retries
        self._session = Opened() if opened else Opening()
        self.refuses = refuses
        self.asks = asks
        self.tries = 0

    def _route(self):
        return Route({"key": "k"}, "libssh", 10)

    def _refuse(self, failure):
        return self.refuses

    def _retries(self):
        return self.retries

    def _may_ask(self, failure):
        return self.asks

    def _unreachable(self, failure, in_data):
        return AnsibleConnectionFailure(failure.message)

    def _log(self, level, text):
        pass

    def do(self):
        def work(route):
            self.tries += 1
            outcome = self.outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return self._attempt(work, None)


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    found = []
    monkeypatch.setattr(warm, "pause", found.append)
    monkeypatch.setattr(warm.display, "warning", lambda text: found.append(text))
    warm._warned.clear()
    return found


def failure(cls, layer="agent", started=False):
    return PoolFailure(cls, layer, f"{cls} {layer}", started)


@pytest.mark.parametrize("cls", ["unreachable", "agent", "cancelled", "reset", "busy", "protocol"])
def test_what_may_have_started_is_never_repeated(cls):
    connection = Connection(failure(cls, started=True), "again", retries=5, opened=True)
    with pytest.raises(AnsibleConnectionFailure) as caught:
        connection.do()
    assert connection.tries == 1
    # Ansible would show a cause or context as part of the message; what core itself was handling may stand there.
    assert caught.value.__cause__ is None and not isinstance(caught.value.__context__, PoolFailure)


def test_a_session_found_dead_is_opened_again_once():
    lost = failure("unreachable", "tcp")
    connection = Connection(lost, "fine", opened=True)
    assert connection.do() == "fine"
    connection = Connection(lost, lost, "fine", opened=True)
    with pytest.raises(AnsibleConnectionFailure):
        connection.do()
    assert connection.tries == 2


def test_a_host_that_cannot_be_reached_is_tried_as_often_as_configured(pauses):
    down = failure("unreachable", "tcp")
    connection = Connection(down, "fine")
    with pytest.raises(AnsibleConnectionFailure):
        connection.do()
    connection = Connection(down, down, down, "fine", retries=3)
    assert connection.do() == "fine"
    assert pauses == [0, 1, 3]


def test_a_refusal_is_final_unless_somebody_can_answer():
    connection = Connection(failure("auth", "auth"), "fine", retries=3, opened=True)
    with pytest.raises(AnsibleConnectionFailure):
        connection.do()
    assert connection.tries == 1
    with pytest.raises(Stock):
        Connection(failure("auth", "auth"), "fine", asks=True).do()


def test_a_host_key_that_is_not_trusted_is_refused_by_ssh_itself():
    with pytest.raises(Stock):
        Connection(failure("hostkey", "hostkey"), "fine").do()


def test_an_unsupported_transport_gives_way_to_another():
    assert Connection(failure("unsupported"), "fine", refuses=True).do() == "fine"
    with pytest.raises(Stock):
        Connection(failure("unsupported"), "fine").do()


def test_a_dead_agent_and_a_reset_session_are_replaced(pauses):
    assert Connection(failure("agent"), "fine").do() == "fine"
    with pytest.raises(Stock):
        Connection(failure("agent"), failure("agent"), "fine").do()
    assert Connection(failure("reset"), failure("reset"), "fine").do() == "fine"
    assert not pauses


def test_who_comes_to_a_full_queue_waits(pauses):
    """... for as long as it takes, and without using up its tries. It is the pool who may say so, not a target."""
    assert Connection(*[failure("busy", "pool")] * 20, failure("reset"), *[failure("busy", "pool")] * 20, "fine").do() == "fine"
    assert len(pauses) == 40
    with pytest.raises(Stock):
        Connection(failure("busy", "agent"), "fine").do()
    assert len(pauses) == 40


def test_without_a_pool_everything_is_stock_and_is_said_once(pauses):
    for _ in range(3):
        with pytest.raises(Stock):
            Connection(failure("pool", "pool")).do()
    assert len(pauses) == 1 and "not accelerated" in pauses[0]


@pytest.mark.parametrize(
    "cls, layer, text, words",
    [
        ("unreachable", "tcp", "Connection refused", "ssh: connect to host h port 22: Connection refused"),
        ("unreachable", "tcp", "Connection timed out", "ssh: connect to host h port 22: Connection timed out"),
        (
            "unreachable",
            "dns",
            "Name or service not known",
            "ssh: Could not resolve hostname h: Name or service not known",
        ),
        ("unreachable", "tcp", "Connection to h closed by remote host.", "Connection to h closed by remote host."),
        (
            "unreachable",
            "tcp",
            "ssh: connect to host h port 22: No route to host",
            "ssh: connect to host h port 22: No route to host",
        ),
        ("unreachable", "kex", "kex error", "kex error"),
        ("auth", "auth", "u@h: Permission denied (publickey).", "u@h: Permission denied (publickey)."),
        (
            "hostkey",
            "hostkey",
            "No ED25519 host key is known",
            "No ED25519 host key is known\r\nHost key verification failed.",
        ),
    ],
)
def test_failures_are_worded_as_by_openssh(cls, layer, text, words):
    assert ssh.ssh_words(PoolFailure(cls, layer, text, False), {"host": "h", "port": "22", "user": "u"}) == words


@pytest.mark.parametrize(
    "variables, hint",
    [
        ({}, None),
        ({"ansible_python_interpreter": "/usr/bin/python3"}, "/usr/bin/python3"),
        ({"ansible_python_interpreter": "{{ x }}"}, None),
        ({"ansible_python_interpreter": "auto_silent"}, None),
        ({"ansible_python_interpreter": 3}, None),
        ({"ansible_facts": {"discovered_interpreter_python": "/p"}}, "/p"),
        ({"ansible_python_interpreter": "auto", "ansible_facts": {"discovered_interpreter_python": "/p"}}, "/p"),
        ({"ansible_facts": "nonsense"}, None),
    ],
)
def test_interpreter_hint(variables, hint):
    assert core.interpreter_hint(variables) == hint


def test_the_session_is_the_same_whatever_the_timeout():
    one = {
        "host": "h",
        "timeout_ms": "1",
        "idle_ms": "2",
        "argv": ["ssh", "-o", "ConnectTimeout=1", "-o", "Port=2", "--", "h"],
    }
    two = {
        "host": "h",
        "timeout_ms": "3",
        "idle_ms": "4",
        "argv": ["ssh", "-o", "ConnectTimeout=3", "-o", "Port=2", "--", "h"],
    }
    assert warm.session_identity(one) == warm.session_identity(two)
    two["argv"][4] = "Port=3"
    assert warm.session_identity(one) != warm.session_identity(two)


def test_a_local_file_changes_only_when_everything_has_come(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    path.chmod(0o640)
    (tmp_path / "same").hardlink_to(path)
    with warm.LateFile(bytes(path)) as file:
        file.write(b"half")
        assert path.read_text() == "old"
    with warm.LateFile(bytes(path)) as file:
        file.write(b"new")
        file.complete(0o600)
    assert path.read_text() == (tmp_path / "same").read_text() == "new" and path.stat().st_mode & 0o777 == 0o640
    fresh = tmp_path / "g"
    with warm.LateFile(bytes(fresh)) as file:
        file.write(b"half")
    assert not fresh.exists()
    with warm.LateFile(bytes(fresh)) as file:
        file.complete(0o750)
    assert fresh.read_bytes() == b"" and fresh.stat().st_mode & 0o777 == 0o750 & ~core.umask()
    (tmp_path / "link").symlink_to("g")
    with warm.LateFile(bytes(tmp_path / "link")) as file:
        file.write(b"through")
        file.complete(0o600)
    assert fresh.read_text() == "through" and (tmp_path / "link").is_symlink()
    with warm.LateFile(b"/dev/null") as file:
        file.write(b"away")
        file.complete(0o600)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "g", "link", "same"]


class Fetching(Connection):
    """A target that answers FETCH with `data`, and with `mode` as the file's permissions."""

    def __init__(self, data, mode):
        super().__init__()
        self.data, self.mode = data, mode

    def _open(self, route):
        return self, 1

    def _file_agent(self, route, client, session):
        return 0

    def call(self, kind, session, agent, body, *, sink):
        sink(self.data)
        return pool.Reply(0, 0, self.mode, b"", None, 0, False)

    def fetch(self, path):
        return warm.RemoteFiles._fetch(self, self._route(), "/etc/x", str(path))


@pytest.mark.parametrize("mode", [b"rw-r--r--", b"0x1ff", b"9", b"\xff", b"6 6"])
@pytest.mark.parametrize("old", [True, False])
def test_a_fetched_mode_that_is_none_is_a_broken_target(tmp_path, mode, old):
    """The file here is the old one, or none, and nothing lies beside it."""
    path = tmp_path / "file"
    if old:
        path.write_text("old")
    with pytest.raises(PoolFailure) as caught:
        Fetching(b"new", mode).fetch(path)
    assert (caught.value.cls, caught.value.started) == ("protocol", True)
    assert [p.read_text() for p in tmp_path.iterdir()] == (["old"] if old else [])
    Fetching(b"new", b"600").fetch(path)
    assert path.read_text() == "new"
