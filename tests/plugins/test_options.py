"""churten.transport.options: what the installed OpenSSH says about a host becomes the right transport and the right OPEN map."""

import base64
import os
import socket
import subprocess

import pytest

from churten.transport import options

STOCK_ARGV = (
    "ssh", "-C", "-o", "ControlMaster=auto", "-o", "ControlPersist=60s", "-o", "Port=2222", "-o", "KbdInteractiveAuthentication=no",
    "-o", "PreferredAuthentications=gssapi-with-mic,gssapi-keyex,hostbased,publickey", "-o", "PasswordAuthentication=no",
    "-o", 'User="tester"', "-o", "ConnectTimeout=10", "-o", 'ControlPath="/nowhere/abc"',
)  # fmt: skip


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    directory = tmp_path / "pool"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv("CHURTEN_POOL_DIR", str(directory))
    for name in ("SSH_AUTH_SOCK", "KRB5CCNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(options, "_has_tickets", lambda: False)
    forget()


def forget():
    for store in (options._plans, options._settings, options._files):
        store.clear()
    options.key_problem.cache_clear()


@pytest.fixture
def asked(monkeypatch):
    """The argument lists of every `ssh -G` that is really run."""
    calls = []
    real = options._Question.answer

    def answer(question):
        if question.process is not None:
            calls.append(question.process.args)
        return real(question)

    monkeypatch.setattr(options._Question, "answer", answer)
    return calls


@pytest.fixture
def config(tmp_path):
    """Writes an ssh_config; answers the arguments that name it."""

    def write(text):
        path = tmp_path / "config"
        path.write_text(text)
        forget()
        return ("-F", str(path))

    return write


def plan(*also, host="192.0.2.1", argv=STOCK_ARGV, **words):
    return options.plan(options.Request((argv[0], *also, *argv[1:]), host, own_control_path=True, **words))


def test_stock_arguments_map_to_libssh(config):
    found = plan(*config(""))
    assert (found.transport, found.reasons) == ("libssh", [])
    spec = found.spec
    assert (spec["host"], spec["port"], spec["user"]) == ("192.0.2.1", "2222", "tester")
    assert spec["timeout_ms"] == "10000" and spec["idle_ms"] == "60000"
    assert spec["auth"] == ["publickey"] and spec["host_key_checking"] == "yes"
    assert spec["ciphers"] == spec["kex"] == spec["macs"] == spec["host_key_algorithms"] == ""
    assert "password" not in spec and spec["identity_agent"] == ""
    assert [os.path.basename(p) for p in spec["known_hosts"]] == ["known_hosts", "known_hosts2"]


def test_hosts_that_differ_in_address_port_and_user_cost_one_question(config, asked):
    also = config("Host *\n  ServerAliveInterval 7\n# Host special\n")
    for i in range(1, 5):
        argv = tuple(w.replace("2222", str(2000 + i)).replace("tester", f"user{i}") for w in STOCK_ARGV)
        spec = plan(*also, host=f"192.0.2.{i}", argv=argv).spec
        assert (spec["host"], spec["port"], spec["user"]) == (f"192.0.2.{i}", str(2000 + i), f"user{i}")
        assert spec["alive_interval_ms"] == "7000"
    assert len(asked) == 2  # one of them for the defaults


@pytest.mark.parametrize(
    "text",
    [
        "Host 192.0.2.2\n  Port 7\n",
        "Match user root\n  Port 7\n",
        "  hOsT   web* !web3\n",
        'Match exec "true"\n',
        "UserKnownHostsFile /x/%h\n",
        "Hostname %h.example.org\n",
        "Include {other}\n",
    ],
)
def test_hosts_that_a_configuration_tells_apart_are_asked_about_one_by_one(tmp_path, config, asked, text):
    (tmp_path / "other").write_text("Host 192.0.2.3\n")
    also = config(text.format(other=tmp_path / "other"))
    for i in range(1, 4):
        plan(*also, host=f"192.0.2.{i}")
    assert len([a for a in asked if "none" not in a]) == 3


def test_a_block_for_a_host_is_obeyed(config):
    also = config("Host 192.0.2.2\n  HostName 192.0.2.99\n  HostKeyAlias Other\n")
    assert plan(*also).spec["host"] == "192.0.2.1"
    found = plan(*also, host="192.0.2.2").spec
    assert (found["host"], found["host_key_alias"]) == ("192.0.2.99", "other")


def test_port_and_user_given_in_another_way_win_as_in_openssh(config):
    found = plan(*config(""), "-p", "7", "-l", "somebody").spec
    assert (found["port"], found["user"]) == ("7", "somebody")


def test_the_answer_is_kept_for_other_processes_until_a_file_changes(config, asked):
    also = config("Compression yes\n")
    plan(*also)
    asked.clear()
    forget()
    plan(*also)
    assert asked == []
    also = config("Compression yes\nServerAliveInterval 3\n")
    assert plan(*also).spec["alive_interval_ms"] == "3000"
    assert len(asked) == 1


def test_an_answer_that_depends_on_the_moment_is_not_kept(config, asked):
    also = config('Match exec "true"\n  Port 7\n')
    plan(*also)
    forget()
    asked.clear()
    plan(*also)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "line, word",
    [
        ("ProxyJump bastion", "proxyjump"),
        ("ProxyCommand nc %h %p", "proxycommand"),
        ("ForwardAgent yes", "forwardagent"),
        ("LocalForward 1 127.0.0.1:2", "localforward"),
        ("CertificateFile /x", "certificatefile"),
        ("RevokedHostKeys /x", "revokedhostkeys"),
        ("KnownHostsCommand /bin/true", "knownhostscommand"),
        ("VerifyHostKeyDNS yes", "verifyhostkeydns"),
        ("HostbasedAuthentication yes", "hostbased"),
        ("ConnectionAttempts 3", "connectionattempts"),
        ("IdentityFile /x/%C", "identityfile"),
        ("RequiredRSASize 4096", "requiredrsasize"),
    ],
)
def test_what_libssh_cannot_do_goes_to_an_openssh_client(config, line, word):
    found = plan(*config(line + "\n"))
    assert found.transport == "ssh"
    assert word in found.reasons[0].lower()
    argv = found.spec["argv"]
    assert argv[-2:] == ["--", "192.0.2.1"] and "BatchMode=yes" in argv
    assert argv.index("ControlMaster=no") < argv.index("ControlMaster=auto")
    assert argv.index("ControlPath=none") < argv.index('ControlPath="/nowhere/abc"')
    done = subprocess.run([argv[0], "-G", *argv[1:]], capture_output=True, text=True, check=True).stdout
    assert "controlmaster false" in done and "\ncontrolpath " not in done and "\nuser tester" in done
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET_OF_A_PROXY", "x")
        assert "SECRET_OF_A_PROXY=x" in plan(*config(line + "\n")).spec["env"]


@pytest.mark.parametrize(
    "line", ["RequestTTY force", "RemoteCommand id", "SessionType none", "StdinNull yes", "PKCS11Provider /x"]
)
def test_what_changes_every_command_line_is_left_to_the_stock_path(config, line):
    found = plan(*config(line + "\n"))
    assert found.transport == "stock" and line.split()[0].lower() in found.reasons[0]


@pytest.mark.parametrize(
    "line, key, value",
    [
        ("StrictHostKeyChecking no", "host_key_checking", "no"),
        ("StrictHostKeyChecking accept-new", "host_key_checking", "accept-new"),
        ("StrictHostKeyChecking yes", "host_key_checking", "yes"),
        ("UserKnownHostsFile /a /b", "known_hosts", ["/a", "/b"]),
        ("UserKnownHostsFile /a/%h", "known_hosts", ["/a/192.0.2.1"]),
        ("GlobalKnownHostsFile /c", "global_known_hosts", ["/c"]),
        ("AddressFamily inet6", "address_family", "inet6"),
        ("BindAddress 127.0.0.1", "bind_address", "127.0.0.1"),
        ("Ciphers aes128-ctr", "ciphers", "aes128-ctr"),
        ("MACs hmac-sha2-256", "macs", "hmac-sha2-256"),
        ("KexAlgorithms curve25519-sha256", "kex", "curve25519-sha256"),
        ("HostKeyAlgorithms ssh-ed25519", "host_key_algorithms", "ssh-ed25519"),
        ("HashKnownHosts yes", "hash_known_hosts", "1"),
        ("IdentitiesOnly yes", "identities_only", "1"),
        ("IdentityAgent /agent/%r.sock", "identity_agent", "/agent/tester.sock"),
        ("IdentityAgent none", "identity_agent", ""),
        ("SetEnv A=b", "env", ["A=b"]),
        ("SetEnv A=b \"B=it's = there\"", "env", ["A=b", "B=it's = there"]),
        ("RekeyLimit 1M 10s", "rekey_bytes", "1048576"),
        ("RekeyLimit 1M 10s", "rekey_seconds", "10"),
    ],
)
def test_mapped(config, line, key, value):
    found = plan(*config(line + "\n"))
    assert (found.transport, found.spec[key]) == ("libssh", value)


def test_send_env(config, monkeypatch):
    monkeypatch.setenv("CHURTEN_T_A", "1")
    monkeypatch.setenv("CHURTEN_T_B", "2")
    env = plan(*config("SendEnv CHURTEN_T_*\nSetEnv CHURTEN_T_B=3\n")).spec["env"]
    assert sorted(env) == ["CHURTEN_T_A=1", "CHURTEN_T_B=3"]
    assert plan(*config("SendEnv CHURTEN_T_A\n")).spec["env"] == ["CHURTEN_T_A=1"]


def test_a_kerberos_ticket_matters_only_where_gssapi_is_on(config, monkeypatch):
    monkeypatch.setattr(options, "_has_tickets", lambda: True)
    assert plan(*config("GSSAPIAuthentication no\n")).transport == "libssh"
    assert plan(*config("GSSAPIAuthentication yes\n")).transport == "ssh"


HAS_TICKETS = options._has_tickets  # other tests do without


def test_tickets_are_looked_for_once_for_many_hosts(monkeypatch, tmp_path):
    looked = []
    stock = options._looked_for_tickets
    monkeypatch.setattr(options, "_looked_for_tickets", lambda: looked.append(1) or stock())
    monkeypatch.setattr(options, "_TICKETS_KEPT_S", 3600.0)
    monkeypatch.setenv("KRB5CCNAME", str(tmp_path / "missing"))
    assert [HAS_TICKETS() for _ in range(5)] == [False] * 5 and len(looked) == 1
    (tmp_path / "there").touch()
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{tmp_path / 'there'}")
    assert HAS_TICKETS() and len(looked) == 2
    (tmp_path / "there").unlink()
    assert HAS_TICKETS()
    monkeypatch.setattr(options, "_TICKETS_KEPT_S", 0.0)
    assert not HAS_TICKETS()


def test_password(config):
    argv = tuple(w for w in STOCK_ARGV if "Authentication" not in w)
    argv = tuple(w for i, w in enumerate(argv) if not (w == "-o" and (i + 1 == len(argv) or argv[i + 1] == "-o")))
    found = plan(*config(""), argv=argv, password="geheim")
    assert found.transport == "libssh" and found.spec["password"] == "geheim"
    assert found.spec["auth"] == ["publickey", "keyboard-interactive", "password"]
    found = plan(*config("ProxyJump x\n"), argv=argv, password="geheim")
    assert found.transport == "stock"


def test_wanted(config):
    also = config("")
    assert plan(*also, wanted="stock").transport == "stock"
    found = plan(*also, wanted="ssh")
    assert found.transport == "ssh" and found.spec["argv"]


def test_refused_later(config):
    request = options.Request((*STOCK_ARGV[:1], *config(""), *STOCK_ARGV[1:]), "192.0.2.1", own_control_path=True)
    assert options.plan(request).transport == "libssh"
    options.refuse(request, "ssh", "no common cipher")
    again = options.plan(request)
    assert again.transport == "ssh" and again.reasons == ["no common cipher"] and again.spec["argv"]


@pytest.mark.parametrize("executable", ["/opt/wrapper/ssh-special", "nothing-like-this", "true"])
def test_another_executable(executable):
    assert plan(argv=(executable, *STOCK_ARGV[1:])).transport == "stock"


def test_broken_configuration_is_for_stock_to_report(config):
    found = plan(*config("Ports 22\n"))
    assert found.transport == "stock" and "ports" in found.reasons[0].lower()


# --- keys


def make_key(path, *words):
    subprocess.run(["ssh-keygen", "-q", "-f", str(path), *(words or ("-t", "ed25519", "-N", ""))], check=True)


def test_keys(tmp_path, config):
    good, locked, loose, pem = (str(tmp_path / n) for n in ("good", "locked", "loose", "pem"))
    make_key(good)
    make_key(locked, "-t", "ed25519", "-N", "secret")
    make_key(loose)
    os.chmod(loose, 0o644)
    make_key(pem, "-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "")
    assert [options.key_problem(p) for p in (good, locked, loose, pem, good + ".pub", str(tmp_path / "none"))] == [
        "", "encrypted", "others may read it", "", "", "missing",
    ]  # fmt: skip
    spec = plan(*config(f"IdentityFile {good}\nIdentityFile {tmp_path}/none\nIdentityFile {pem}\n")).spec
    assert spec["identity_file"] == [good, pem]
    assert plan(*config(f"IdentityFile {loose}\n")).transport == "ssh"
    assert plan(*config(f"IdentityFile {locked}\n")).transport == "stock"
    with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_UNIX) as agent:
        path = str(tmp_path / "agent")
        agent.bind(path)
        patch.setenv("SSH_AUTH_SOCK", path)
        found = plan(*config(f"IdentityFile {locked}\n"))
        assert found.transport == "libssh" and found.spec["identity_agent"] == path and found.asks_tty


def test_certificates_and_security_keys(tmp_path, config):
    key = str(tmp_path / "key")
    make_key(key)
    open(key + "-cert.pub", "w").close()
    assert plan(*config(f"IdentityFile {key}\n")).transport == "ssh"
    public = tmp_path / "sk.pub"
    public.write_text("sk-ssh-ed25519@openssh.com " + base64.b64encode(b"x").decode())
    assert plan(*config(f"IdentityFile {public}\n")).transport == "ssh"


def test_config_files_as_openssh_finds_them(tmp_path):
    home = tmp_path / "home"
    (home / ".ssh" / "d").mkdir(parents=True)
    (tmp_path / "sys").mkdir()
    system = str(tmp_path / "sys" / "ssh_config")

    def look(user, included="", global_=""):
        (home / ".ssh" / "config").write_text(user)
        (home / ".ssh" / "d" / "a.conf").write_text(included)
        (tmp_path / "sys" / "ssh_config").write_text(global_)
        found = options.ConfigFiles(["ssh"], str(home), system)
        return found.by_host, found.by_moment

    assert look("Host *\n Port 2\n", "", "Host *\n") == (False, False)
    assert look("Include d/*.conf\n", "Host a\n") == (True, False)
    assert look("Include ~/.ssh/d/a.conf\n", "Match all\n") == (False, False)
    assert look("", "", "Match host x\n") == (True, False)
    assert look("Include=d/a.conf\n", "Match exec true\n") == (True, True)
    assert look("IdentityAgent $SOME\n") == (False, True)
    assert look("Include config\n") == (True, True)  # includes itself
    assert options.ConfigFiles(["ssh", "-F", "none"], str(home), system).state == []
    one = options.ConfigFiles(["ssh", "-F" + str(home / ".ssh" / "d" / "a.conf")], str(home), system).state
    assert len(one) == 1
