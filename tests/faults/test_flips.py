# SPDX-License-Identifier: GPL-3.0-or-later
"""Bits flipped between the pool and a real sshd: whatever cipher and MAC the two agreed on, the session dies and nothing of it is believed.

CH_FLIPS=1000 flips so often for each cipher and MAC in each direction.
"""

import os
import random
import struct

import pytest
from talking import DATA, END, EXIT, FAILED, NO_AGENT, OPENED, WINDOW, _core

from churten.lab.chaos import Chaos

FLIPS = int(os.environ.get("CH_FLIPS", "2"))
AEAD = ["chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com", "aes128-gcm@openssh.com"]
CTR = ["aes256-ctr", "aes192-ctr", "aes128-ctr"]
MACS = ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512"]
OFFERED = [(cipher, "hmac-sha2-256") for cipher in AEAD] + [(cipher, mac) for cipher in CTR for mac in MACS]
SIZE = 600_000


@pytest.fixture
def session(lab, own_pool):
    """Opens sessions to a lab host through a proxy; answers the talk, the session's number and its link in the proxy."""
    host = lab.hosts[0]
    talk = own_pool.talk()
    with Chaos((host.address, host.port)) as proxy:

        def open_one(number, cipher, mac):
            request = talk.open(
                number,
                f"flips{number}",
                "libssh",
                (),
                host=proxy.host,
                port=proxy.port,
                user=lab.account,
                identity_file=str(lab.dir / "keys" / "user_ed25519"),
                host_key_checking="no",
                known_hosts="/dev/null",
                ciphers=cipher,
                macs=mac,
                timeout_ms=30000,
            )
            got = talk.final(request)
            assert got.type == OPENED, got
            return proxy.links[-1]

        yield talk, open_one


@pytest.mark.row("F13")
@pytest.mark.parametrize("cipher, mac", OFFERED)
def test_one_flipped_bit_from_the_target(session, cipher, mac):
    talk, open_one = session
    for number in range(1, FLIPS + 1):
        link = open_one(number, cipher, mac)
        # The flip is somewhere in what follows; the command sends on after it, because a changed length wants more bytes.
        link.down.way.flips[link.down.received + random.randrange(SIZE // 2)] = 1 << random.randrange(8)
        rc, out = drain(talk, talk.exec(f"head -c {SIZE} /dev/zero", number, agent=NO_AGENT))
        assert rc == "unreachable" and not out.strip(b"\0"), (rc, len(out))


def drain(talk, request):
    """(rc or class, output) at the request's end; acknowledges what it reads."""
    out = []
    while True:
        got = talk.until(lambda f: f.request == request)
        if got.type == DATA:
            out.append(got.body)
            talk.client.send(WINDOW, got.session, got.agent, request, struct.pack(">I", len(got.body)))
        elif got.type == FAILED:
            return _core.unpack(got.body)[0].decode(), b"".join(out)
        elif got.type == EXIT:
            items = _core.unpack(got.body)
            return int(items[0]), b"".join(out) + items[3]


@pytest.mark.row("F13")
@pytest.mark.parametrize("cipher, mac", OFFERED)
def test_one_flipped_bit_to_the_target(session, cipher, mac):
    talk, open_one = session
    for number in range(1, FLIPS + 1):
        link = open_one(number, cipher, mac)
        request = talk.exec("cat", number, agent=NO_AGENT, stdin="data")
        talk.send(DATA, number, NO_AGENT, request=request, body=b"begin")
        talk.until(lambda f, request=request: f.request == request and f.type == DATA)
        link.up.way.flips[link.up.received + random.randrange(1000, 60_000)] = 1 << random.randrange(8)
        for part in range(4):
            talk.send(DATA, number, NO_AGENT, request=request, body=bytes(60_000), flags=END if part == 3 else 0)
        rc, out = drain(talk, request)
        assert rc == "unreachable" and not out.strip(b"\0"), (rc, len(out))
