"""The lab: many throw-away hosts on loopback, each a real sshd of its own on its own address.

Life: `up` writes lab.json (what it is about to make) before it makes anything, so `down` can clean after a crash at
any point; `up` on a running lab starts what is missing and ends what is too many. `down` ends every process that
belongs to the lab, then removes accounts, sudoers file and the directory.

A process belongs to the lab if it is a listener (its command line names the lab's sshd_config), descends from one,
carries the lab's marker in its environment (sshd sets it for every session), or runs under a lab account.

One sshd per host by default: each can be stopped on its own. With `one_sshd` a single one answers on every address of
127/8, for labs of a thousand hosts; it lets in only who comes from 127/8.

As root the hosts share two system accounts made for this lab: one that may become anybody without a password, one that
must give its password. Without root they log in as the current user and there is no sudo.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import accounts, procs
from .errors import LabError

PORT = 2200
STATE = "lab.json"
MARKER = "CHURTEN_LAB"
# root's sshd wants this directory; if a lab made it, the note says so and the last lab takes both away.
RUN_SSHD = Path("/run/sshd")
RUN_SSHD_NOTE = Path("/run/churten-lab-made-run-sshd")
PACKAGES = {"sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client"}
START_SECONDS = 60.0


@dataclasses.dataclass
class Host:
    """One host: where its sshd listens, and which process that is."""

    name: str
    address: str
    port: int
    pid: int = 0
    start: int = 0

    def alive(self) -> bool:
        """Is the very process we started still there?"""
        return self.pid > 0 and procs.start_time(self.pid) == self.start


@dataclasses.dataclass
class Options:
    """What `up` was asked for; everything here may change between two `up` of the same lab."""

    password: bool = False  # inventory logs in by password instead of by key
    sudo: str = "nopasswd"  # nopasswd | password | none
    python: str | None = "/usr/bin/python3"  # None: leave it to discovery
    sshd_options: list[str] = dataclasses.field(default_factory=list)  # further sshd_config lines, first one wins
    one_sshd: bool = False  # one sshd for all hosts, on all loopback addresses and a free port
    logs: bool = False  # each sshd writes DIR/logs/HOST.log (`Lab.logins`)


def default_dir() -> Path:
    """Where a lab lives unless told otherwise: a place the lab's own account can reach."""
    if os.geteuid() == 0:
        return Path("/var/tmp/churten-lab")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "churten-lab"


def tool(name: str) -> str:
    """Full path of a program, or LabError with the Debian package that holds it."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin")
    if path is None:
        raise LabError(f"{name} is not installed; apt-get install {PACKAGES.get(name, name)}")
    return path


class Lab:
    """A lab in a directory, running or not. `Lab(dir).up(10)`, `.hosts`, `.down()`."""

    def __init__(self, directory: Path | str | None = None) -> None:
        self.dir = Path(directory or default_dir()).absolute()
        self.id = hashlib.sha256(os.path.realpath(self.dir).encode()).hexdigest()[:8]
        self.root = os.geteuid() == 0
        self.account = f"churten-lab-{self.id}" if self.root else pwd.getpwuid(os.geteuid()).pw_name
        self.asking_account = self.account + "-pw" if self.root else ""
        self.hosts: list[Host] = []
        self.options = Options()
        self.password = ""
        self._load()

    # ---- what is on disk -------------------------------------------------------------------------------------------

    @property
    def inventory(self) -> Path:
        """The inventory `up` writes."""
        return self.dir / "inventory.ini"

    @property
    def ansible_cfg(self) -> Path:
        """The ansible.cfg `up` writes."""
        return self.dir / "ansible.cfg"

    @property
    def sshd_config(self) -> Path:
        """Shared by all hosts; only the address and the pid file differ, they are on the command line."""
        return self.dir / "sshd_config"

    def _load(self) -> None:
        try:
            state = json.loads((self.dir / STATE).read_text())
            self.hosts = [Host(**host) for host in state["hosts"]]
            self.options = Options(**state["options"])
            self.password = state["password"]
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            raise LabError(f"{self.dir / STATE} is damaged ({error}); end the lab's processes and remove it") from error

    def _save(self) -> None:
        self._write(
            STATE,
            json.dumps(
                {
                    "lab": self.id,
                    "options": dataclasses.asdict(self.options),
                    "password": self.password,
                    "hosts": [dataclasses.asdict(host) for host in self.hosts],
                },
                indent=1,
            ),
            0o600,
        )

    def _write(self, name: str, text: str, mode: int) -> None:
        draft = self.dir / f".{name}.new"
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
            file.write(text)
        os.replace(draft, self.dir / name)

    # ---- up --------------------------------------------------------------------------------------------------------

    def up(self, count: int, options: Options | None = None) -> None:
        """Makes the lab run with exactly `count` hosts; blocks until every one of them answers."""
        if not 1 <= count <= 60000:
            raise LabError("the number of hosts must be between 1 and 60000")
        self._make_directory()
        with _directory_lock(self.dir):
            self._load()
            if options and options.one_sshd != self.options.one_sshd and any(host.alive() for host in self.hosts):
                raise LabError(f"the lab in {self.dir} runs with {'one sshd' if self.options.one_sshd else 'an sshd per host'}; take it down first")
            self.options = options or self.options
            self._check_options()
            if not self.password:
                self.password = secrets.token_urlsafe(12)
            self._save()
            self._make_keys()
            self._make_accounts()
            self._make_sshd_config()
            self._scale(count)
            self._make_host_directories()
            self._write_inventory()

    def _make_directory(self) -> None:
        try:
            self.dir.mkdir(mode=0o755, parents=True)
            os.chmod(self.dir, 0o755)
        except FileExistsError:
            pass
        entry = os.lstat(self.dir)
        if not stat.S_ISDIR(entry.st_mode) or entry.st_uid != os.geteuid() or entry.st_mode & 0o022:
            raise LabError(f"{self.dir} must be a directory that only you can write to")
        if os.listdir(self.dir) and not (self.dir / STATE).exists():
            raise LabError(f"{self.dir} is not empty and holds no lab; give another --dir")
        if self.root:
            for folder in [self.dir, *self.dir.resolve().parents]:
                if not folder.stat().st_mode & 0o001:
                    raise LabError(f"the lab's account cannot enter {folder} (mode o+x missing); give another --dir")

    def _check_options(self) -> None:
        if self.options.sudo not in ("nopasswd", "password", "none"):
            raise LabError("--sudo must be nopasswd, password or none")
        if self.options.password and not self.root:
            raise LabError("password login needs root (only root's sshd can check passwords)")
        for name in PACKAGES:
            tool(name)

    def _make_keys(self) -> None:
        keys = self.dir / "keys"
        # The lab's account must read authorized_keys; the private keys in it are 0600.
        keys.mkdir(mode=0o755, exist_ok=True)
        os.chmod(keys, 0o755)
        for name in ("host_ed25519", "user_ed25519"):
            if not (keys / (name + ".pub")).exists():
                (keys / name).unlink(missing_ok=True)
                words = [tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", f"churten-lab {name}"]
                subprocess.run([*words, "-f", str(keys / name)], check=True, stdin=subprocess.DEVNULL, timeout=30)
        shutil.copyfile(keys / "user_ed25519.pub", keys / "authorized_keys")
        os.chmod(keys / "authorized_keys", 0o644)

    def _make_accounts(self) -> None:
        if not self.root:
            return
        accounts.create(self.account, self.id, self.dir / "home", self.password)
        accounts.create(self.asking_account, self.id, self.dir / "home-pw", self.password)
        if self.options.sudo != "none":
            text = accounts.sudoers_text(self.account, self.asking_account, MARKER)
            accounts.write_sudoers(f"churten-lab-{self.id}", text)
        else:
            accounts.remove_sudoers(f"churten-lab-{self.id}")

    def _make_sshd_config(self) -> None:
        keys = self.dir / "keys"
        here = "@127.0.0.0/8" if self.options.one_sshd else ""
        lines = [
            *self.options.sshd_options,
            f"HostKey {keys / 'host_ed25519'}",
            f"AuthorizedKeysFile {keys / 'authorized_keys'}",
            # The keys lie outside the account's home.
            "StrictModes no",
            "UsePAM no",
            "PermitRootLogin no",
            "AllowUsers " + " ".join(name + here for name in (self.account, self.asking_account) if name),
            f"PasswordAuthentication {'yes' if self.root else 'no'}",
            "KbdInteractiveAuthentication no",
            "MaxAuthTries 50",
            "MaxStartups 10000",
            "MaxSessions 100",
            "UseDNS no",
            "PrintMotd no",
            "PrintLastLog no",
            f"LogLevel {'INFO' if self.options.logs else 'QUIET'}",
            "AcceptEnv LANG LC_*",
            f"SetEnv {MARKER}={self.id}",
            "Subsystem sftp internal-sftp",
        ]
        # All hosts of a lab are one source address to each other; OpenSSH 9.8 and later would punish that.
        for more in (["PerSourcePenalties no"], []):
            self._write("sshd_config", "\n".join(lines + more) + "\n", 0o644)
            words = [tool("sshd"), "-t", "-f", str(self.sshd_config)]
            with self._run_sshd():
                done = subprocess.run(words, capture_output=True, text=True, timeout=30)
            if done.returncode == 0:
                return
        raise LabError(f"sshd refuses the lab's configuration: {done.stderr.strip()}")

    @contextmanager
    def _run_sshd(self) -> Iterator[None]:
        """/run/sshd exists inside; no other lab may remove it before our listeners are there."""
        if not self.root:
            yield
            return
        with _directory_lock(RUN_SSHD.parent):
            if not RUN_SSHD.exists():
                RUN_SSHD_NOTE.touch(mode=0o644)
                RUN_SSHD.mkdir(mode=0o755)
            yield

    def _drop_run_sshd(self) -> None:
        with _directory_lock(RUN_SSHD.parent):
            if RUN_SSHD_NOTE.exists() and not _any_sshd():
                try:
                    RUN_SSHD.rmdir()
                except OSError:
                    pass
                RUN_SSHD_NOTE.unlink()

    def _scale(self, count: int) -> None:
        if not any(host.alive() for host in self.hosts):
            self.hosts = self._free_addresses(count)
        procs.end({host.pid for host in self.hosts[count:] if host.alive()} - {host.pid for host in self.hosts[:count]})
        del self.hosts[count:]
        first = self.hosts[0]
        net = int(first.address.split(".")[1])
        self.hosts += [self._host(net, index, first.port) for index in range(len(self.hosts), count)]
        if self.options.one_sshd and first.alive():
            for host in self.hosts:
                host.pid, host.start = first.pid, first.start
        self._save()
        self._start([host for host in self.hosts if not host.alive()])
        self._save()

    @staticmethod
    def _host(net: int, index: int, port: int = PORT) -> Host:
        return Host(f"lab{index + 1:03d}", f"127.{net}.{index // 250}.{index % 250 + 1}", port)

    def _free_addresses(self, count: int) -> list[Host]:
        """A 127.N network of which nobody listens on any of the addresses needed."""
        first = int(self.id, 16) % 250
        if self.options.one_sshd:
            with socket.socket() as probe:
                probe.bind(("0.0.0.0", 0))
                port = probe.getsockname()[1]
            return [self._host(2 + first, index, port) for index in range(count)]
        for step in range(250):
            hosts = [self._host(2 + (first + step) % 250, index) for index in range(count)]
            if all(_bindable(host) for host in hosts):
                return hosts
        raise LabError(f"no free loopback network for {count} hosts on port {PORT}")

    def _start(self, hosts: list[Host]) -> None:
        for folder in ("pids", "logs"):
            (self.dir / folder).mkdir(mode=0o755, exist_ok=True)
        with self._run_sshd():
            self._spawn(hosts)

    def _spawn(self, hosts: list[Host]) -> None:
        sshd = tool("sshd")
        started = []
        listeners = hosts[:1] if self.options.one_sshd else hosts
        for host in listeners:
            address = "0.0.0.0" if self.options.one_sshd else host.address
            words = [sshd, "-D", "-f", str(self.sshd_config), "-o", f"ListenAddress={address}:{host.port}",
                     "-o", f"PidFile={self.dir / 'pids' / host.name}"]  # fmt: skip
            if self.options.logs:
                words += ["-E", str(self._log(host))]
            started.append(
                subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                    preexec_fn=_plain_signals,
                )
            )
            host.pid = started[-1].pid
            host.start = procs.start_time(host.pid) or 0
        for host in hosts[len(listeners) :]:
            host.pid, host.start = hosts[0].pid, hosts[0].start
        deadline = time.monotonic() + START_SECONDS
        for host, process in zip(listeners, started, strict=True):
            while not _answers(host):
                if process.poll() is not None:
                    raise LabError(f"the sshd of {host.name} ended at once (exit code {process.returncode})")
                if time.monotonic() > deadline:
                    raise LabError(f"the sshd of {host.name} did not answer within {START_SECONDS:.0f} s")
                time.sleep(0.02)
            # It lives on without us: keep subprocess from warning about it.
            process.returncode = 0

    def _make_host_directories(self) -> None:
        entry = pwd.getpwnam(self.account)
        (self.dir / "hosts").mkdir(mode=0o755, exist_ok=True)
        for host in self.hosts:
            folder = self.dir / "hosts" / host.name
            if not folder.exists():
                folder.mkdir(mode=0o755)
                os.chown(folder, entry.pw_uid, entry.pw_gid)

    # ---- inventory -------------------------------------------------------------------------------------------------

    def _write_inventory(self) -> None:
        keys = self.dir / "keys"
        public = " ".join((keys / "host_ed25519.pub").read_text().split()[:2])
        known = "".join(f"[{host.address}]:{host.port} {public}\n" for host in self.hosts)
        self._write("known_hosts", known, 0o644)
        lines = ["# written by `churten lab up`", "[lab]"]
        for host in self.hosts:
            where = f"ansible_host={host.address} ansible_port={host.port}"
            lines.append(f"{host.name} {where} lab_dir={self.dir / 'hosts' / host.name}")
        asking = self.options.sudo == "password" and self.root
        variables = {
            "ansible_user": self.asking_account if asking else self.account,
            "ansible_ssh_common_args": f"'-o UserKnownHostsFile={self.dir / 'known_hosts'}"
            " -o GlobalKnownHostsFile=/dev/null'",
            "lab_asking_user": self.asking_account,
            "lab_password": self.password,
            "lab_root": "true" if self.root else "false",
        }
        if self.options.python:
            variables["ansible_python_interpreter"] = self.options.python
        if self.options.password:
            variables["ansible_password"] = self.password
        else:
            variables["ansible_ssh_private_key_file"] = str(keys / "user_ed25519")
        if asking:
            variables["ansible_become_password"] = self.password
        lines += ["", "[lab:vars]", *(f"{name}={value}" for name, value in variables.items() if value)]
        self._write("inventory.ini", "\n".join(lines) + "\n", 0o600)
        (self.dir / "cp").mkdir(mode=0o700, exist_ok=True)
        settings = ["[defaults]", f"inventory = {self.inventory}", "host_key_checking = True", "nocows = True",
                    f"forks = {min(len(self.hosts), 50)}", "", "[ssh_connection]", "pipelining = True",
                    f"control_path_dir = {self.dir / 'cp'}"]  # fmt: skip
        self._write("ansible.cfg", "\n".join(settings) + "\n", 0o644)

    # ---- one host at a time (fault tests) --------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """The host called `name`."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise LabError(f"no host {name} in {self.dir}")

    def stop(self, name: str) -> None:
        """Ends one host and its sessions, as a power cut would: no goodbye to the clients from its shell processes."""
        if self.options.one_sshd:
            raise LabError("with one sshd for all hosts none of them can be stopped alone")
        host = self.host(name)
        if host.alive():
            procs.end({host.pid, *procs.descendants([host.pid])}, grace=0)

    def start(self, name: str) -> None:
        """Starts a stopped host again, at its old address."""
        host = self.host(name)
        if not host.alive():
            self._start([host])
            self._save()

    def sessions(self, name: str) -> list[int]:
        """Pids of the sshd processes that serve the host's connections (the listener's direct children)."""
        host = self.host(name)
        return sorted(pid for pid in procs.all_pids() if _parent(pid) == host.pid)

    def _log(self, host: Host) -> Path:
        return self.dir / "logs" / f"{self.hosts[0].name if self.options.one_sshd else host.name}.log"

    def log(self, name: str) -> Path:
        """What the sshd of `name` wrote (option `logs`); with one sshd for all, that of all."""
        return self._log(self.host(name))

    def logins(self, name: str) -> int:
        """How often somebody has logged in to `name` since it was first started (option `logs`); with one sshd for all, to any."""
        if not self.options.logs:
            raise LabError("logins are counted only in a lab with logs")
        return sum(line.startswith("Accepted ") for line in self.log(name).read_text(errors="replace").splitlines())

    # ---- down ------------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Is there anything of this lab to take down?"""
        return (self.dir / STATE).exists() or bool(self.processes()) or self._has_accounts()

    def _has_accounts(self) -> bool:
        if not self.root:
            return False
        if (accounts.SUDOERS / f"churten-lab-{self.id}").exists():
            return True
        try:
            return any(accounts.ours(name, self.id) for name in (self.account, self.asking_account))
        except LabError:
            return False

    def processes(self) -> set[int]:
        """Every process of the lab that lives now."""
        uids = set()
        for name in (self.account, self.asking_account) if self.root else ():
            try:
                entry = accounts.ours(name, self.id)
            except LabError:
                continue
            if entry is not None:
                uids.add(entry.pw_uid)
        listeners = {host.pid for host in self.hosts if host.alive()}
        marked = set()
        for pid in procs.all_pids():
            if f" -f {self.sshd_config} " in procs.command_line(pid):
                listeners.add(pid)
            elif procs.has_marker(pid, f"{MARKER}={self.id}") or procs.owner(pid) in uids:
                marked.add(pid)
        return {pid for pid in listeners | marked | procs.descendants(listeners | marked) if pid != os.getpid()}

    def down(self, say: Callable[[str], None] = lambda text: None) -> None:
        """Ends and removes everything `up` made. Safe to repeat, and after a crash of `up`."""
        if not self.exists():
            say(f"no lab in {self.dir}")
            return
        if not self.dir.is_dir():
            self._clean()
        else:
            with _directory_lock(self.dir):
                self._clean()
        say(f"lab in {self.dir} is gone")

    def _clean(self) -> None:
        for _ in range(5):  # a dying session may still have forked
            found = self.processes()
            if not found:
                break
            procs.end(found)
        else:
            raise LabError(f"processes that do not end: {sorted(self.processes())}")
        if self.root:
            accounts.remove_sudoers(f"churten-lab-{self.id}")
            for name in (self.asking_account, self.account):
                accounts.remove(name, self.id)
            self._drop_run_sshd()
        if (self.dir / STATE).exists():
            # lab.json goes last: as long as it is there, another `down` can finish the work.
            for entry in self.dir.iterdir():
                if entry.name != STATE:
                    shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            (self.dir / STATE).unlink()
            try:
                self.dir.rmdir()
            except OSError:
                pass
        self.hosts = []


def _plain_signals() -> None:
    """As init would start it: what nohup or a shell's `&` ignores would be ignored in every session of the host."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _parent(pid: int) -> int:
    fields = procs.stat_fields(pid)
    return int(fields[1]) if fields else 0


@contextmanager
def _directory_lock(directory: Path) -> Iterator[None]:
    """One at a time. The lock is the directory itself: no file is left behind."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _any_sshd() -> bool:
    """Does any sshd still need its privilege separation directory?"""
    return any(procs.command_line(pid).split(" ")[0].rstrip(":").endswith("sshd") for pid in procs.all_pids())


def _bindable(host: Host) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.address, host.port))
        except OSError:
            return False
    return True


def _answers(host: Host) -> bool:
    try:
        with socket.create_connection((host.address, host.port), timeout=5) as probe:
            return probe.recv(4) == b"SSH-"
    except OSError:
        return False
