"""ARA servers for tests: a stand-in that keeps what it is sent, and a real one (CHURTEN_ARA: a Python environment with ara[server])."""

import contextlib
import http.client
import http.server
import itertools
import json
import os
import socket
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path

from playing import ROOT


class StandIn(http.server.ThreadingHTTPServer):
    """Keeps everything by kind. After `dies_after` posts it takes one more and hangs up without an answer."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.kept = {}
        self.ids = itertools.count(1)
        self.posts = 0
        self.dies_after = None
        self.authorization = set()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind = self.path.rpartition("/")[2]
        self.server.authorization.add(self.headers.get("Authorization"))
        self.server.posts += 1
        one = body | {"id": next(self.server.ids)}
        if kind == "playbooks":
            one["labels"] = [{"name": name} for name in body["labels"]]
            one["items"] = {"results": 0}
        self.server.kept.setdefault(kind, []).append(one)
        if self.server.dies_after is not None and self.server.posts > self.server.dies_after:
            self.close_connection = True
            return
        self.answer(201, one)

    def do_GET(self):
        split = urllib.parse.urlsplit(self.path)
        asked = dict(urllib.parse.parse_qsl(split.query))
        rows = self.server.kept.get(split.path.rpartition("/")[2], [])
        if "playbook" in asked:
            rows = [row for row in rows if str(row["playbook"]) == asked["playbook"]]
        if "label" in asked:
            rows = [row for row in rows if asked["label"] in [label["name"] for label in row["labels"]]]
        first = int(asked["offset"])
        page = rows[first : first + min(5, int(asked["limit"]))]  # a server may give less than it is asked for
        self.answer(200, {"results": page, "next": "more" if first + len(page) < len(rows) else None})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def stand_in():
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def environment():
    """The Python environment of a real server, or None."""
    found = Path(os.environ.get("CHURTEN_ARA") or ROOT / "build" / "ara")
    return found.resolve() if (found / "bin" / "ara-manage").exists() else None


class Real:
    """A real server on loopback with a database of its own."""

    def __init__(self, where, login=None):
        self.bin = environment() / "bin"
        self.where = where
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "ARA_", "PYTHON"))}
        self.env = keep | {
            "HOME": str(where),
            "ARA_BASE_DIR": str(where / "ara"),
            "ARA_DATABASE_NAME": str(where / "ara.sqlite"),
            "ARA_ALLOWED_HOSTS": "['127.0.0.1']",
            "ARA_SECRET_KEY": "x" * 50,
            "ARA_LOG_LEVEL": "WARNING",
            "ARA_WRITE_LOGIN_REQUIRED": "true" if login else "false",
        }
        self.manage("migrate", "-v0")
        if login:
            self.manage("createsuperuser", "--noinput", "--username", login[0], "--email", "a@b.example", DJANGO_SUPERUSER_PASSWORD=login[1])
        self.log = open(where / "ara.log", "wb")
        words = [str(self.bin / "ara-manage"), "runserver", "--noreload", f"127.0.0.1:{self.port}"]
        self.process = subprocess.Popen(words, env=self.env, cwd=where, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            assert self.process.poll() is None and time.monotonic() < deadline, (where / "ara.log").read_text()
            time.sleep(0.1)

    def manage(self, *words, **more):
        done = subprocess.run([str(self.bin / "ara-manage"), *words], env=self.env | more, cwd=self.where, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    def cli(self, *words):
        env = self.env | {"ARA_API_CLIENT": "http", "ARA_API_SERVER": self.url}
        done = subprocess.run([str(self.bin / "ara"), *words], env=env, cwd=self.where, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        assert answer.status == 200, (path, answer.status, text[:2000])
        return json.loads(text) if path.startswith("/api/") else text

    def all(self, kind, **filters):
        return self.get(f"/api/v1/{kind}?{urllib.parse.urlencode(filters | {'limit': 10000, 'order': 'id'})}")["results"]

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=30)
        self.log.close()
