"""The hosts of a scenario: a lab, perhaps behind proxies that make the line long."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from harness import adopt_orphans
from scenario import World

from churten.lab import Host, Lab
from churten.lab.chaos import Chaos, Script, Way


class Hosts:
    """A running lab, how to reach its hosts, and what their logs tell."""

    def __init__(self, lab: Lab, world: World) -> None:
        self.lab, self.world = lab, world
        self.at: dict[str, tuple[str, int]] = {host.name: (host.address, host.port) for host in lab.hosts}
        self._proxies: list[Chaos] = []
        if world.rtt_ms:
            for host in lab.hosts:
                self._far_away(host)

    def _far_away(self, host: Host) -> None:
        """Puts a proxy in front of a host, and into the inventory in its place."""
        proxy = Chaos((host.address, host.port), host.address)
        one_way = self.world.rtt_ms / 2000
        proxy.script = lambda _number: Script(up=Way(latency_s=one_way), down=Way(latency_s=one_way))
        self._proxies.append(proxy)
        self.at[host.name] = (proxy.host, proxy.port)
        for path, old, new in (
            (self.lab.inventory, f"ansible_port={host.port} lab_dir={self.lab.dir / 'hosts' / host.name}\n", None),
            (self.lab.dir / "known_hosts", f"[{host.address}]:{host.port} ", f"[{proxy.host}]:{proxy.port} "),
        ):
            text = path.read_text()
            if old not in text:
                raise RuntimeError(f"{path} does not say how {host.name} is reached; it holds no {old.strip()!r}")
            path.write_text(text.replace(old, new or old.replace(str(host.port), str(proxy.port), 1)))

    def close(self) -> None:
        for proxy in self._proxies:
            proxy.close()

    def logins(self) -> list[int]:
        """How often somebody has logged in, per host; empty without logs."""
        if not self.world.logs:
            return []
        hosts = self.lab.hosts[:1] if self.world.one_sshd else self.lab.hosts
        return [self.lab.logins(host.name) for host in hosts]

    def ssh(self, name: str, *words: str) -> list[str]:
        """A plain ssh command line to a host, without anything that is kept."""
        address, port = self.at[name]
        known = self.lab.dir / "known_hosts"
        options = ["-F", "/dev/null", "-T", "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={known}", "-o", "GlobalKnownHostsFile=/dev/null"]
        where = ["-i", str(self.key), "-o", "IdentitiesOnly=yes", "-p", str(port), f"{self.lab.account}@{address}"]
        return ["ssh", *options, *where, *words]

    @property
    def key(self) -> Path:
        return self.lab.dir / "keys" / "user_ed25519"

    def watch(self) -> LoginWatch | None:
        """Looks at the first host's log from now on; None without logs."""
        return LoginWatch(self.lab.log(self.lab.hosts[0].name)) if self.world.logs else None


class LoginWatch(threading.Thread):
    """Notes when an sshd writes that it has let somebody in."""

    def __init__(self, log: Path) -> None:
        super().__init__(daemon=True)
        self.at = 0.0  # CLOCK_MONOTONIC
        self._stop_it = threading.Event()
        self._file = log.open("rb")
        self._file.seek(0, 2)
        self.start()

    def run(self) -> None:
        text = b""
        while not self._stop_it.wait(0.001):
            text += self._file.read()
            if b"\nAccepted " in b"\n" + text:
                self.at = time.monotonic()
                break
        self._file.close()

    def end(self) -> float:
        self._stop_it.set()
        self.join()
        return self.at


@contextlib.contextmanager
def hosts(base: Path, count: int, world: World) -> Iterator[Hosts]:
    """A lab below `base` while the block runs."""
    lab = Lab(base / "lab")
    try:
        # In a process of its own, whose orphans we do not adopt: what the hosts leave behind is not the controller's.
        command = [sys.executable, "-m", "churten.cli.main", "lab", "up", "--hosts", str(count), "--dir", str(lab.dir)]
        command += [*["--discover"] * world.discover, *["--logs"] * world.logs, *["--one-sshd"] * world.one_sshd]
        adopt_orphans(False)
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        adopt_orphans()
        lab = Lab(base / "lab")
        made = Hosts(lab, world)
        try:
            yield made
        finally:
            made.close()
    finally:
        lab.down()
