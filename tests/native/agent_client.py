"""For the agent's tests: a small frame codec, an agent started the way the pool
starts it, payloads built by the installed ansible-core, and its stock wrapper."""

import ast
import base64
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
import zlib

HEADER = struct.Struct(">HBBBBHIII")
NONCE = "0123456789abcdef0123456789abcdef"
TYPES = (
    "HELLO OPEN OPENED START STARTED PAYLOAD NEED RUN EXEC PUT FETCH DATA WINDOW "
    "CANCEL ACCEPTED STAMP EXIT FAILED PING PONG CLOSE RESET STATUS STOP LOG"
).split()
NUMBER = {name: at + 1 for at, name in enumerate(TYPES)}
END = 2


def pack(*items):
    out = [struct.pack(">H", len(items))]
    for item in items:
        item = item if isinstance(item, bytes) else str(item).encode()
        out.append(struct.pack(">I", len(item)) + item)
    return b"".join(out)


def unpack(body):
    (count,) = struct.unpack_from(">H", body)
    items, at = [], 2
    for _ in range(count):
        (size,) = struct.unpack_from(">I", body, at)
        items.append(body[at + 4 : at + 4 + size])
        at += 4 + size
    assert at == len(body)
    return items


def frame(kind, body=b"", request=0, agent=0, flags=0):
    head = (0x4348, 1, NUMBER[kind], flags, 0, agent, 0, request, len(body))
    return HEADER.pack(*head) + body


def bootstrap():
    from churten.transport import bootstrap

    return bootstrap


class Exit:
    """All of one request: its final frame and the DATA before it."""

    def __init__(self, kind, items, data):
        self.kind, self.items = kind, items
        self.failed = kind == "FAILED"
        if self.failed:
            self.fail_class, self.layer = items[0].decode(), items[1].decode()
            self.message, self.started = items[2].decode(), items[3]
            return
        if kind == "STARTED":
            return
        self.rc, self.signal, self.us = (int(item) for item in items[:3])
        self.stdout = data.get(1, b"") + items[3]
        self.stderr = data.get(2, b"") + items[4]
        self.truncated = items[5]
        self.data = data

    def __repr__(self):
        return "%s %r" % (self.kind, self.items)


class AgentClient:
    def __init__(self, python=sys.executable, env=None, cwd=None, command=None):
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", command or bootstrap().login_command(python, NONCE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
        self.out = self.process.stdout.fileno()
        self.buffer = b""
        self.next = 0
        self.waiting = []
        self.keys = {}
        self.write(bootstrap().start_input(NONCE))
        marker = b"\nCHURTEN-" + NONCE.encode() + b"-READY\n"
        while marker not in b"\n" + self.buffer:
            assert self.fill(), self.buffer
        self.buffer = (b"\n" + self.buffer).split(marker, 1)[1]
        kind, _, _, _, body = self.frame()
        assert kind == "HELLO"
        items = [item.decode() for item in unpack(body)]
        self.hello = dict(zip(items[::2], items[1::2]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        finally:
            self.process.stdout.close()
            self.process.stderr.close()

    # frames

    def write(self, data):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def send(self, kind, body=b"", request=0, agent=0, flags=0):
        self.write(frame(kind, body, request, agent, flags))

    def fill(self, timeout=20):
        assert select.select([self.out], [], [], timeout)[0], "the agent is silent"
        data = os.read(self.out, 1 << 20)
        self.buffer += data
        return data

    def frame(self, timeout=20):
        """The next frame: (type name, request, agent, flags, body)."""
        while True:
            if len(self.buffer) >= HEADER.size:
                head = HEADER.unpack_from(self.buffer)
                assert head[0] == 0x4348 and head[1] == 1
                end = HEADER.size + head[8]
                if len(self.buffer) >= end:
                    body = self.buffer[HEADER.size : end]
                    self.buffer = self.buffer[end:]
                    if head[3] & 1:
                        body = zlib.decompress(body[4:])
                    return TYPES[head[2] - 1], head[7], head[5], head[3], body
            if not self.fill(timeout):
                raise EOFError("the agent has gone")

    def request(self, kind, body, agent=0):
        self.next += 1
        self.send(kind, body, self.next, agent)
        return self.next

    def wait(self, request, windows=True, timeout=20):
        """Waits for the request's final frame; others' frames are kept."""
        data = {}
        accepted = False
        kept, self.waiting = self.waiting, []
        while True:
            item = kept.pop(0) if kept else self.frame(timeout)
            kind, number, agent, flags, body = item
            if number != request:
                self.waiting.append(item)
            elif kind == "ACCEPTED":
                accepted = True
            elif kind == "DATA":
                stream = flags >> 2 & 3
                data[stream] = data.get(stream, b"") + body
                if windows and body:
                    self.send("WINDOW", struct.pack(">I", len(body)), request, agent)
            elif kind in ("EXIT", "FAILED", "STARTED"):
                self.waiting += kept
                done = Exit(kind, unpack(body), data)
                done.accepted = accepted
                return done

    # requests

    def exec_request(self, command, env="", timeout_ms=0, stdin="null", shell="sh"):
        body = pack(command, env, timeout_ms, stdin, shell)
        return self.request("EXEC", body)

    def exec(self, command, **options):
        return self.wait(self.exec_request(command, **options))

    def run_request(self, wrapper, marshalled=None, agent=0, packed_for=None, **change):
        key = wrapper.key()
        if (agent, key) not in self.keys:
            more = () if marshalled is None else (marshalled,)
            parts = (wrapper.zip, *more)
            if packed_for is not None:
                parts = (*(struct.pack(">I", len(part)) + zlib.compress(part) for part in parts), packed_for)
            self.send("PAYLOAD", pack(key, *parts), 0, agent)
            self.keys[agent, key] = True
        fields = dict(
            params=wrapper.params, profile=wrapper.profile, env="", rlimit_nofile=0,
            timeout_ms=0, secrets="", temp="", stays="", known="",
        )  # fmt: skip
        fields.update(change)
        body = pack(
            key, wrapper.module, fields["params"], fields["profile"], fields["env"],
            fields["rlimit_nofile"], fields["timeout_ms"], wrapper.form,
            fields["secrets"], fields["temp"], fields["stays"], fields["known"],
        )  # fmt: skip
        return self.request("RUN", body, agent)

    def run(self, wrapper, **options):
        agent = options.get("agent", 0)
        assert agent in (0,) or agent
        return self.wait(self.run_request(wrapper, **options))

    def put(self, path, data, mode="", size=None):
        size = len(data) if size is None else size
        request = self.request("PUT", pack(path, mode, size))
        for at in range(0, len(data), 65536):
            part = data[at : at + 65536]
            last = at + 65536 >= len(data)
            self.send("DATA", part, request, flags=END if last else 0)
        if not data:
            self.send("DATA", b"", request, flags=END)
        return self.wait(request)

    def fetch(self, path):
        return self.wait(self.request("FETCH", pack(path)))


class Wrapper:
    """A module built by the installed ansible-core, taken apart."""

    def __init__(self, text):
        self.text = text
        source = text.decode()
        if "zip_data=" in source:
            self.form = "219"
            fields = {}
            for line in source.rpartition("_ansiballz_main(\n")[2].splitlines():
                name, equal, value = line.rstrip(",").partition("=")
                if equal and name in (
                    "module_fqn", "profile", "params", "zip_data",
                ):  # fmt: skip
                    fields[name] = ast.literal_eval(value)
            self.module, self.profile = fields["module_fqn"], fields["profile"]
            self.params = fields["params"].encode()
            self.zip = base64.b64decode(fields["zip_data"])
        else:
            self.form, self.profile = "218", ""
            find = re.compile
            data = find(r"ZIPDATA = '([A-Za-z0-9+/=]*)'").search(source)
            data = data or find(r'ZIPDATA = """([A-Za-z0-9+/=]*)"""').search(source)
            self.zip = base64.b64decode(data.group(1))
            params = find(r"ANSIBALLZ_PARAMS = (.*)\n").search(source).group(1)
            self.params = ast.literal_eval(params).encode()
            self.module = find(r"mod_name='([\w.]+)'").search(source).group(1)

    def key(self):
        return "%08x-%s" % (zlib.crc32(self.zip), self.module)

    def stock(self, python=sys.executable, env=None, cwd=None):
        """What stock does: the wrapper on the stdin of a fresh interpreter."""
        done = subprocess.run(
            [python], input=self.text, capture_output=True, env=env, cwd=cwd
        )
        return done.returncode, done.stdout, done.stderr


class Builder:
    """A process that builds modules with the installed ansible-core (whose
    collection loader must not get into the process of the tests)."""

    process = None

    @classmethod
    def build(cls, name, args=None, path=None):
        if cls.process is None:
            cls.process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                universal_newlines=True,
            )
        request = [name, args, path and str(path)]
        cls.process.stdin.write(json.dumps(request) + "\n")
        cls.process.stdin.flush()
        answer = cls.process.stdout.readline()
        assert answer, "the installed ansible-core does not build modules"
        return Wrapper(base64.b64decode(answer))


build = Builder.build


def serve_builds():
    import ansible.executor.module_common as module_common
    import ansible.modules
    from ansible.parsing.dataloader import DataLoader
    from ansible.plugins.loader import init_plugin_loader
    from ansible.template import Templar

    init_plugin_loader()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, args, path = json.loads(line)
        folder = os.path.dirname(ansible.modules.__file__)
        arguments = {
            "_ansible_check_mode": False,
            "_ansible_no_log": False,
            "_ansible_debug": False,
            "_ansible_diff": False,
            "_ansible_verbosity": 0,
            "_ansible_version": "2.0",
            "_ansible_module_name": name,
            "_ansible_syslog_facility": "LOG_USER",
            "_ansible_selinux_special_fs": ["nfs"],
            "_ansible_socket": None,
            "_ansible_shell_executable": "/bin/sh",
            "_ansible_keep_remote_files": False,
            "_ansible_tmpdir": None,
            "_ansible_remote_tmp": "~/.ansible/tmp",
        }
        if hasattr(module_common, "_BuiltModule"):  # 2.19 and later
            arguments["_ansible_tracebacks_for"] = []
        arguments.update(args or {})
        built = module_common.modify_module(
            module_name=name,
            module_path=path or os.path.join(folder, name + ".py"),
            module_args=arguments,
            templar=Templar(DataLoader(), {}),
            task_vars={"ansible_python_interpreter": "/usr/bin/python3"},
            module_compression="ZIP_DEFLATED",
        )
        text = built[0] if isinstance(built, tuple) else built.b_module_data
        out.write(base64.b64encode(text).decode() + "\n")
        out.flush()


def wait_until(condition, seconds=10):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


if __name__ == "__main__":
    serve_builds()
