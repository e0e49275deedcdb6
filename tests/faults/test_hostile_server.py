# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile SSH servers against a real pool: each loses its own session at most, in time, and costs no memory; the neighbour's session notices nothing."""

import contextlib
import os
import random
import socket
import struct
import threading
import time

import pytest
from rogue import (
    CHANNEL_CLOSE,
    CHANNEL_DATA,
    CHANNEL_EOF,
    CHANNEL_OPEN,
    CHANNEL_REQUEST,
    CHANNEL_SUCCESS,
    CIPHERS,
    DEBUG,
    DISCONNECT,
    EXTENDED_DATA,
    GLOBAL_REQUEST,
    IGNORE,
    KEX_REPLY,
    KEXINIT,
    NEWKEYS,
    OPEN_CONFIRMATION,
    OPEN_FAILURE,
    SERVICE_ACCEPT,
    SERVICE_REQUEST,
    USERAUTH_BANNER,
    USERAUTH_FAILURE,
    USERAUTH_REQUEST,
    USERAUTH_SUCCESS,
    WINDOW_ADJUST,
    Rogue,
    text,
    u32,
)
from talking import DATA, EXIT, FAILED, NO_AGENT, OPENED, STARTED, _core

MANY = int(os.environ.get("CH_HOSTILE", "1"))  # times as much of every flood
MIB = 1 << 20
TIMEOUT_MS = 1500  # where nothing good can come of waiting
ROOM_KIB = int(
    os.environ.get("CH_HOSTILE_ROOM_KIB", "4096")
)  # of the pool's memory, for all that a hostile target can make it keep


class Case:
    """A pool with a healthy neighbour, and sessions to rogues beside it."""

    def __init__(self, pool):
        self.pool, self.rogues = pool, []
        self.neighbour = pool.talk()
        self.neighbour.begin(key="neighbour")
        self.talk = pool.talk()
        decent = self.rogue(lambda peer: (peer.open_channel(), peer.run(peer.exec())))
        self.open(decent, 999)  # what the libraries take for themselves
        assert self.talk.final(self.talk.start(999)).type == STARTED
        self.check_neighbour()
        self.before = self.memory()

    def memory(self):
        """KiB, at most since its start."""
        with open(f"/proc/{self.pool.process.pid}/status") as file:
            return int(next(line for line in file if line.startswith("VmHWM")).split()[1])

    def rogue(self, act=None, **more):
        self.rogues.append(Rogue(act, **more))
        return self.rogues[-1]

    def open(self, rogue, session=1, **more):
        options = {"user": "x", "timeout_ms": 20000, "host_key_checking": "no", "known_hosts": "/dev/null"}
        options |= {"alive_interval_ms": 1000, "alive_count": 20, **more}
        return self.talk.open(session, f"rogue{session}", "libssh", (), host="127.0.0.1", port=rogue.port, **options)

    def check_neighbour(self):
        assert self.neighbour.result(self.neighbour.exec("echo fine"))[1] == b"fine"

    def close(self):
        self.check_neighbour()
        used = self.memory() - self.before
        assert used < ROOM_KIB, f"the pool took {used} KiB"
        for rogue in self.rogues:
            rogue.close()
            assert not rogue.errors, rogue.errors


@pytest.fixture
def case(own_pool):
    made = Case(own_pool)
    try:
        yield made
    finally:
        made.close()


def closed(peer, seconds=20):
    """The pool hangs up on this peer."""
    peer.sock.settimeout(seconds)
    try:
        while peer.sock.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


# --- what a target must not do on its channel ---


def overflow(peer):
    """Much more than the window allows."""
    peer.many(bytes([CHANNEL_DATA]) + u32(peer.channel) + text(bytes(30000)), 2500 * MANY)


def overflow_stderr(peer):
    peer.many(bytes([EXTENDED_DATA]) + u32(peer.channel) + u32(1) + text(bytes(30000)), 2500 * MANY)


@pytest.mark.row("F12")
@pytest.mark.parametrize("flood", [overflow, overflow_stderr])
def test_window_overflow(case, flood):
    """The client reads nothing, so the window closes; the target sends on."""

    def act(peer):
        peer.open_channel()
        peer.exec()
        flood(peer)

    case.talk.final(case.open(case.rogue(act)))
    request = case.talk.exec("cat", agent=NO_AGENT)
    cls, layer, words, started = case.talk.failed(request)
    assert (cls, started) == ("unreachable", "1") and "window" in words


@pytest.mark.row("F12")
@pytest.mark.parametrize("largest", [0, 1, 20])
def test_a_tiny_largest_packet(case, largest):
    """0 is what sends an unpatched libssh into an endless loop; the agent's source has to go through it."""

    def act(peer):
        peer.open_channel(largest=largest)
        peer.exec()
        peer.serve()

    case.open(case.rogue(act))
    start = case.talk.start(input="x" * 20000, timeout_ms=TIMEOUT_MS)
    begin = time.monotonic()
    assert case.talk.failed(start)[0] in ("agent", "unreachable")
    assert time.monotonic() - begin < TIMEOUT_MS / 1000 + 10
    case.check_neighbour()


@pytest.mark.row("F12")
@pytest.mark.parametrize("window", [0, 1])
def test_a_window_that_stays_shut(case, window):
    def act(peer):
        peer.open_channel(window=window)
        peer.exec()
        peer.serve()

    case.open(case.rogue(act))
    assert case.talk.failed(case.talk.start(input="x" * 20000, timeout_ms=500))[0] == "agent"


@pytest.mark.row("F12")
def test_window_adjustments_beyond_any_number(case):
    def act(peer):
        peer.open_channel(window=0xFFFFFFFF)
        command = peer.exec()
        for _ in range(10):
            peer.send(WINDOW_ADJUST, u32(peer.channel), u32(0xFFFFFFFF))
        peer.run(command)

    case.open(case.rogue(act))
    assert case.talk.final(case.talk.start()).type in (STARTED, FAILED)


@pytest.mark.row("F12")
def test_data_after_close(case):
    """A channel's end is its end: what comes later reaches nobody, whether it is still known or not."""
    done = threading.Event()

    def act(peer):
        peer.open_channel()
        peer.exec()
        peer.data(b"before")
        for _ in range(3):
            peer.send(CHANNEL_EOF, u32(peer.channel))
            peer.data(b"after the end")
        for _ in range(3):
            peer.send(CHANNEL_CLOSE, u32(peer.channel))
            peer.data(b"after the close")
            peer.send(EXTENDED_DATA, u32(peer.channel), u32(1), text(b"after the close"))
            peer.send(CHANNEL_REQUEST, u32(peer.channel), text("exit-status"), b"\0", u32(7))
        done.set()
        peer.serve()

    case.talk.final(case.open(case.rogue(act)))
    request = case.talk.exec("cat", agent=NO_AGENT)
    got = case.talk.until(lambda f: f.request == request and f.type in (EXIT, FAILED))
    data = b"".join(f.body for f in case.talk.seen if f.request == request and f.type == DATA)
    assert b"after the close" not in data + got.body
    assert done.wait(20)
    for _ in range(3):
        case.check_neighbour()


@pytest.mark.row("F12")
def test_messages_for_channels_that_are_not_there(case):
    def act(peer):
        for number in (7, 43, 0xFFFFFFFF):
            for kind, *parts in (
                (CHANNEL_DATA, text("x")),
                (EXTENDED_DATA, u32(1), text("x")),
                (CHANNEL_EOF,),
                (CHANNEL_CLOSE,),
                (WINDOW_ADJUST, u32(5)),
                (CHANNEL_SUCCESS,),
                (CHANNEL_REQUEST, text("exit-status"), b"\0", u32(0)),
                (OPEN_CONFIRMATION, u32(0), u32(1), u32(1)),
                (OPEN_FAILURE, u32(1), text("no"), text("")),
            ):
                peer.send(kind, u32(number), *parts)
        with contextlib.suppress(AssertionError):  # one of them meant the client's first channel
            peer.open_channel()
            peer.run(peer.exec())

    case.open(case.rogue(act))
    assert case.talk.final(case.talk.start()).type in (STARTED, FAILED)


@pytest.mark.row("F12")
@pytest.mark.parametrize(
    "parts",
    [
        (CHANNEL_DATA, u32(0xFFFFFFFF)),
        (CHANNEL_DATA, u32(0x7FFFFFFF), b"x"),
        (EXTENDED_DATA, u32(1), u32(0xFFFFFFF0)),
        (CHANNEL_DATA,),
        (CHANNEL_REQUEST, u32(0xFFFFFFFF)),
        (CHANNEL_REQUEST, text("exit-status"), b"\0"),
        (CHANNEL_REQUEST, text("exit-signal"), b"\0", text(b"\x1b[2J" * 5000), b"\1", text(b"%n%s" * 5000), text("")),
        (CHANNEL_REQUEST, text(b"\0" * 30000), b"\1"),
    ],
    ids=["data", "data2", "stderr", "empty", "request", "status", "signal", "name"],
)
def test_malformed_messages_on_a_channel(case, parts):
    def act(peer):
        peer.open_channel()
        peer.exec()
        peer.send(parts[0], u32(peer.channel), *parts[1:])
        peer.send(CHANNEL_CLOSE, u32(peer.channel))
        peer.serve()

    case.talk.final(case.open(case.rogue(act)))
    got = case.talk.final(case.talk.exec("true", agent=NO_AGENT))
    assert got.type in (EXIT, FAILED)


# --- what a target opens and asks ---

CHANNELS = {
    "session": b"",
    "x11": text("127.0.0.1") + u32(6000),
    "forwarded-tcpip": text("127.0.0.1") + u32(22) + text("127.0.0.1") + u32(22),
    "direct-tcpip": text("127.0.0.1") + u32(22) + text("127.0.0.1") + u32(22),
    "auth-agent@openssh.com": b"",
    "forwarded-streamlocal@openssh.com": text("/tmp/x") + text(""),
    "unheard-of": b"",
}


@pytest.mark.row("F12")
@pytest.mark.parametrize("kind", CHANNELS)
def test_channels_opened_by_the_server_are_refused(case, kind):
    answers = []

    def act(peer):
        peer.open_channel()
        command = peer.exec()
        for number in range(20):
            peer.send(CHANNEL_OPEN, text(kind), u32(100 + number), u32(1 << 20), u32(1 << 15), CHANNELS[kind])
        while len(answers) < 20:
            payload = peer.get()
            if payload[0] in (OPEN_CONFIRMATION, OPEN_FAILURE):
                answers.append((payload[0], struct.unpack(">I", payload[1:5])[0]))
        peer.run(command)

    case.open(case.rogue(act))
    assert case.talk.final(case.talk.start()).type == STARTED
    assert answers == [(OPEN_FAILURE, 100 + number) for number in range(20)]


def global_requests(peer):
    peer.many(bytes([GLOBAL_REQUEST]) + text("keepalive@openssh.com") + b"\1", 400_000 * MANY)


def open_requests(peer):
    peer.many(bytes([CHANNEL_OPEN]) + text("x11") + u32(1) + u32(1) + u32(1) + CHANNELS["x11"], 200_000 * MANY)


def channel_requests(peer):
    peer.many(bytes([CHANNEL_REQUEST]) + u32(peer.channel) + text("keepalive@openssh.com") + b"\1", 200_000 * MANY)


def unknown_messages(peer):
    peer.many(bytes([200]) + bytes(10), 400_000 * MANY)


@pytest.mark.row("F12")
@pytest.mark.parametrize("flood", [global_requests, open_requests, channel_requests, unknown_messages])
def test_a_flood_of_questions_by_one_who_does_not_read_the_answers(case, flood):
    """Each question costs an answer, and nobody takes them: the pool must not keep them all."""

    def act(peer):
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.open_channel()
        peer.exec()
        flood(peer)
        time.sleep(30)

    case.open(case.rogue(act))
    start = case.talk.start(timeout_ms=60000)
    for _ in range(20):
        case.check_neighbour()
    got = case.talk.failed(start)
    assert got[0] == "unreachable" and "does not read" in got[2]


@pytest.mark.row("F12")
@pytest.mark.parametrize(
    "payload",
    [
        bytes([IGNORE]) + text(bytes(20)),
        bytes([IGNORE]) + text(bytes(30000)),
        bytes([DEBUG]) + b"\1" + text(bytes(30000)) + text(""),
    ],
    ids=["small", "large", "debug"],
)
def test_endless_messages_that_mean_nothing(case, payload):
    """They do not keep a session alive whose agent is silent, and others have their turn."""
    stop = threading.Event()

    def act(peer):
        peer.open_channel()
        peer.exec()
        while not stop.is_set():
            peer.many(payload, 1000)

    case.open(case.rogue(act))
    start = case.talk.start(timeout_ms=2000)
    for _ in range(20):
        case.check_neighbour()
    assert case.talk.failed(start)[0] in ("agent", "unreachable")
    stop.set()


# --- before there is a session ---


def endless_banner(peer):
    while True:
        peer.sock.sendall(b"x" * 60000)


def endless_lines(peer):
    while True:
        peer.sock.sendall(b"Welcome to this host\r\n" * 3000)


def endless_version(peer):
    peer.sock.sendall(b"SSH-2.0-")
    while True:
        peer.sock.sendall(b"x" * 60000)


def slow_version(peer):
    for byte in b"SSH-2.0-" + b"x" * 200:
        peer.sock.sendall(bytes([byte]))
        time.sleep(0.1)


def slow_kex(peer):
    peer.versions()
    for byte in peer.packet(peer.kexinit()):
        peer.sock.sendall(bytes([byte]))
        time.sleep(0.1)


def huge_packet(peer):
    peer.versions()
    peer.sock.sendall(u32(0xFFFFFFFF) + b"\4" + bytes(100000))
    time.sleep(10)


def large_packet(peer):
    peer.versions()
    peer.sock.sendall(u32(200_000_000) + b"\4")
    while True:
        peer.sock.sendall(bytes(60000))


def no_length(peer):
    peer.versions()
    peer.sock.sendall(u32(0) + bytes(100000))
    time.sleep(10)


def all_padding(peer):
    peer.versions()
    peer.raw(u32(12) + b"\xff" + bytes(11))
    time.sleep(10)


def endless_ignore_in_kex(peer):
    peer.versions()
    peer.raw(peer.packet(peer.kexinit()))
    while True:
        peer.many(bytes([IGNORE]) + text(bytes(30000)), 100)


def kexinit_flood(peer):
    peer.versions()
    while True:
        peer.many(peer.kexinit(), 1000)


def broken_kexinit(peer):
    peer.versions()
    peer.raw(peer.packet(bytes([KEXINIT]) + bytes(16) + u32(0xFFFFFFF0) + b"x" * 100))
    time.sleep(10)


def newkeys_first(peer):
    peer.versions()
    peer.send(NEWKEYS)
    peer.send(USERAUTH_SUCCESS)
    time.sleep(10)


def success_without_kex(peer):
    peer.versions()
    peer.raw(peer.packet(peer.kexinit()))
    peer.send(SERVICE_ACCEPT, text("ssh-userauth"))
    peer.send(USERAUTH_SUCCESS)
    time.sleep(10)


def short_point(peer):
    peer.versions()
    peer.raw(peer.packet(peer.kexinit()))
    peer.send(KEX_REPLY, text(peer.rogue.blob), text(b"x"), text(text("ssh-ed25519") + text(bytes(64))))
    peer.send(NEWKEYS)
    time.sleep(10)


def zero_point(peer):
    peer.versions()
    peer.raw(peer.packet(peer.kexinit()))
    peer.send(KEX_REPLY, text(peer.rogue.blob), text(bytes(32)), text(text("ssh-ed25519") + text(bytes(64))))
    peer.send(NEWKEYS)
    time.sleep(10)


def wrong_signature(peer):
    peer.versions()
    peer.rogue.key = Rogue.new_key()
    peer.keys()
    peer.login()


def hang_up_with_words(peer):
    peer.versions()
    peer.send(DISCONNECT, u32(2), text(b"\x1b]0;title\x07\r\n" * 10000), text(""))
    time.sleep(10)


def endless_user_banner(peer):
    peer.versions()
    peer.keys()
    peer.expect(SERVICE_REQUEST)
    peer.send(SERVICE_ACCEPT, text("ssh-userauth"))
    peer.expect(USERAUTH_REQUEST)
    while True:
        peer.many(bytes([USERAUTH_BANNER]) + text(b"hello\n" * 5000) + text(""), 100)


def endless_failures(peer):
    peer.versions()
    peer.keys()
    peer.expect(SERVICE_REQUEST)
    peer.send(SERVICE_ACCEPT, text("ssh-userauth"))
    while True:
        peer.many(bytes([USERAUTH_FAILURE]) + text("publickey,password,keyboard-interactive") + b"\1", 100)


def silent_login(peer):
    peer.versions()
    peer.keys()
    peer.serve()


BEGINNINGS = [
    endless_banner, endless_lines, endless_version, slow_version, slow_kex, huge_packet, large_packet, no_length, all_padding, endless_ignore_in_kex,
    kexinit_flood, broken_kexinit, newkeys_first, success_without_kex, short_point, zero_point, wrong_signature, hang_up_with_words, endless_user_banner,
    endless_failures, silent_login,
]  # fmt: skip


@pytest.mark.row("F12")
@pytest.mark.parametrize("before", BEGINNINGS)
def test_a_server_that_is_none(case, before):
    begin = time.monotonic()
    request = case.open(case.rogue(before=before), timeout_ms=TIMEOUT_MS, login_timeout_ms=TIMEOUT_MS)
    case.check_neighbour()
    cls, layer, words, started = case.talk.failed(request)
    assert time.monotonic() - begin < TIMEOUT_MS / 1000 + 5
    assert cls in ("unreachable", "auth", "unsupported") and layer in ("tcp", "kex", "auth") and started == "0"
    assert len(words) < 2000, "a message of the target's making is cut"
    status = case.talk.status()
    assert "rogue1" not in str(status)


# --- key exchange again and again, and never ---


@pytest.mark.row("F12")
def test_a_key_exchange_that_never_ends_while_questions_pour_in(case):
    def act(peer):
        peer.open_channel()
        peer.exec()
        peer.raw(peer.packet(peer.kexinit()))
        peer.many(bytes([GLOBAL_REQUEST]) + text("keepalive@openssh.com") + b"\1", 400_000 * MANY)
        time.sleep(30)

    case.open(case.rogue(act, strict=False))
    assert case.talk.failed(case.talk.start(timeout_ms=8000))[0] in ("agent", "unreachable")


@pytest.mark.row("F12", "A14")
def test_key_exchanges_in_a_storm(case):
    """The server wants new keys after every few packets; it works, and memory does not grow."""
    rounds = []

    def act(peer):
        peer.open_channel()
        peer.exec()
        for _ in range(40 * MANY):
            peer.keys()
            peer.data(b"x" * 1000)
            rounds.append(1)
        peer.send(CHANNEL_REQUEST, u32(peer.channel), text("exit-status"), b"\0", u32(0))
        peer.send(CHANNEL_CLOSE, u32(peer.channel))
        peer.serve()

    case.talk.final(case.open(case.rogue(act, strict=False)))
    rc, out, _ = case.talk.result(case.talk.exec("cat", agent=NO_AGENT))
    assert (rc, len(out), len(rounds)) == (0, 40000 * MANY, 40 * MANY)


# --- bits flipped on the way ---


@pytest.mark.row("F13")
@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("where", ["length", "first", "middle", "mac"])
def test_one_flipped_bit_ends_the_session(case, cipher, where):
    """Of a packet in the middle of a session, at a known place. With OpenSSL, libssh before July 2026 did not look at the tags of AES-GCM."""
    sizes = {"aes256-ctr": 32}
    delivered = b"flipped" * 100

    def act(peer):
        peer.open_channel()
        peer.exec()
        peer.data(b"good")
        tag = sizes.get(cipher, 16)

        def spoil(sealed):
            at = {"length": 3, "first": 20, "middle": len(sealed) // 2, "mac": len(sealed) - 1 - random.randrange(tag)}[
                where
            ]
            changed = bytearray(sealed)
            changed[at] ^= 1 << random.randrange(8)
            return bytes(changed)

        peer.spoil = spoil
        peer.data(delivered)
        peer.spoil = None
        for _ in range(200):
            peer.send(IGNORE, text(bytes(1000)))  # a flipped length wants more bytes
        peer.send(CHANNEL_REQUEST, u32(peer.channel), text("exit-status"), b"\0", u32(0))
        peer.send(CHANNEL_CLOSE, u32(peer.channel))
        peer.serve()

    for session in range(1, 6 * MANY):
        case.talk.final(case.open(case.rogue(act, cipher=cipher), session=session))
        request = case.talk.exec("cat", session, agent=NO_AGENT)
        got = case.talk.final(request)
        out = b"".join(f.body for f in case.talk.seen if f.request == request and f.type == DATA)
        assert got.type == FAILED and _core.unpack(got.body)[0] == b"unreachable", (got, out)
        assert b"flip" not in out and out in (b"", b"good"), out


@pytest.mark.row("F13")
def test_messages_slipped_in_before_the_keys_end_a_strict_key_exchange(case):
    """Terrapin: with strict key exchange no packet may come between; nor may packets be missing afterwards."""

    def slip(peer):
        peer.send(IGNORE, text("x"))

    got = case.talk.failed(case.open(case.rogue(during=slip)))
    assert got[:2] == ["unreachable", "kex"]

    def skip(peer):
        peer.open_channel()
        peer.exec()
        peer.sent += 1  # as if one packet had been cut out
        peer.data(b"lost before this")
        peer.serve()

    case.talk.final(case.open(case.rogue(skip, cipher="chacha20-poly1305@openssh.com"), session=2))
    assert case.talk.failed(case.talk.exec("cat", 2, agent=NO_AGENT))[0] == "unreachable"


@pytest.mark.row("F13")
def test_the_offer_is_never_wider_than_openssh_s(case):
    import subprocess

    done = subprocess.run(
        ["ssh", "-G", "-F", "/dev/null", "host"], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    settings = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    names = ["kexalgorithms", "hostkeyalgorithms", "ciphers", "ciphers", "macs", "macs"]
    rogue = case.rogue(lambda peer: peer.serve())
    case.talk.final(case.open(rogue))
    for name, offered in zip(names, rogue.peers[0].offer, strict=False):
        offered = set(offered) - {"ext-info-c", "kex-strict-c-v00@openssh.com", ""}
        assert offered and offered <= set(settings[name].split(",")), name
    assert rogue.peers[0].offer[6:] == [["none"], ["none"]], "no compression by the library: bombs"
    assert "kex-strict-c-v00@openssh.com" in rogue.peers[0].offer[0]


@pytest.mark.row("F13")
def test_a_list_of_the_user_is_the_whole_offer(case):
    rogue = case.rogue(cipher="aes256-ctr")
    lists = {
        "ciphers": "aes256-ctr,aes128-cbc-unheard-of",
        "macs": "hmac-sha2-256",
        "kex": "curve25519-sha256",
        "host_key_algorithms": "ssh-ed25519",
    }
    request = case.open(rogue, **lists)
    assert case.talk.final(request).type == OPENED
    offer = [
        [name for name in names if not name.startswith(("ext-info", "kex-strict"))] for names in rogue.peers[0].offer
    ]
    assert offer[:6] == [["curve25519-sha256"], ["ssh-ed25519"], *[["aes256-ctr"]] * 2, *[["hmac-sha2-256"]] * 2]
    refused = case.talk.failed(case.open(case.rogue(cipher="aes256-ctr"), session=2, ciphers="aes256-gcm@openssh.com"))
    assert refused[:2] == ["unsupported", "kex"]
