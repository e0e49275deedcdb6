"""ssh_config in all its forms, over real sshds: churten reaches, refuses, authenticates and sends as OpenSSH does under the built-in plugin.

One play over many names of one host, each with a configuration file of its own, under stock and under churten: status, kind of failure, the key that was
accepted, addresses and environment of the session must be the same. `way` says what churten must have used: libssh, ssh (an OpenSSH client process) or
stock; a refused connection has none.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from churten.lab import Lab, Options

V6_PORT = 2222
SEEN = """
- hosts: all
  gather_facts: false
  tasks:
    - name: seen
      command: sh -c 'cat $SSH_USER_AUTH; echo $SSH_CONNECTION | cut -d" " -f1,3,4; env | grep -E "^(LC_|FROM_)" | sort; echo ${SSH_AUTH_SOCK:+agent}; id -un'
"""
# What stock's message must have in common with ours.
KINDS = re.compile(
    r"Permission denied|Host key verification failed|Connection refused|Could not resolve|Bad configuration option|Unable to negotiate|timed out|"
    r"Cannot execute|Cannot assign requested address|not in required|Address family|Network is unreachable|bad permissions",
    re.IGNORECASE,
)


@dataclasses.dataclass
class Case:
    config: str  # lines before those of `base`
    way: str = "libssh"  # how churten must do it; `refused`: both must refuse
    variables: str = ""  # of the host in the inventory
    host: str = ""  # ansible_host instead of the case's name
    known: str = "{known}"  # the UserKnownHostsFile of the case
    key: str = "{key}"
    needs: tuple = ()


REFUSED = "refused"
CASES = {
    "plain": Case(""),
    "host_block": Case("Host other\n  Port 1\nHost host_*\n  Port {port}\nHost *\n  Port 2\n"),
    "match_originalhost": Case("Match originalhost match_originalhost\n  User {user}\nMatch all\n  User nobody\n"),
    "match_host_user": Case("Match host {address}\n  User nobody\nMatch all\n"),
    "match_exec": Case('Match exec "true"\n  SetEnv LC_CASE=exec\nMatch all\n'),
    "match_final": Case("Match final host {address}\n  SetEnv LC_CASE=final\nMatch all\n"),
    "include": Case("Include {dir}/included_*.conf\n"),
    "equals_and_quotes": Case('SetEnv="LC_CASE=a b"\nConnectTimeout=5\n'),
    "port_of_inventory_wins": Case("Port 1\n", variables="ansible_port={port}"),
    "user_of_inventory_wins": Case("User nobody\n", variables="ansible_user={user}"),
    "extra_args_win": Case("Port 1\n", variables="ansible_ssh_extra_args='-o Port={port}'"),
    "tokens_in_a_path": Case("IdentityFile {dir}/%r/%n\n", key="none"),
    "broken_config": Case("NoSuchOption yes\n", REFUSED),
    "ignored_unknown": Case("IgnoreUnknown NoSuchOption\nNoSuchOption yes\n"),
    # where to
    "refused_port": Case("Port 1\n", REFUSED),
    "unresolvable": Case("HostName no-such-host.invalid\n", REFUSED),
    "ipv6": Case("HostName ::1\nPort {v6_port}\n", known="{dir}/known_v6", needs=("v6",)),
    "ipv6_unwanted": Case("HostName ::1\nPort {v6_port}\nAddressFamily inet\n", REFUSED, known="{dir}/known_v6", needs=("v6",)),
    "bind_address": Case("BindAddress 127.0.0.9\n"),
    "bind_address_of_others": Case("BindAddress 192.0.2.1\n", REFUSED),
    "proxy_jump": Case("Host proxy_jump\n  ProxyJump jump1\n", "ssh"),
    "proxy_jump_two_hops": Case("Host proxy_jump_two_hops\n  ProxyJump jump1,jump2\n", "ssh"),
    "proxy_jump_closed": Case("Host proxy_jump_closed\n  ProxyJump closed\n", REFUSED),
    "proxy_command": Case("ProxyCommand ssh -F {dir}/jumps -W %h:%p jump1\n", "ssh"),
    "proxy_command_in_args": Case("", "ssh", variables="ansible_ssh_extra_args='-o ProxyCommand=\"ssh -F {dir}/jumps -W %h:%p jump1\"'"),
    "canonical": Case("CanonicalizeHostname yes\nCanonicalDomains invalid\nCanonicalizeFallbackLocal yes\n"),
    # who with
    "second_key": Case("IdentityFile {dir}/stranger\nIdentityFile {key}\n", key="none"),
    "wrong_key": Case("IdentityFile {dir}/stranger\n", REFUSED, key="none"),
    "wrong_user": Case("User nobody\n", REFUSED),
    "key_others_can_read": Case("IdentityFile {dir}/open_key\n", REFUSED, key="none"),
    "rsa_key": Case("IdentityFile {dir}/rsa\n", key="none"),
    "ecdsa_key": Case("IdentityFile {dir}/ecdsa\n", key="none"),
    "agent": Case("IdentityAgent {agent}\nIdentitiesOnly no\n", key="none"),
    "agent_by_environment": Case("IdentitiesOnly no\n", key="none"),
    "agent_none": Case("IdentityAgent none\nIdentitiesOnly no\n", REFUSED, key="none"),
    "agent_and_identities_only": Case("IdentityAgent {agent}\nIdentityFile {dir}/stranger\n", REFUSED, key="none"),
    "public_half_in_a_file": Case("IdentityAgent {agent}\nIdentityFile {dir}/agent_key.pub\n", key="none"),
    "locked_key_in_agent": Case("IdentityAgent {agent}\nIdentityFile {dir}/locked\n", key="none"),
    "locked_key_without_agent": Case("IdentityAgent none\nIdentityFile {dir}/locked\n", REFUSED, key="none"),
    "certificate_file": Case("CertificateFile {dir}/signed-cert.pub\nIdentityFile {dir}/signed\n", "ssh", key="none"),
    "certificate_beside_the_key": Case("IdentityFile {dir}/signed\n", "ssh", key="none"),
    "certificate_of_another_ca": Case("IdentityFile {dir}/foreign\n", REFUSED, key="none"),
    "pubkey_off": Case("PubkeyAuthentication no\n", REFUSED),
    "pubkey_algorithms": Case("PubkeyAcceptedAlgorithms rsa-sha2-512\n", REFUSED),
    "pubkey_algorithms_rsa": Case("PubkeyAcceptedAlgorithms rsa-sha2-256\nIdentityFile {dir}/rsa\n", key="none"),
    "gssapi_first": Case("GSSAPIAuthentication yes\n"),
    "forward_agent": Case("ForwardAgent {agent}\n", "ssh"),
    # host keys
    "unknown_strict": Case("StrictHostKeyChecking yes\n", REFUSED, known="{dir}/empty_{mode}_1"),
    "unknown_ask": Case("StrictHostKeyChecking ask\n", REFUSED, known="{dir}/empty_{mode}_2"),
    "unknown_no": Case("StrictHostKeyChecking no\n", known="{dir}/empty_{mode}_3"),
    "unknown_accept_new": Case("StrictHostKeyChecking accept-new\n", known="{dir}/empty_{mode}_4"),
    "unknown_hashed": Case("StrictHostKeyChecking accept-new\nHashKnownHosts yes\n", known="{dir}/empty_{mode}_5"),
    "changed_strict": Case("StrictHostKeyChecking yes\n", REFUSED, known="{dir}/known_changed"),
    "changed_accept_new": Case("StrictHostKeyChecking accept-new\n", REFUSED, known="{dir}/known_changed"),
    "changed_no": Case("StrictHostKeyChecking no\n", known="{dir}/known_changed"),
    "known_hosts_off": Case("StrictHostKeyChecking no\n", known="/dev/null"),
    "hashed_known_hosts": Case("", known="{dir}/known_hashed"),
    "two_known_hosts": Case("UserKnownHostsFile {dir}/empty_{mode}_6 {known}\n"),
    "global_known_hosts": Case("GlobalKnownHostsFile {known}\n", known="{dir}/empty_{mode}_7"),
    "alias": Case("HostKeyAlias Known.As\n", known="{dir}/known_alias"),
    "alias_unknown": Case("HostKeyAlias known.as.nothing\n", REFUSED, known="{dir}/known_alias"),
    "revoked_marker": Case("", REFUSED, known="{dir}/known_revoked"),
    "revoked_host_keys": Case("RevokedHostKeys {dir}/known_revoked_keys\n", REFUSED),
    "authority": Case("HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com\n", "ssh", known="{dir}/known_authority"),
    "authority_of_others": Case("", REFUSED, known="{dir}/known_other_authority"),
    "known_hosts_command": Case("KnownHostsCommand /bin/cat {known}\n", "ssh", known="{dir}/empty_{mode}_8"),
    "not_for_localhost": Case("NoHostAuthenticationForLocalhost yes\n", "ssh", known="{dir}/empty_{mode}_9"),
    "host_key_rsa": Case("HostKeyAlgorithms rsa-sha2-512\n", known="{dir}/known_rsa"),
    "required_rsa_size": Case("RequiredRSASize 4096\nHostKeyAlgorithms rsa-sha2-512\n", REFUSED, known="{dir}/known_rsa"),
    "check_host_ip": Case("CheckHostIP yes\n"),
    # algorithms
    "ciphers": Case("Ciphers aes128-ctr\nMACs hmac-sha2-256\nKexAlgorithms curve25519-sha256\n"),
    "ciphers_gcm": Case("Ciphers aes256-gcm@openssh.com\n"),
    "ciphers_plus": Case("Ciphers +aes128-cbc\n"),
    "ciphers_unknown_to_the_server": Case("Ciphers aes128-cbc\n", REFUSED),
    "mac_unknown_to_libssh": Case("Ciphers aes128-ctr\nMACs umac-64@openssh.com\n", "ssh"),
    "kex_unknown_to_the_server": Case("KexAlgorithms diffie-hellman-group1-sha1\n", REFUSED),
    # the rest
    "send_env": Case("SendEnv LC_FROM_*\n"),
    "set_env": Case('SetEnv LC_ONE=1 "LC_TWO=two = \'words"\n'),
    "set_env_refused_by_the_server": Case("SetEnv FROM_HERE=1\n"),
    "compression": Case("Compression yes\n"),
    "rekey_limit": Case("RekeyLimit 1M 10s\n"),
    "keepalive": Case("ServerAliveInterval 5\nServerAliveCountMax 2\nTCPKeepAlive no\n"),
    "quality_of_service": Case("IPQoS af21 cs1\nLogLevel ERROR\n"),
    "local_forward": Case("LocalForward {free_port} 127.0.0.1:1\n", "ssh"),
    "local_command": Case("PermitLocalCommand yes\nLocalCommand touch {dir}/local_{mode}\n", "ssh"),
    "request_tty": Case("RequestTTY yes\n", "stock"),
    "remote_command": Case("RemoteCommand id\n", REFUSED),
    "master_of_the_user": Case("", "ssh", variables="ansible_ssh_args='-o ControlPath={dir}/master'"),
    "other_executable": Case("", "stock", variables="ansible_ssh_executable={dir}/other_ssh"),
}
# Not in the table: `SessionType none` and `RequestTTY force` make stock hang.


def run(*words, **more):
    return subprocess.run([str(w) for w in words], check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, **more)


def keygen(path, *words):
    run("ssh-keygen", "-q", "-N", "", "-C", path.name, "-f", path, *(words or ("-t", "ed25519")))


@pytest.fixture(scope="module")
def place():
    with tempfile.TemporaryDirectory(prefix="chcfg-") as top:
        yield Path(top)


@pytest.fixture(scope="module")
def server(place):
    """A lab host with three host keys, a host certificate and a CA for users."""
    for name, words in {"host_rsa": ("-t", "rsa", "-b", "2048"), "ca": (), "other_ca": (), "stranger": (), "signed": (), "foreign": (),
                        "rsa": ("-t", "rsa", "-b", "2048"), "ecdsa": ("-t", "ecdsa"), "agent_key": (), "open_key": ()}.items():  # fmt: skip
        keygen(place / name, *words)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", place / "locked")
    place.chmod(0o755)
    made = Lab(place / "lab")
    extra = [
        "ExposeAuthInfo yes",
        "AcceptEnv LC_*",
        f"HostKey {made.dir}/keys/host_ed25519",
        f"HostKey {place}/host_rsa",
        f"HostCertificate {made.dir}/keys/host_ed25519-cert.pub",
        f"TrustedUserCAKeys {place}/ca.pub",
        f"ListenAddress [::1]:{V6_PORT}",
        f"AuthorizedKeysFile {made.dir}/keys/authorized_keys {place}/authorized",
    ]
    try:
        made.up(1)  # makes the host key
        run("ssh-keygen", "-q", "-s", place / "ca", "-h", "-I", "host", made.dir / "keys/host_ed25519.pub")
        made.stop("lab001")
        made.up(1, Options(sshd_options=extra))
        for name, authority in (("signed", "ca"), ("foreign", "other_ca")):
            run("ssh-keygen", "-q", "-s", place / authority, "-I", name, "-n", made.account, place / f"{name}.pub")
        texts = [(place / f"{name}.pub").read_text() for name in ("rsa", "ecdsa", "agent_key", "locked", "open_key")]
        (place / "authorized").write_text("".join(texts))
        (place / "open_key").chmod(0o644)
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def agent(place, server):
    """An ssh-agent that holds agent_key and the key of `locked`."""
    socket = place / "agent.sock"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if socket.exists():
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
        plain = place / "plain"
        shutil.copyfile(place / "locked", plain)
        plain.chmod(0o600)
        run("ssh-keygen", "-q", "-p", "-P", "secret", "-N", "", "-f", plain)
        run("ssh-add", "-q", place / "agent_key", plain, env={**os.environ, "SSH_AUTH_SOCK": str(socket)})
        plain.unlink()
        yield socket
    finally:
        process.terminate()
        process.wait(10)


def write_known_hosts(place, server):
    at = f"[{server.hosts[0].address}]:{server.hosts[0].port}"
    host, rsa, ca, other, stranger = (
        " ".join(path.read_text().split()[:2])
        for path in (server.dir / "keys/host_ed25519.pub", *(place / f"{n}.pub" for n in ("host_rsa", "ca", "other_ca", "stranger")))
    )
    texts = {
        "known_v6": f"[::1]:{V6_PORT} {host}\n",
        "known_rsa": f"{at} {rsa}\n",
        "known_changed": f"{at} {stranger}\n{at} {stranger}\n",
        "known_hashed": f"{at} {host}\n",
        "known_alias": f"known.as {host}\n",
        "known_revoked": f"@revoked * {host}\n{at} {host}\n@revoked * {rsa}\n",
        "known_revoked_keys": f"{host}\n{rsa}\n",
        "known_authority": f"@cert-authority * {ca}\n",
        "known_other_authority": f"@cert-authority * {other}\n",
    }
    for name, text in texts.items():
        (place / name).write_text(text)
    run("ssh-keygen", "-H", "-f", place / "known_hashed")
    (place / "known_hashed.old").unlink()


@pytest.fixture
def everything(place, server, agent, play):
    """Runs all cases with a connection plugin; answers the run."""
    write_known_hosts(place, server)
    host = server.hosts[0]
    known = {
        "address": host.address,
        "port": host.port,
        "v6_port": V6_PORT,
        "user": server.account,
        "key": server.dir / "keys/user_ed25519",
        "known": server.dir / "known_hosts",
        "dir": place,
        "agent": agent,
        "free_port": 20022,
    }
    has_v6 = Path("/proc/net/if_inet6").exists() and "lo" in Path("/proc/net/if_inet6").read_text()
    (place / "included_1.conf").write_text("SetEnv LC_CASE=included\n")
    (place / server.account).mkdir(exist_ok=True)
    shutil.copyfile(known["key"], place / server.account / "tokens_in_a_path")
    (place / server.account / "tokens_in_a_path").chmod(0o600)
    (place / "other_ssh").write_text('#!/bin/sh\nexec ssh "$@"\n')
    (place / "other_ssh").chmod(0o755)
    base = "HostName {address}\nPort {port}\nUser {user}\nIdentityFile %s\nIdentitiesOnly yes\nUserKnownHostsFile %s\nGlobalKnownHostsFile /dev/null\n"
    jumps = "".join(f"Host {name}\n  HostName {{address}}\n  Port {number}\n" for name, number in (("jump1", "{port}"), ("jump2", "{port}"), ("closed", "1")))
    jumps += "Host *\n" + base % ("{key}", "{known}")
    (place / "jumps").write_text(jumps.format(**known))

    def all_cases(connection):
        mode = "ours" if connection.startswith("churten") else "stock"
        values = {**known, "mode": mode}
        lines = []
        for name, case in CASES.items():
            if "v6" in case.needs and not has_v6:
                continue
            text = case.config + (jumps if "jump" in name else "") + base % (case.key, case.known)
            (place / name).write_text(text.format(**values))
            variables = f"ansible_host={case.host or name} ansible_ssh_common_args='-F {place / name}' {case.variables.format(**values)}"
            lines.append(f"{name} {variables} ansible_python_interpreter=/usr/bin/python3")
        (place / "inventory").write_text("\n".join(lines) + "\n")
        env = {"SSH_AUTH_SOCK": str(agent), "LC_FROM_A": "a", "LC_FROM_B": "b b", "FROM_THERE": "no", "ANSIBLE_FORKS": "8", "ANSIBLE_SSH_RETRIES": "0"}
        return play(SEEN, connection, "-vvvv", inventory=str(place / "inventory"), env=env, timeout=120)

    return all_cases


@pytest.mark.row("A6", "A7")
def test_every_case_as_under_stock(everything, place, server):
    master = ["ssh", "-F", "none", "-i", server.dir / "keys/user_ed25519", "-o", f"UserKnownHostsFile={server.dir}/known_hosts", "-p", server.hosts[0].port]
    master += ["-o", f"ControlPath={place}/master", f"{server.account}@{server.hosts[0].address}"]
    run(*master[:1], "-M", "-N", "-f", *master[1:])
    try:
        stock = everything("ssh")
        ours = everything("churten.core.ssh")
    finally:
        run(*master[:1], "-O", "exit", *master[1:])
    wrong = []
    one, other = ({line["host"]: line for line in one.results} for one in (stock, ours))
    for name, case in CASES.items():
        if name not in one:
            continue
        left, right = one[name], other[name]
        if (left["status"] == "unreachable") != (case.way == REFUSED):
            wrong.append(f"{name}: stock itself: {left['status']} {left['result'].get('msg', '')[-300:]}")
        if left["status"] != right["status"]:
            messages = [line["result"].get("msg", "")[-300:] for line in (left, right)]
            wrong.append(f"{name}: {left['status']} under stock, here {right['status']}: {messages}")
        elif left["status"] == "unreachable":
            kinds = [sorted({found.lower() for found in KINDS.findall(line["result"]["msg"])}) for line in (left, right)]
            # Stock, also when it is what our host falls back to, may learn that its pipe broke before it reads what a client said.
            broke = "Broken pipe" in right["result"]["msg"] and "Data could not be sent" in left["result"]["msg"]
            if not broke and not set(kinds[0]) <= set(kinds[1]):
                wrong.append(f"{name}: refused in other words:\n  {left['result']['msg']!r}\n  {right['result']['msg']!r}")
        elif left["result"].get("stdout") != right["result"].get("stdout"):
            wrong.append(f"{name}: another session:\n  {left['result']['stdout']!r}\n  {right['result']['stdout']!r}")
        else:
            ways = re.findall(rf"^<{name}> churten: (?:RUN \S+ on agent \d+ \((\w+)\)|the (stock) way)", ours.text, re.MULTILINE)
            way = next(filter(None, ways[-1])) if ways else "none"
            if way != case.way:
                wrong.append(f"{name}: by {way}, expected {case.way}: " + "; ".join(re.findall(rf"^<{name}> (churten: .*)$", ours.text, re.MULTILINE)))
    assert not wrong, "\n".join(wrong)
    assert ours.rc == stock.rc == 4
    # What was written down: the keys of the same hosts, hashed where asked for.
    at = f"[{server.hosts[0].address}]:{server.hosts[0].port}"
    for number in range(1, 6):
        keys = []
        for mode in ("stock", "ours"):
            path = place / f"empty_{mode}_{number}"
            text = path.read_text() if path.exists() else ""
            found = run("ssh-keygen", "-F", at, "-f", path).stdout if text else ""
            keys.append({tuple(line.split()[1:3]) for line in found.splitlines() if not line.startswith("#")})
            assert text.startswith("|1|") == (number == 5), text
        assert keys[0] >= keys[1] and bool(keys[0]) == bool(keys[1]) == (number > 2), (number, keys)
    assert [(place / f"local_{mode}").exists() for mode in ("stock", "ours")] == [True, True]
