"""Decides how a host is reached, from what OpenSSH itself says about it.

Ansible users configure connections through OpenSSH: ssh_config files, `ssh_args` and variables that become command line arguments. Only OpenSSH knows
what all that means together, so it is asked: `ssh -G <the arguments stock Ansible would use>` prints the settings that would be in force. `plan()` goes
through them with three tables: what the libssh transport can do (`_Mapper`), what does not matter to it (`IGNORE`), what only the stock path can do
(`STOCK`). Any other setting that is not at its default means: use an OpenSSH client process (transport `ssh`), which obeys everything.

Asking costs about 10 ms, so answers are cached: in this process, and in the pool's directory by the state of every configuration file read. Hosts that
differ only in address, port and user share one answer unless a `Host` or `Match` block or a %-token could tell them apart.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import fnmatch
import functools
import glob
import hashlib
import json
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import time
import typing as t

from churten import late
from churten.transport import runtime

Settings = dict[str, list[str]]  # keyword in lower case -> values in order

SYSTEM_CONFIG = "/etc/ssh/ssh_config"
RESOLVE_TIMEOUT_S = 10
DEFAULT_IDLE_MS = 60_000
LONGEST_IDLE_MS = 3_600_000

# No effect on what a session of ours does, or done by other means.
IGNORE = frozenset(
    {
        "batchmode",
        "canonicaldomains",
        "canonicalizefallbacklocal",
        "canonicalizehostname",
        "canonicalizemaxdots",
        "canonicalizepermittedcnames",
        "checkhostip",
        "clearallforwardings",
        "compression",
        "compressionlevel",
        "controlmaster",
        "controlpath",
        "enableescapecommandline",
        "enablesshkeysign",
        "escapechar",
        "exitonforwardfailure",
        "fingerprinthash",
        "forwardx11timeout",
        "forwardx11trusted",
        "gatewayports",
        "gssapiclientidentity",
        "gssapidelegatecredentials",
        "gssapikexalgorithms",
        "gssapirenewalforcesrekey",
        "gssapiserveridentity",
        "gssapitrustdns",
        "host",
        "hostbasedacceptedalgorithms",
        "hostbasedkeytypes",
        "ignoreunknown",
        "ipqos",
        "localcommand",
        "loglevel",
        "logverbose",
        "numberofpasswordprompts",
        "obscurekeystroketiming",
        "permitremoteopen",
        "streamlocalbindmask",
        "streamlocalbindunlink",
        "syslogfacility",
        "tcpkeepalive",
        "tunneldevice",
        "updatehostkeys",
        "usekeychain",
        "versionaddendum",
        "visualhostkey",
        "warnweakcrypto",
        "xauthlocation",
    }
)

# Values that only a plain ssh command line for each command can give.
STOCK = {
    "requesttty": ("auto", "false", "no"),
    "remotecommand": ("none",),
    "sessiontype": ("default",),
    "stdinnull": ("no", "false"),
    "forkafterauthentication": ("no", "false"),
    "pkcs11provider": ("none",),
}

_FALSE = ("no", "false", "off", "0")
_ADDRESS = late.pattern(r"[A-Za-z0-9_.:%-]+")


@dataclasses.dataclass
class Plan:
    """How to reach a host. `spec` is the OPEN map of docs/protocol.md without key, name and transport."""

    transport: str  # libssh, ssh or stock
    reasons: list[str]  # why it is not libssh
    spec: dict[str, str | list[str]]
    asks_tty: bool = False  # stock would ask a question (unknown host key, passphrase) that a person could answer
    digest: str = ""  # of the settings it was made of
    farewell: str | None = None  # what ssh writes to stderr when a command on a terminal has ended; None: not known


@dataclasses.dataclass(frozen=True)
class Request:
    """What the connection plugin knows about the host it wants."""

    argv: tuple[str, ...]  # what stock would run, from the ssh executable up to, but without, the host
    host: str
    password: str | None = None
    own_control_path: bool = False  # the ControlPath in argv was added by Ansible, not by the user
    wanted: str = "auto"


# --- asking OpenSSH ------------------------------------------------------------------------------------------------------------------------


class ConfigFiles:
    """The configuration files `ssh` would read for `argv`: which, in what state, and whether they tell hosts apart."""

    def __init__(self, argv: t.Sequence[str], home: str | None = None, system: str = SYSTEM_CONFIG):
        # OpenSSH looks the home directory up, it does not believe $HOME.
        self.home = home or pwd.getpwuid(os.getuid()).pw_dir
        self.state: list[tuple[str, ...]] = []
        self.by_host = False  # the answer may depend on the host's name, port or user
        self.by_moment = False  # the answer may change while no file does
        explicit = _config_argument(argv)
        if explicit is None:
            self._read(os.path.join(self.home, ".ssh", "config"), os.path.join(self.home, ".ssh"), 0)
            self._read(system, os.path.dirname(system), 0)
        elif explicit != "none":
            self._read(self._expand(explicit), os.path.join(self.home, ".ssh"), 0)

    def _expand(self, path: str) -> str:
        return self.home + path[1:] if path == "~" or path.startswith("~/") else path

    def _read(self, path: str, relative_to: str, depth: int) -> None:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                found = os.fstat(file.fileno())
                lines = file.read(1 << 20).splitlines()
        except FileNotFoundError:
            self.state.append((path, "missing"))
            return
        except OSError as ex:
            self.state.append((path, str(ex.errno)))
            self.by_host = self.by_moment = True
            return
        self.state.append(
            (
                path,
                *(
                    str(n)
                    for n in (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_uid, found.st_mode)
                ),
            )
        )
        for line in lines:
            self._line(line, relative_to, depth)

    def _line(self, line: str, relative_to: str, depth: int) -> None:
        text = line.strip()
        if not text or text.startswith("#"):
            return
        keyword, _, rest = re.sub(r"[\s=]+", " ", text, count=1).partition(" ")
        keyword = keyword.strip('"').lower()
        rest = rest.strip()
        if "$" in rest:
            self.by_moment = True
        if keyword == "host":
            self.by_host = self.by_host or rest.strip('"') != "*"
        elif keyword == "match":
            words = rest.lower().split()
            self.by_host = self.by_host or words != ["all"]
            self.by_moment = self.by_moment or any(
                w.lstrip("!") in ("exec", "localnetwork", "command") or w.startswith("exec=") for w in words
            )
        elif keyword == "include":
            self._include(rest, relative_to, depth)
        elif keyword != "controlpath" and "%" in rest:
            self.by_host = True

    def _include(self, rest: str, relative_to: str, depth: int) -> None:
        try:
            patterns = shlex.split(rest)
        except ValueError:
            patterns = []
        if depth >= 16 or not patterns:
            self.by_host = self.by_moment = True
            return
        for pattern in patterns:
            full = os.path.join(relative_to, self._expand(pattern))
            names = sorted(glob.glob(full))
            self.state.append((full, *names))
            if "$" in pattern or "%" in pattern:
                self.by_host = self.by_moment = True
            for name in names:
                self._read(name, relative_to, depth + 1)


def _config_argument(argv: t.Sequence[str]) -> str | None:
    """The file of the first -F; OpenSSH uses the last one given, so more than one counts as a file that is not there."""
    found = [argv[i + 1] for i, a in enumerate(argv[:-1]) if a == "-F"] + [
        a[2:] for a in argv if a.startswith("-F") and len(a) > 2
    ]
    if len(found) > 1:
        return found[-1]
    return found[0] if found else None


_OVERRIDES = late.pattern(r"(-[pl].*|(-o\s*)?(port|user|hostname)\s*[=\s].*|-o\s*(port|user|hostname))", re.IGNORECASE)
_PORT = late.pattern(r"Port=([0-9]+)")
_USER = late.pattern(r'User="([^"]*)"')

_settings: dict[tuple[str, ...], Settings] = {}


def settings_for(request: Request, files: ConfigFiles | None = None) -> tuple[Settings, Settings]:
    """What `ssh -G` says for this host, and what it says without any configuration. OSError or ValueError if it says nothing."""
    argv = list(request.argv)
    if files is None:
        files = _config_files(tuple(argv))
    if request.own_control_path:
        argv = _without(argv, "ControlPath=")
    plain, port, user = _split_off(argv)
    one_for_all = (
        not files.by_host
        and plain is not None
        and not any("%" in a for a in _without(plain, "ControlPath="))
        and _ADDRESS.fullmatch(request.host) is not None
        and not request.host.startswith("-")
    )
    base = _Question([argv[0], "-F", "none"], "localhost", None)  # beside the other one
    try:
        return _of_host(request, argv, plain if one_for_all else None, port, user, files), base.answer()
    finally:
        base.forget()


def _of_host(request: Request, argv: list[str], plain: list[str] | None, port: str | None, user: str | None, files: ConfigFiles) -> Settings:
    """What `ssh -G` says for this host. `plain`: `argv` without `port` and `user`, where the answer for one host is the answer for all."""
    if plain is None:
        return _ask(argv, request.host, files)
    key = ("shared", *plain, *(":".join(s) for s in files.state))
    answer = _settings.get(key)
    if answer is None:
        answer = _ask(plain, request.host, files)
        if answer.get("hostname") != [request.host.lower()]:
            return _ask(argv, request.host, files)
        _settings[key] = answer
    changed = {"host": [request.host], "hostname": [request.host.lower()], "port": port, "user": user}
    return {
        **answer,
        **{k: [v] for k, v in changed.items() if isinstance(v, str)},
        **{k: v for k, v in changed.items() if isinstance(v, list)},
    }


_files: dict[tuple[str, ...], ConfigFiles] = {}


def _config_files(argv: tuple[str, ...]) -> ConfigFiles:
    """The files for `argv`, read once per process and -F argument."""
    key = tuple(a for i, a in enumerate(argv) if a.startswith("-F") or (i and argv[i - 1] == "-F"))
    found = _files.get(key)
    if found is None:
        found = _files[key] = ConfigFiles(argv)
    return found


def _without(argv: t.Sequence[str], option: str) -> list[str]:
    """`argv` without the pairs `-o <option>...`."""
    out: list[str] = []
    skip = False
    for i, word in enumerate(argv):
        if skip:
            skip = False
        elif word == "-o" and i + 1 < len(argv) and argv[i + 1].startswith(option):
            skip = True
        else:
            out.append(word)
    return out


def _split_off(argv: list[str]) -> tuple[list[str] | None, str | None, str | None]:
    """`argv` without Ansible's own port and user arguments, and these; None if anything else in it sets port, user or host name."""
    rest: list[str] = []
    port = user = None
    i = 0
    while i < len(argv):
        pair = argv[i] == "-o" and i + 1 < len(argv)
        if pair and port is None and (m := _PORT.fullmatch(argv[i + 1])):
            port = m.group(1)
            i += 2
        elif pair and user is None and (m := _USER.fullmatch(argv[i + 1])):
            user = m.group(1)
            i += 2
        else:
            rest.append(argv[i])
            i += 1
    if any(_OVERRIDES.fullmatch(word) for word in rest[1:]):
        return None, None, None
    return rest, port, user


class _Question:
    """One call of `ssh -G`, under way until `answer` is asked for."""

    def __init__(self, argv: list[str], host: str, files: ConfigFiles | None):
        self.key = ("one", *argv, host)
        self.process: subprocess.Popen[str] | None = None
        self.known = _settings.get(self.key)
        if self.known is not None:
            return
        executable = shutil.which(argv[0])
        if executable is None:
            raise OSError(f"{argv[0]} was not found")
        found = os.stat(executable)
        state = [
            executable,
            found.st_ino,
            found.st_size,
            found.st_mtime_ns,
            os.getuid(),
            argv[1:],
            host,
            files.state if files else None,
        ]
        self.name = hashlib.sha256(json.dumps(state).encode()).hexdigest()
        self.keep = files is None or not files.by_moment
        kept = runtime.cache_get(self.name) if self.keep else None
        if kept is not None:
            self.known = _settings[self.key] = parse(kept.decode("utf-8", "surrogateescape"))
            return
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [executable, "-G", *argv[1:], "--", host], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, errors="surrogateescape"
        )

    def answer(self) -> Settings:
        """OSError, ValueError or SubprocessError if it says nothing."""
        if self.process is not None:
            process, self.process = self.process, None
            try:
                text, errors = process.communicate(timeout=RESOLVE_TIMEOUT_S)
            except BaseException:
                _end(process)
                raise
            if process.returncode != 0 or "\nhostname " not in "\n" + text:
                raise ValueError(f"ssh -G failed: {errors.strip()[-200:]}")
            if self.keep:
                runtime.cache_put(self.name, text.encode("utf-8", "surrogateescape"))
            self.known = _settings[self.key] = parse(text)
        assert self.known is not None
        return self.known

    def forget(self) -> None:
        """Nobody wants the answer."""
        if self.process is not None:
            _end(self.process)
            self.process = None


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _ask(argv: list[str], host: str, files: ConfigFiles | None) -> Settings:
    return _Question(argv, host, files).answer()


def parse(text: str) -> Settings:
    """The output of `ssh -G`."""
    out: Settings = {}
    for line in text.splitlines():
        keyword, _, value = line.partition(" ")
        if keyword:
            out.setdefault(keyword.lower(), []).append(value)
    return out


# --- deciding ------------------------------------------------------------------------------------------------------------------------------

_plans: dict[Request, Plan] = {}


def plan(request: Request) -> Plan:
    """How to reach the host of `request`; remembered for this process."""
    found = _plans.get(request)
    if found is None:
        if len(_plans) > 20_000:
            _plans.clear()
        found = _plans[request] = _plan(request)
    return found


def forget(request: Request) -> None:
    """Ask again next time (`meta: reset_connection`)."""
    _plans.pop(request, None)
    _files.clear()
    _settings.clear()
    key_problem.cache_clear()
    global _tickets
    _tickets = (0.0, None, False)


def refuse(request: Request, transport: str, reason: str) -> Plan:
    """From now on this host is reached by `transport`, because `reason`. `transport` is `ssh` or `stock`."""
    old = plan(request)
    if transport == "ssh" and request.password:
        transport = "stock"
    new = _plans[request] = Plan(transport, [*old.reasons, reason], dict(old.spec), old.asks_tty, old.digest)
    if transport == "ssh":
        new.spec = _client_spec(request, old.spec, old.digest)
    return new


def _plan(request: Request) -> Plan:
    if request.wanted == "stock":
        return Plan("stock", ["churten_transport is stock"], {})
    if (
        not request.argv
        or os.path.basename(request.argv[0]) != "ssh"
        or shutil.which(request.argv[0]) != shutil.which("ssh")
    ):
        return Plan("stock", [f"ssh_executable is {request.argv[0] if request.argv else 'missing'}"], {})
    if request.host.startswith("-"):
        return Plan("stock", ["unusual host name"], {})
    try:
        settings, base = settings_for(request)
    except (OSError, ValueError, subprocess.SubprocessError) as ex:
        return Plan("stock", [str(ex)], {})
    return decide(request, settings, base)


def decide(request: Request, settings: Settings, base: Settings) -> Plan:
    """The tables at work; pure but for looking at key files."""
    mapper = _Mapper(request, settings, base)
    mapper.walk()
    spec = mapper.spec
    if mapper.stock:
        return Plan("stock", mapper.stock, spec)
    if request.wanted == "ssh":
        mapper.client.insert(0, "churten_transport is ssh")
    digest = _digest(settings)
    if not mapper.client:
        return Plan("libssh", [], spec, mapper.asks_tty, digest, farewell(settings, request.own_control_path))
    if request.password:
        return Plan("stock", [*mapper.client, "a password cannot be given to an OpenSSH client process"], spec)
    return Plan("ssh", mapper.client, _client_spec(request, spec, digest), mapper.asks_tty, digest)


def farewell(settings: Settings, has_path: bool) -> str | None:
    """What OpenSSH's client (9.x) writes to stderr when a command on a terminal has ended; None if these settings make it hard to tell.

    has_path: Ansible adds a ControlPath, which is not among the settings.
    """

    def one(name: str) -> str:
        return (settings.get(name) or [""])[0].lower()

    if one("loglevel") in ("quiet", "fatal", "error"):
        return ""
    if one("loglevel") != "info" or not one("hostname"):
        return None
    has_path = has_path or one("controlpath") not in ("", "none")
    if one("controlmaster") in ("auto", "yes", "true") and one("controlpersist") not in ("", *_FALSE) and has_path:
        return f"Shared connection to {settings['hostname'][0]} closed.\r\n"
    if one("controlmaster") in ("", *_FALSE) and not has_path:
        return f"Connection to {settings['hostname'][0]} closed.\r\n"
    return None


_LOCAL_ENV = late.pattern(
    r"_|SHLVL|OLDPWD|PWD|WINDOWID|COLUMNS|LINES|TMUX.*|STY|SSH_TTY|SSH_CLIENT|SSH_CONNECTION|XDG_SESSION_ID|ANSIBLE_.*|CHURTEN_.*"
)


# How long to wait and where stock keeps its own master: no other session because of them.
_NOT_THE_SESSION = ("connecttimeout", "controlmaster", "controlpath", "controlpersist", "serveralivecountmax", "serveraliveinterval")


def _digest(settings: Settings) -> str:
    """Of all that decides what a session of an OpenSSH client is: the arguments do not show what a configuration file says."""
    kept = {k: v for k, v in settings.items() if k not in _NOT_THE_SESSION}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()


def _client_spec(request: Request, spec: dict[str, str | list[str]], digest: str) -> dict[str, str | list[str]]:
    """The spec for an OpenSSH client process: stock's own arguments, without starting a ControlMaster of its own."""
    control = ["-o", "ControlMaster=no", "-o", "ControlPersist=no"]
    argv = list(request.argv)
    if request.own_control_path or not spec.get("_master"):
        control += ["-o", "ControlPath=none"]
    out = {
        k: v
        for k, v in spec.items()
        if k in ("host", "port", "user", "timeout_ms", "idle_ms", "alive_interval_ms", "alive_count")
    }
    out["_settings"] = digest  # not sent: it only makes another session
    out["argv"] = [shutil.which(argv[0]) or argv[0], *control, "-o", "BatchMode=yes", *argv[1:], "--", request.host]
    out["env"] = [f"{k}={v}" for k, v in sorted(os.environ.items()) if not _LOCAL_ENV.fullmatch(k)]
    try:
        out["cwd"] = os.getcwd()
    except OSError:
        pass
    return out


class _Mapper:
    """Walks the settings once; a method `on_<keyword>` maps one of them into `spec`."""

    def __init__(self, request: Request, settings: Settings, base: Settings):
        self.request = request
        self.settings = settings
        self.base = base
        self.spec: dict[str, str | list[str]] = {}
        self.client: list[str] = []  # reasons for the transport `ssh`
        self.stock: list[str] = []  # reasons for the stock path
        self.asks_tty = False
        self.home = pwd.getpwuid(os.getuid()).pw_dir

    def one(self, keyword: str, default: str = "") -> str:
        return self.settings.get(keyword, [default])[0]

    def is_off(self, keyword: str) -> bool:
        return self.one(keyword, "no").lower() in _FALSE

    def walk(self) -> None:
        for keyword, values in self.settings.items():
            method = getattr(self, "on_" + keyword, None)
            if method is not None:
                method(values)
            elif keyword in STOCK:
                if any(v.lower() not in STOCK[keyword] for v in values):
                    self.stock.append(f"{keyword} {values[0]}")
            elif keyword not in IGNORE and values != self.base.get(keyword):
                self.client.append(f"{keyword} {values[0]}")
        self._authentication()
        self._master()
        for keyword in ("host", "port", "user"):
            if not self.spec.get(keyword):
                self.client.append(f"no {keyword}")

    # where to

    def on_hostname(self, values: list[str]) -> None:
        self.spec["host"] = values[0]

    def on_port(self, values: list[str]) -> None:
        self.spec["port"] = values[0]

    def on_user(self, values: list[str]) -> None:
        self.spec["user"] = values[0]

    def on_connecttimeout(self, values: list[str]) -> None:
        seconds = _seconds(values[0])
        if seconds:
            self.spec["timeout_ms"] = str(seconds * 1000)

    def on_addressfamily(self, values: list[str]) -> None:
        if values[0] in ("any", "inet", "inet6"):
            self.spec["address_family"] = values[0]
        else:
            self.client.append(f"addressfamily {values[0]}")

    def on_bindaddress(self, values: list[str]) -> None:
        if values[0] != "none":
            self.spec["bind_address"] = values[0]

    # who with

    def _authentication(self) -> None:
        given = self.one(
            "preferredauthentications", "gssapi-with-mic,hostbased,publickey,keyboard-interactive,password"
        ).split(",")
        methods = []
        for method in given:
            if method == "publickey" and not self.is_off("pubkeyauthentication"):
                methods.append(method)
            elif method == "password" and self.request.password and not self.is_off("passwordauthentication"):
                methods.append(method)
            elif (
                method == "keyboard-interactive"
                and self.request.password
                and not self.is_off("kbdinteractiveauthentication")
            ):
                methods.append(method)
            elif method == "hostbased" and not self.is_off("hostbasedauthentication"):
                self.client.append("hostbased authentication")
            elif method.startswith("gssapi") and not self.is_off("gssapiauthentication") and _has_tickets():
                self.client.append("GSSAPI authentication with a Kerberos ticket")
        if not methods:
            self.client.append("no authentication method that libssh could use")
        self.spec["auth"] = methods
        if self.request.password:
            self.spec["password"] = self.request.password
        if not self.is_off("gssapikeyexchange") and _has_tickets():
            self.client.append("GSSAPI key exchange")
        self._identities(methods)

    def _identities(self, methods: list[str]) -> None:
        agent = self.one("identityagent", "SSH_AUTH_SOCK")
        if agent.lower() == "none":
            agent = ""
        elif agent == "SSH_AUTH_SOCK":
            agent = os.environ.get("SSH_AUTH_SOCK", "")
        elif agent.startswith("$"):
            agent = os.environ.get(agent.strip("${}"), "")
        else:
            agent = self._expand(agent, "identityagent") or ""
        self.spec["identity_agent"] = agent
        self.spec["identities_only"] = "0" if self.is_off("identitiesonly") else "1"
        files: list[str] = []
        for value in self.settings.get("identityfile", []) if "publickey" in methods else []:
            path = self._expand(value, "identityfile")
            if path is None or value.lower() == "none":
                continue
            problem = key_problem(path)
            if problem == "missing":
                continue
            if os.path.exists(path + "-cert.pub") or problem == "certificate":
                self.client.append(f"a certificate for {value}")
            elif problem == "security key":
                self.client.append(f"the security key {value}")
            elif problem == "encrypted":
                files.append(path)
                self.asks_tty = True
                if not agent:
                    self.stock.append(f"{value} is encrypted and there is no ssh-agent")
            elif problem:
                self.client.append(f"{value}: {problem}")
            else:
                files.append(path)
        self.spec["identity_file"] = files

    def on_identityfile(self, values: list[str]) -> None:
        """In `_identities`, when the methods are known."""

    on_identityagent = on_identitiesonly = on_preferredauthentications = on_passwordauthentication = on_identityfile
    on_kbdinteractiveauthentication = on_challengeresponseauthentication = on_pubkeyauthentication = on_identityfile
    on_gssapiauthentication = on_gssapikeyexchange = on_hostbasedauthentication = on_identityfile

    def on_certificatefile(self, values: list[str]) -> None:
        self.client.append(f"certificatefile {values[0]}")

    # the host key

    def on_stricthostkeychecking(self, values: list[str]) -> None:
        value = values[0].lower()
        if value in ("true", "yes", "ask"):
            self.spec["host_key_checking"] = "yes"
            self.asks_tty = self.asks_tty or value == "ask"
        elif value in _FALSE:
            self.spec["host_key_checking"] = "no"
        elif value == "accept-new":
            self.spec["host_key_checking"] = value
        else:
            self.client.append(f"stricthostkeychecking {value}")

    def _known_hosts(self, keyword: str, values: list[str]) -> list[str]:
        try:
            words = shlex.split(values[0])
        except ValueError:
            words = values[0].split()
        return [p for p in (self._expand(w, keyword) for w in words) if p and p != "none"]

    def on_userknownhostsfile(self, values: list[str]) -> None:
        self.spec["known_hosts"] = self._known_hosts("userknownhostsfile", values)

    def on_globalknownhostsfile(self, values: list[str]) -> None:
        self.spec["global_known_hosts"] = self._known_hosts("globalknownhostsfile", values)

    def on_hostkeyalias(self, values: list[str]) -> None:
        if values[0] != "none":
            self.spec["host_key_alias"] = values[0].lower()

    def on_hashknownhosts(self, values: list[str]) -> None:
        self.spec["hash_known_hosts"] = "0" if self.is_off("hashknownhosts") else "1"

    # algorithms

    def _algorithms(self, keyword: str, ours: str) -> None:
        value = self.settings.get(keyword)
        self.spec[ours] = value[0] if value and value != self.base.get(keyword) else ""

    def on_ciphers(self, values: list[str]) -> None:
        self._algorithms("ciphers", "ciphers")

    def on_macs(self, values: list[str]) -> None:
        self._algorithms("macs", "macs")

    def on_kexalgorithms(self, values: list[str]) -> None:
        self._algorithms("kexalgorithms", "kex")

    def on_hostkeyalgorithms(self, values: list[str]) -> None:
        self._algorithms("hostkeyalgorithms", "host_key_algorithms")

    def on_pubkeyacceptedalgorithms(self, values: list[str]) -> None:
        self._algorithms("pubkeyacceptedalgorithms", "pubkey_algorithms")

    def on_pubkeyacceptedkeytypes(self, values: list[str]) -> None:
        self._algorithms("pubkeyacceptedkeytypes", "pubkey_algorithms")

    # the rest

    def on_sendenv(self, values: list[str]) -> None:
        patterns = [p for v in values for p in v.split()]
        found = {
            k: v
            for k, v in os.environ.items()
            if any(fnmatch.fnmatchcase(k, p) for p in patterns if not p.startswith("-"))
        }
        self._add_env(found)

    def on_setenv(self, values: list[str]) -> None:
        # One line for each, its quotes taken off.
        self._add_env({name: rest for name, equals, rest in (value.partition("=") for value in values) if equals})

    def _add_env(self, found: dict[str, str]) -> None:
        env = dict(e.partition("=")[::2] for e in self.spec.get("env", []))
        self.spec["env"] = [f"{k}={v}" for k, v in sorted({**env, **found}.items())]

    def on_serveraliveinterval(self, values: list[str]) -> None:
        seconds = _seconds(values[0])
        if seconds:
            self.spec["alive_interval_ms"] = str(seconds * 1000)
            self.spec["alive_count"] = self.one("serveralivecountmax", "3")

    def on_serveralivecountmax(self, values: list[str]) -> None:
        """In `on_serveraliveinterval`."""

    def on_rekeylimit(self, values: list[str]) -> None:
        size, _, seconds = values[0].partition(" ")
        for key, value in (("rekey_bytes", size), ("rekey_seconds", seconds)):
            if value.isdigit() and int(value):
                self.spec[key] = value

    def on_controlpersist(self, values: list[str]) -> None:
        seconds = _seconds(values[0])
        if values[0].lower() == "yes" or seconds == 0:
            self.spec["idle_ms"] = str(LONGEST_IDLE_MS)
        elif seconds is not None:
            self.spec["idle_ms"] = str(min(seconds * 1000, LONGEST_IDLE_MS))
        else:
            self.spec["idle_ms"] = str(DEFAULT_IDLE_MS)

    def on_nohostauthenticationforlocalhost(self, values: list[str]) -> None:
        if values[0].lower() not in _FALSE:
            self.client.append("nohostauthenticationforlocalhost")

    def _master(self) -> None:
        """A ControlMaster the user started himself may hold a second factor: go through it."""
        path = self.one("controlpath", "none")
        if path == "none" or self.request.own_control_path:
            return
        path = os.path.expanduser(path)
        if self.one("host") == self.request.host and "%" not in path and _is_socket(path):
            self.spec["_master"] = "1"
            self.client.append("a ControlMaster of the user")

    def _expand(self, value: str, keyword: str) -> str | None:
        """Home directory and %-tokens of a path; None (and the transport `ssh`) if there is one we do not know."""
        text = value.strip('"')
        if text == "~" or text.startswith("~/"):
            text = self.home + text[1:]
        elif text.startswith("~"):
            text = os.path.expanduser(text)
        tokens = {
            "%": "%",
            "d": self.home,
            "h": self.one("hostname"),
            "i": str(os.getuid()),
            "n": self.request.host,
            "p": self.one("port"),
            "r": self.one("user"),
            "u": pwd.getpwuid(os.getuid()).pw_name,
        }
        out = re.sub(r"%(.)", lambda m: tokens.get(m.group(1), m.group(0)), text)
        if (re.search(r"%[^%]", text) and any(f not in tokens for f in re.findall(r"%(.)", text))) or "${" in text:
            self.client.append(f"{keyword} {value}")
            return None
        return out


def _seconds(value: str) -> int | None:
    """OpenSSH's time format, as `ssh -G` prints it (a plain number); None for `none` and words."""
    return int(value) if value.isascii() and value.isdigit() else None


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


_TICKETS_KEPT_S = 1.0
_tickets: tuple[float, str | None, bool] = (0.0, None, False)  # when it was looked, for what, what was found


def _has_tickets() -> bool:
    """Whether GSSAPI could succeed at all: Debian switches it on for everybody, few have a ticket.

    Many hosts ask at once, and a directory may be long: what was found is good for all of a second.
    """
    global _tickets
    now, name = time.monotonic(), os.environ.get("KRB5CCNAME", "")
    if _tickets[1] != name or now - _tickets[0] > _TICKETS_KEPT_S:
        _tickets = (now, name, _looked_for_tickets())
    return _tickets[2]


def _looked_for_tickets() -> bool:
    name = os.environ.get("KRB5CCNAME", "")
    if name.startswith(("FILE:", "/")):
        return os.path.exists(name.removeprefix("FILE:"))
    if name or glob.glob(f"/tmp/krb5cc_{os.getuid()}*"):
        return True
    klist = shutil.which("klist")
    if klist is None:
        return False
    try:
        return (
            subprocess.run(
                [klist, "-s"], stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False
            ).returncode
            == 0
        )
    except (OSError, subprocess.SubprocessError):
        return True


@functools.lru_cache(maxsize=1024)
def key_problem(path: str) -> str:
    """Empty if `path` is a key file the libssh transport can use as it is; else one or two words: `missing`, `encrypted`, `security key`, ..."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return "missing"
    except OSError as ex:
        return ex.strerror or "unreadable"
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return "not a file"
        data = file.read(16384)
    if data.startswith((b"ssh-", b"ecdsa-", b"sk-")):
        kind = data.split(b" ", 1)[0]
        if b"-cert-" in kind:
            return "certificate"
        return "security key" if kind.startswith(b"sk-") else ""  # a public key: the private one is in the ssh-agent
    if found.st_uid == os.getuid() and found.st_mode & 0o077:
        return "others may read it"  # OpenSSH refuses such a key and says so
    if b"ENCRYPTED" in data[:400]:
        return "encrypted"
    body = re.search(rb"-----BEGIN OPENSSH PRIVATE KEY-----\s+(.*?)-----END", data, re.DOTALL)
    if body is None:
        return "" if data.startswith(b"-----BEGIN ") else "unknown format"
    try:
        blob = base64.b64decode(b"".join(body.group(1).split()))
    except binascii.Error:
        return "damaged"
    if not blob.startswith(b"openssh-key-v1\0\0\0\0\x04none"):
        return "encrypted" if blob.startswith(b"openssh-key-v1\0") else "unknown format"
    return "security key" if b"\0sk-" in blob[:300] or b"sk-ssh-" in blob[:300] or b"sk-ecdsa-" in blob[:300] else ""
