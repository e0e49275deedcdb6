"""One sshd of our own on a loopback address, and what tests need around it: keys, ports, an ssh-agent."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
KEYGEN = "ssh-keygen"
USER = pwd.getpwuid(os.geteuid()).pw_name


def keygen(path, kind="ed25519", passphrase="", *extra):
    subprocess.run([KEYGEN, "-q", "-t", kind, "-N", passphrase, "-f", str(path), *extra], check=True)
    return path


def free_port(host):
    with socket.socket() as s:
        s.bind((host, 0))
        return s.getsockname()[1]


class Server:
    """One sshd on 127.0.0.x with its own host key; stopped with all its sessions."""

    def __init__(self, top, host="127.0.0.71", extra="", pam="no"):
        self.dir, self.host, self.port = Path(top), host, free_port(host)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.key = keygen(self.dir / "host_ed25519")
        (self.dir / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress {host}\nHostKey {self.key}\nPidFile none\nUsePAM {pam}\nStrictModes no\n"
            f"AuthorizedKeysFile {self.dir}/authorized\nPermitRootLogin yes\nPermitUserEnvironment no\nAcceptEnv CH_*\n{extra}"
        )
        with open(self.dir / "sshd.log", "wb") as log:
            command = [SSHD, "-D", "-e", "-f", str(self.dir / "sshd_config")]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        for _ in range(200):
            try:
                socket.create_connection((host, self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.dir / "sshd.log").read_text()
                time.sleep(0.02)
        raise AssertionError("sshd does not answer")

    def stop(self):
        for pid in children(self.process.pid):
            kill(pid)
        kill(self.process.pid)
        self.process.wait()

    def log_until(self, text, start):
        """The log after byte start, once text is in it (sshd writes it behind its answers)."""
        for _ in range(500):
            log = (self.dir / "sshd.log").read_bytes()[start:].decode()
            if text in log:
                return log
            time.sleep(0.02)
        raise AssertionError(f"not in the log: {text}\n{log}")

    @property
    def name(self):
        return f"[{self.host}]:{self.port}"

    def host_line(self, name=None, key=None):
        return (
            f"{name or self.name} {Path(f'{key or self.key}.pub').read_text().split(' ', 2)[0]} "
            + Path(f"{key or self.key}.pub").read_text().split()[1]
        )


def kill(pid):
    for number in (signal.SIGCONT, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def children(pid):
    """All descendants of pid."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    found, queue = [], [pid]
    while queue:
        queue += [p for p, parent in parents.items() if parent == queue[0]]
        found.append(queue.pop(0))
    return found[1:]


def accepts(path):
    """Whether somebody listens at the socket: its name is there a moment before."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@contextlib.contextmanager
def key_agent(path):
    """An ssh-agent on the socket `path`; answers what adds keys to it, and its process."""
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    while not accepts(path):
        assert process.poll() is None
        time.sleep(0.01)

    def add(*keys):
        env = {**os.environ, "SSH_AUTH_SOCK": str(path)}
        subprocess.run(["ssh-add", "-q", *map(str, keys)], check=True, env=env)

    try:
        yield add, process
    finally:
        kill(process.pid)
        process.wait()
