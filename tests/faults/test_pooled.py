# SPDX-License-Identifier: GPL-3.0-or-later
"""A kept session is only used again by those who would have made the same one: any difference in policy makes another."""

import itertools
import subprocess

import pytest
from rogue import Rogue
from talking import OPENED

from churten.transport import options, warm
from churten.transport.pool import spec_key

# Two values for everything that says who we are, who they must be, and what protects the way.
POLICY = {
    "hostname": ("192.0.2.1", "192.0.2.2"),
    "port": ("22", "2222"),
    "user": ("one", "two"),
    "identityfile": ("{dir}/one", "{dir}/two"),
    "identityagent": ("/agent/one", "/agent/two"),
    "identitiesonly": ("no", "yes"),
    "stricthostkeychecking": ("true", "false"),
    "userknownhostsfile": ("/known/one", "/known/two"),
    "hostkeyalias": ("one", "two"),
    "ciphers": ("aes256-ctr", "aes128-ctr"),
    "setenv": ("A=1", "A=2"),
    "bindaddress": ("127.0.0.1", "127.0.0.2"),
}
CLIENT = {
    "proxyjump": ("one", "two"),
    "certificatefile": ("/cert/one", "/cert/two"),
    "forwardagent": ("yes", "/agent"),
    "user": ("one", "two"),
    "knownhostscommand": ("/bin/one", "/bin/two"),
    "revokedhostkeys": ("/krl/one", "/krl/two"),
}


@pytest.fixture
def base(tmp_path, monkeypatch):
    (tmp_path / "pool").mkdir(mode=0o700)
    monkeypatch.setenv("CHURTEN_POOL_DIR", str(tmp_path / "pool"))
    monkeypatch.setattr(options, "_has_tickets", lambda: False)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    for name in ("one", "two"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    done = subprocess.run(
        ["ssh", "-G", "-F", "/dev/null", "host"], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
    )
    options.key_problem.cache_clear()
    return options.parse(done.stdout), tmp_path


def keys(base, table, transport, **request):
    settings, directory = base
    found = {}
    for values in itertools.product(*table.values()):
        chosen = {k: [v.format(dir=directory)] for k, v in zip(table, values, strict=True)}
        asked = options.Request(("ssh",), "host", own_control_path=True, **request)
        plan = options.decide(asked, {**settings, **chosen}, settings)
        assert plan.transport == transport, plan.reasons
        found[values] = spec_key(warm.session_identity(plan.spec))
    return found


@pytest.mark.row("F14")
def test_every_combination_of_policies_has_its_own_session(base):
    found = keys(base, POLICY, "libssh")
    assert len(found) == len(set(found.values())) == 1 << len(POLICY)
    with_password = keys(base, {"user": ("one", "two")}, "libssh", password="a")
    assert not set(with_password.values()) & set(found.values())
    assert not set(keys(base, {"user": ("one", "two")}, "libssh", password="b").values()) & set(with_password.values())


@pytest.mark.row("F14")
def test_for_an_openssh_client_it_is_what_the_configuration_says_and_not_the_arguments(base):
    found = keys(base, CLIENT, "ssh")
    assert len(found) == len(set(found.values())) == 1 << len(CLIENT)


@pytest.mark.row("F14")
def test_a_host_that_became_unacceptable_is_judged_anew(play, lab, tmp_path):
    """A session made without checking serves nobody who wants the key checked."""
    text = f"- hosts: {lab.hosts[0].name}\n  gather_facts: false\n  tasks:\n    - ping:\n"
    empty = tmp_path / "known_hosts"
    lax = play(
        text, "churten.core.ssh", ansible_ssh_common_args=f"-o StrictHostKeyChecking=no -o UserKnownHostsFile={empty}"
    )
    assert lax.rc == 0, lax.text
    wrong = (lab.dir / "keys" / "user_ed25519.pub").read_text().split()[:2]
    host = lab.hosts[0]
    empty.write_text(f"[{host.address}]:{host.port} {wrong[0]} {wrong[1]}\n")
    # Without stock's own kept connections: those are used again whatever the policy is.
    args = f"-o StrictHostKeyChecking=yes -o UserKnownHostsFile={empty} -o ControlPath=none"
    strict = play(text, "churten.core.ssh", ansible_ssh_common_args=args)
    stock = play(text, "ssh", ansible_ssh_common_args=args)
    assert strict.rc == stock.rc == 4, strict.text
    assert "Host key verification failed" in strict.text


@pytest.mark.row("F17")
@pytest.mark.parametrize("hashed", ["0", "1"])
def test_known_hosts_is_only_ever_added_to(own_pool, tmp_path, hashed):
    """Twenty new hosts at once, through a link, beside lines we know nothing of: one whole line each, nothing else changes."""
    real, link = tmp_path / "real", tmp_path / "known_hosts"
    before = "# mine\n@revoked * ssh-rsa AAAA\nodd line\n[192.0.2.9]:22 ssh-ed25519 AAAA no newline"
    real.write_text(before)
    real.chmod(0o640)
    link.symlink_to(real)
    talk = own_pool.talk()
    rogues = [Rogue() for _ in range(20)]
    try:
        options = {"user": "x", "timeout_ms": 60000, "host_key_checking": "accept-new", "known_hosts": str(link), "hash_known_hosts": hashed}
        asked = [talk.open(n, f"k{n}", "libssh", (), host="127.0.0.1", port=one.port, **options) for n, one in enumerate(rogues, 1)]
        assert {talk.final(number).type for number in asked} == {OPENED}
    finally:
        for one in rogues:
            one.close()
    text = real.read_text()
    assert link.is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert text.startswith(before + "\n")
    added = text[len(before) + 1 :].splitlines()
    assert len(added) == 20 and {line.split(" ", 1)[1] for line in added} == {one.public for one in rogues}
    assert all(line.startswith("|1|") == (hashed == "1") for line in added)
