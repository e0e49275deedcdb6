"""A small agent for tests of the pool: speaks the agent hop of docs/protocol.md on stdin and stdout and does what the test's command says.

EXEC commands: `echo TEXT`, `big N` (N bytes of output), `flood` (ignores the window), `hang`, `cat` (stdin to stdout), `die`, `garbage`, `deaf`, `true`,
`badwindow`, `double`, `flags` (of the request's own frame), `skip` (as a link of a broken chain),
`raw HEX`, `early HEX`, `pour HEX`, `lose` (is not answered, and unknown when asked after). RUN answers with its payload key and how
many payloads this agent has been sent. PUT and FETCH use plain files.
"""

import os
import struct
import sys
import threading
import time

HELLO, OPEN, OPENED, START, STARTED, PAYLOAD, NEED, RUN, EXEC, PUT, FETCH, DATA, WINDOW, CANCEL = range(1, 15)
ACCEPTED, STAMP, EXIT, FAILED, PING, PONG, CLOSE, RESET, STATUS, STOP, LOG = range(15, 26)
END = 2
WINDOW_BYTES = 1 << 20

lock = threading.Lock()
windows = {}
changed = threading.Condition(lock)
cancelled = set()
lost = set()
stdins = {}
payloads = {}
subs = {}


def vec(*items):
    items = [i.encode() if isinstance(i, str) else i for i in items]
    return struct.pack(">H", len(items)) + b"".join(struct.pack(">I", len(i)) + i for i in items)


def unvec(body):
    (count,) = struct.unpack(">H", body[:2])
    at, out = 2, []
    for _ in range(count):
        (size,) = struct.unpack(">I", body[at : at + 4])
        out.append(body[at + 4 : at + 4 + size])
        at += 4 + size
    assert at == len(body)
    return out


def send(kind, agent, request, body=b"", flags=0):
    with lock:
        send_locked(kind, agent, request, body, flags)


def send_locked(kind, agent, request, body=b"", flags=0):
    data = struct.pack(">HBBBBHIII", 0x4348, 1, kind, flags, 0, agent, 0, request, len(body)) + body
    while data:
        data = data[os.write(1, data) :]


def read_exactly(size):
    out = bytearray()
    while len(out) < size:
        more = os.read(0, min(size - len(out), 1 << 20))
        if not more:
            os._exit(0)
        out += more
    return bytes(out)


def hello(pid):
    return vec("python", sys.executable, "version", "3.fake", "magic", "00", "pid", str(pid), "uid", str(os.getuid()), "home", "/", "hostname", "fake")


def finish(agent, request, rc=0, out=b"", err=b""):
    send(EXIT, agent, request, vec(str(rc), "0", "1", out, err, "0"))


def output(agent, request, size, stream=1):
    sent = 0
    while sent < size:
        chunk = min(size - sent, 100000)
        with changed:
            while windows[request] <= 0 and request not in cancelled:
                changed.wait()
            if request in cancelled:
                return False
            windows[request] -= chunk
            send_locked(DATA, agent, request, b"x" * chunk, stream << 2)
        sent += chunk
    return True


def execute(agent, request, items, flags):
    command = items[0].decode()
    word, _, rest = command.partition(" ")
    if word not in ("unaccepted", "early", "skip"):
        send(ACCEPTED, agent, request)
    if word == "echo":
        return finish(agent, request, 0, rest.encode(), b"agent %d" % agent)
    if word == "big":
        ok = output(agent, request, int(rest))
        return finish(agent, request, 0 if ok else -1)
    if word == "flood":
        while True:
            send(DATA, agent, request, b"x" * 65536, 1 << 2)
    if word == "hang" or word == "unaccepted":
        with changed:
            while request not in cancelled:
                changed.wait()
        return finish(agent, request, -1)
    if word == "cat":
        data = b""
        while True:
            with changed:
                while not stdins.get(request):
                    changed.wait()
                chunk, flags = stdins[request].pop(0)
            if chunk:
                send(WINDOW, agent, request, struct.pack(">I", len(chunk)))
            data += chunk
            if flags & END:
                break
        return finish(agent, request, 0, b"%d" % len(data), data[:10])
    if word == "deafcat":
        return None
    if word == "die":
        os._exit(3)
    if word == "garbage":
        os.write(1, b"Segmentation fault")
        return None
    if word in ("raw", "early"):  # bytes in hex, REQ stands for the request's number; `early`: without ACCEPTED
        with lock:
            return os.write(1, bytes.fromhex(rest.replace("REQ", "%08x" % request)))
    if word == "pour":  # the same for ever
        data = bytes.fromhex(rest.replace("REQ", "%08x" % request)) * 500
        while True:
            with lock:
                os.write(1, data)
    if word == "flags":
        return finish(agent, request, 0, b"%d" % flags, items[-1])
    if word == "skip":
        return send(FAILED, agent, request, vec("chain", "agent", "the request before it did not end as foretold", "0"))
    if word == "lose":
        return lost.add(request)
    if word == "badwindow":
        return send(WINDOW, agent, request, struct.pack(">I", 1))
    if word == "double":
        return send(ACCEPTED, agent, request)
    if word == "unknown":
        return send(EXIT, agent, request + 1000, vec("0", "0", "0", "", "", "0"))
    if word == "env":
        return finish(agent, request, 0, os.environ.get(rest, "").encode())
    if word == "pid":
        return finish(agent, request, 0, b"%d" % os.getpid())
    finish(agent, request, 127)


def work(kind, agent, request, body, flags):
    items = unvec(body)
    if kind == EXEC:
        execute(agent, request, items, flags)
    elif kind == RUN:
        send(ACCEPTED, agent, request)
        finish(agent, request, 0, items[0] + b" %d" % len(payloads.get(agent, ())))
    elif kind == PUT:
        with open(items[0], "wb") as f:
            while True:
                with changed:
                    while not stdins.get(request):
                        changed.wait()
                    chunk, flags = stdins[request].pop(0)
                f.write(chunk)
                if chunk:
                    time.sleep(0.03 if items[0].endswith(b"-far-away") else 0)
                    send(WINDOW, agent, request, struct.pack(">I", len(chunk)))
                if flags & END:
                    break
        finish(agent, request)
    elif kind == FETCH:
        try:
            with open(items[0], "rb") as f:
                data = f.read()
        except OSError as ex:
            send(FAILED, agent, request, vec("file", "file", str(ex), "1"))
            return
        send(DATA, agent, request, data, END)
        finish(agent, request)


def serve():
    while True:
        head = read_exactly(20)
        magic, version, kind, flags, reserved, agent, session, request, length = struct.unpack(">HBBBBHIII", head)
        assert (magic, version, reserved, session) == (0x4348, 1, 0, 0), head
        body = read_exactly(length)
        if kind == PAYLOAD:
            payloads.setdefault(agent, []).append(unvec(body)[0])
        elif kind == START:
            items = unvec(body)
            spec = dict(zip(items[::2], items[1::2]))
            if b"refuse" in spec[b"key"]:
                send(FAILED, agent, 0, vec(spec[b"command"].decode(), "become", "sorry", "0"))
            elif b"never" not in spec[b"key"]:
                subs[agent] = True
                send(STARTED, agent, 0, hello(agent))
        elif kind == CLOSE:
            subs.pop(agent)
        elif kind == WINDOW:
            with changed:
                windows[request] += struct.unpack(">I", body)[0]
                changed.notify_all()
        elif kind == DATA:
            with changed:
                stdins.setdefault(request, []).append((body, flags))
                changed.notify_all()
        elif kind == CANCEL:
            with changed:
                cancelled.add(request)
                changed.notify_all()
        elif kind == PING and request in lost:
            send(FAILED, agent, request, vec("agent", "agent", "lost", "1"))
        elif kind == PING:
            send(PONG, 0, request, body)
        elif kind in (EXEC, RUN, PUT, FETCH):
            windows[request] = WINDOW_BYTES
            if kind == EXEC and unvec(body)[0] == b"stopreading":
                send(ACCEPTED, agent, request)
                threading.Event().wait()
            threading.Thread(target=work, args=(kind, agent, request, body, flags), daemon=True).start()
        else:
            os._exit(4)


def main():
    nonce, mode = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    if mode == "noise":
        os.write(1, b"Welcome!\nCHURTEN-" + b"0" * 32 + b"-READY\n" * 3)
    elif mode == "flood":
        while True:
            os.write(1, b"y\n" * 4096)
    elif mode == "nopython":
        os.write(1, b"\nCHURTEN-%s-NOPYTHON\n" % nonce.encode())
        sys.exit(1)
    elif mode == "exit":
        os.write(2, b"sh: python: not found\n")
        sys.exit(127)
    elif mode == "silent":
        threading.Event().wait()
    elif mode == "mute":
        os.write(1, b"\nCHURTEN-%s-READY\n" % nonce.encode())
        send(HELLO, 0, 0, hello(os.getpid()))
        threading.Event().wait()
    os.write(1, b"\nCHURTEN-%s-READY\n" % nonce.encode())
    if mode == "nohello":
        send(STARTED, 0, 0, hello(0))
    send(HELLO, 0, 0, hello(os.getpid()))
    serve()


if __name__ == "__main__":
    main()
