# SPDX-License-Identifier: GPL-3.0-or-later
"""An SSH server that says whatever a test wants, in every state of the protocol: a mock for hostile targets and for bits flipped on the way.

It speaks curve25519-sha256, ssh-ed25519 and three ciphers; everybody may log in. Until the test's `act` takes over, it is a decent server: exec requests run
under /bin/sh, so a real agent can live on it. `before`, `during` and `act` are called in the thread of a connection with its `Peer`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import socket
import struct
import subprocess
import threading

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.poly1305 import Poly1305

DISCONNECT, IGNORE, UNIMPLEMENTED, DEBUG, SERVICE_REQUEST, SERVICE_ACCEPT = range(1, 7)
KEXINIT, NEWKEYS, KEX_INIT, KEX_REPLY = 20, 21, 30, 31
USERAUTH_REQUEST, USERAUTH_FAILURE, USERAUTH_SUCCESS, USERAUTH_BANNER = range(50, 54)
GLOBAL_REQUEST, REQUEST_SUCCESS, REQUEST_FAILURE = range(80, 83)
(
    CHANNEL_OPEN,
    OPEN_CONFIRMATION,
    OPEN_FAILURE,
    WINDOW_ADJUST,
    CHANNEL_DATA,
    EXTENDED_DATA,
    CHANNEL_EOF,
    CHANNEL_CLOSE,
) = range(90, 98)
CHANNEL_REQUEST, CHANNEL_SUCCESS, CHANNEL_FAILURE = 98, 99, 100
CIPHERS = ("aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr")
PATIENCE_S = 30


def u32(number):
    return struct.pack(">I", number)


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return u32(len(value)) + value


def mpint(number):
    return text(number.to_bytes(number.bit_length() // 8 + 1, "big") if number else b"")


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def u32(self):
        self.at += 4
        return int.from_bytes(self.data[self.at - 4 : self.at], "big")

    def text(self):
        count = self.u32()
        self.at += count
        return self.data[self.at - count : self.at]


class Plain:
    """No keys yet."""

    block, etm = 8, False

    def seal(self, sequence, packet):
        return packet

    def open(self, sequence, take):
        head = take(4)
        return head + take(int.from_bytes(head, "big"))


class Gcm:
    block, etm = 16, True

    def __init__(self, key, iv, mac_key):
        self.cipher, self.fixed, self.counter = AESGCM(key), iv[:4], int.from_bytes(iv[4:12], "big")

    def nonce(self):
        self.counter += 1
        return self.fixed + ((self.counter - 1) % (1 << 64)).to_bytes(8, "big")

    def seal(self, sequence, packet):
        return packet[:4] + self.cipher.encrypt(self.nonce(), packet[4:], packet[:4])

    def open(self, sequence, take):
        head = take(4)
        return head + self.cipher.decrypt(self.nonce(), take(int.from_bytes(head, "big") + 16), head)


class ChaCha:
    block, etm = 8, True

    def __init__(self, key, iv, mac_key):
        self.main, self.length = key[:32], key[32:64]

    @staticmethod
    def stream(key, sequence, counter, data):
        nonce = counter.to_bytes(8, "little") + sequence.to_bytes(8, "big")
        return Cipher(algorithms.ChaCha20(key, nonce), None).encryptor().update(data)

    def tag(self, sequence, data):
        return Poly1305.generate_tag(self.stream(self.main, sequence, 0, bytes(32)), data)

    def seal(self, sequence, packet):
        sealed = self.stream(self.length, sequence, 0, packet[:4]) + self.stream(self.main, sequence, 1, packet[4:])
        return sealed + self.tag(sequence, sealed)

    def open(self, sequence, take):
        head = take(4)
        length = self.stream(self.length, sequence, 0, head)
        body = take(int.from_bytes(length, "big") + 16)
        assert hmac.compare_digest(self.tag(sequence, head + body[:-16]), body[-16:])
        return length + self.stream(self.main, sequence, 1, body[:-16])


class Ctr:
    """aes256-ctr with hmac-sha2-256."""

    block, etm = 16, False

    def __init__(self, key, iv, mac_key):
        self.seal_, self.open_ = (
            getattr(Cipher(algorithms.AES(key), modes.CTR(iv)), way)() for way in ("encryptor", "decryptor")
        )
        self.mac_key = mac_key

    def mac(self, sequence, packet):
        return hmac.new(self.mac_key, u32(sequence) + packet, hashlib.sha256).digest()

    def seal(self, sequence, packet):
        return self.seal_.update(packet) + self.mac(sequence, packet)

    def open(self, sequence, take):
        packet = self.open_.update(take(16))
        packet += self.open_.update(take(int.from_bytes(packet[:4], "big") - 12))
        assert hmac.compare_digest(self.mac(sequence, packet), take(32))
        return packet


KEY_BYTES = {Gcm: (32, 12), ChaCha: (64, 0), Ctr: (32, 16)}
KINDS = dict(zip(CIPHERS, (Gcm, ChaCha, Ctr), strict=True))


class Peer:
    """One connection to the rogue."""

    def __init__(self, rogue, sock):
        self.rogue, self.sock = rogue, sock
        sock.settimeout(PATIENCE_S)
        self.sent = self.received = 0  # packets, for the MACs
        self.out = self.into = Plain()
        self.session_id = None
        self.spoil = None  # changes the bytes of each sealed packet
        self.offer = None  # the client's KEXINIT, its name lists
        self.client_version = b""
        self.channel = None  # the client's number of its first channel
        self.window = 0  # what the client still takes there
        self.process = None
        self.lock = threading.Lock()
        self.seen = []  # types of the packets that came after the login

    # packets

    def take(self, count):
        data = bytearray()
        while len(data) < count:
            more = self.sock.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return bytes(data)

    def packet(self, payload, padding=None):
        size = 1 + len(payload) + (0 if self.out.etm else 4)
        if padding is None:
            padding = -size % self.out.block
            padding += self.out.block if padding < 4 else 0
        return u32(1 + len(payload) + padding) + bytes([padding]) + payload + bytes(padding)

    def raw(self, packet):
        """Seals and sends something that need not be a well-formed packet."""
        with self.lock:
            sealed = self.out.seal(self.sent, packet)
            self.sent = (self.sent + 1) % (1 << 32)
            if self.spoil is not None:
                sealed = self.spoil(sealed)
            self.sock.sendall(sealed)

    def send(self, kind, *parts):
        self.raw(self.packet(bytes([kind]) + b"".join(parts)))

    def many(self, payload, count):
        """The same packet again and again, sealed, in large writes."""
        packet = self.packet(payload)
        at_once = max(1, (1 << 18) // len(packet))
        while count > 0:
            with self.lock:
                n = min(count, at_once)
                self.sock.sendall(b"".join(self.out.seal((self.sent + i) % (1 << 32), packet) for i in range(n)))
                self.sent = (self.sent + n) % (1 << 32)
            count -= n

    def get(self):
        packet = self.into.open(self.received, self.take)
        self.received = (self.received + 1) % (1 << 32)
        return packet[5 : len(packet) - packet[4]]

    def expect(self, *kinds):
        while True:
            payload = self.get()
            if payload[0] in kinds:
                return Reader(payload[1:])
            assert payload[0] in (DISCONNECT, IGNORE, DEBUG, UNIMPLEMENTED, 7, WINDOW_ADJUST), payload
            if payload[0] == DISCONNECT:
                raise EOFError

    # the beginning

    def versions(self):
        self.sock.sendall(self.rogue.version + b"\r\n")
        while not self.client_version.endswith(b"\n"):
            self.client_version += self.take(1)
        self.client_version = self.client_version.strip()

    def kexinit(self):
        kex = ["curve25519-sha256", *(["kex-strict-s-v00@openssh.com"] if self.rogue.strict else [])]
        lists = [kex, ["ssh-ed25519"], *[[self.rogue.cipher]] * 2, *[["hmac-sha2-256"]] * 2, ["none"], ["none"], [], []]
        return bytes([KEXINIT]) + os.urandom(16) + b"".join(text(",".join(names)) for names in lists) + b"\0" * 5

    def keys(self):
        """One key exchange, asked for by us or by the client."""
        mine = self.kexinit()
        self.raw(self.packet(mine))
        theirs = self.get()
        while theirs[0] != KEXINIT:
            theirs = self.get()
        lists = Reader(theirs[17:])
        self.offer = [lists.text().decode().split(",") for _ in range(8)]
        self.rogue.during(self)
        client_key = self.expect(KEX_INIT).text()
        ephemeral = X25519PrivateKey.generate()
        shared = int.from_bytes(ephemeral.exchange(X25519PublicKey.from_public_bytes(client_key)), "big")
        server_key = ephemeral.public_key().public_bytes_raw()
        blob = self.rogue.blob
        version = self.rogue.version.rsplit(b"\n", 1)[-1]
        digest = hashlib.sha256(
            text(self.client_version)
            + text(version)
            + text(theirs)
            + text(mine)
            + text(blob)
            + text(client_key)
            + text(server_key)
            + mpint(shared)
        ).digest()
        self.session_id = self.session_id or digest
        signature = text("ssh-ed25519") + text(self.rogue.key.sign(digest))
        self.send(KEX_REPLY, text(blob), text(server_key), text(signature))
        self.send(NEWKEYS)
        kind = KINDS[self.rogue.cipher]
        key, iv = KEY_BYTES[kind]

        def derive(letter, size):
            out = b""
            while len(out) < size:
                out += hashlib.sha256(mpint(shared) + digest + (out or letter + self.session_id)).digest()
            return out[:size]

        self.out = kind(derive(b"D", key), derive(b"B", iv), derive(b"F", 32))
        if self.rogue.strict:
            self.sent = 0
        self.expect(NEWKEYS)
        self.into = kind(derive(b"C", key), derive(b"A", iv), derive(b"E", 32))
        if self.rogue.strict:
            self.received = 0

    def login(self):
        self.expect(SERVICE_REQUEST)
        self.send(SERVICE_ACCEPT, text("ssh-userauth"))
        self.expect(USERAUTH_REQUEST)
        self.send(USERAUTH_SUCCESS)

    # a session

    def open_channel(self, number=0, window=1 << 30, largest=1 << 15):
        """Waits for the client's first channel and confirms it."""
        request = self.expect(CHANNEL_OPEN)
        assert request.text() == b"session"
        self.channel, self.window = request.u32(), request.u32()
        self.send(OPEN_CONFIRMATION, u32(self.channel), u32(number), u32(window), u32(largest))

    def exec(self):
        """Waits for the command and says yes; answers its text."""
        while True:
            request = self.expect(CHANNEL_REQUEST)
            request.u32()
            name, wanted = request.text(), request.data[request.at]
            request.at += 1
            if wanted:
                self.send(CHANNEL_SUCCESS, u32(self.channel))
            if name == b"exec":
                return request.text().decode()

    def data(self, payload):
        self.send(CHANNEL_DATA, u32(self.channel), text(payload))

    def run(self, command):
        """Runs the command as a decent server would, from now on in threads."""
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        threading.Thread(target=self._output, daemon=True).start()
        threading.Thread(target=self.serve, daemon=True).start()

    def _output(self):
        with contextlib.suppress(OSError):
            while data := os.read(self.process.stdout.fileno(), 30000):
                self.data(data)

    def serve(self):
        """Takes what comes: input of the command, and anything else into `seen`."""
        with contextlib.suppress(OSError, EOFError, AssertionError, ValueError):
            while True:
                payload = self.get()
                self.seen.append(payload[0])
                if payload[0] == CHANNEL_DATA and self.process is not None:
                    reader = Reader(payload[1:])
                    reader.u32()
                    self.process.stdin.write(reader.text())
                    self.process.stdin.flush()
        with contextlib.suppress(OSError, AttributeError):
            self.process.stdin.close()


class Rogue:
    """Listens on 127.0.0.1 until `close`."""

    def __init__(self, act=None, before=None, during=None, cipher=CIPHERS[0], strict=True, version=b"SSH-2.0-rogue"):
        nothing = lambda peer: None  # noqa: E731
        self.act, self.before, self.during = act or (lambda peer: peer.serve()), before, during or nothing
        self.cipher, self.strict, self.version = cipher, strict, version
        self.key = self.new_key()
        self.blob = text("ssh-ed25519") + text(self.key.public_key().public_bytes_raw())
        self.peers, self.errors = [], []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @staticmethod
    def new_key():
        return Ed25519PrivateKey.generate()

    @property
    def public(self):
        return "ssh-ed25519 " + base64.b64encode(self.blob).decode()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                peer = Peer(self, self.listener.accept()[0])
                self.peers.append(peer)
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer):
        try:
            if self.before is not None:
                return self.before(peer)
            peer.versions()
            peer.keys()
            peer.login()
            self.act(peer)
        except (OSError, EOFError):
            pass  # the client has left
        except Exception as ex:
            self.errors.append(ex)

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for peer in self.peers:
            peer.sock.close()
            if peer.process is not None:
                peer.process.kill()
                peer.process.wait()
