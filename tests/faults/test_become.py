"""Privilege escalation under every kind of sudo, su and doas: stock's verdicts, texts and number of password tries.

Real sudo, su and doas of this machine. The lab's accounts are in /etc/sudoers.d already; a test's own lines come in a file that is read after the lab's
and is removed in any case. It only speaks of the lab's accounts.
"""

import contextlib
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from lab_plays import assert_same
from targets import agents, changed, gone, library, reasons, soon, tasks, wrapped

from churten.lab import accounts

CHURTEN = "churten.core.ssh"
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="accounts and sudoers need root"),
    pytest.mark.skipif(not shutil.which("sudo"), reason="sudo is not installed"),
    pytest.mark.slow,
]


class Become:
    """Plays on one host of the lab as one of its accounts; `sudoers` in force."""

    def __init__(self, lab, play, env, log):
        self.lab, self._play, self._env, self.log = lab, play, env, log
        self.name = f"churten-lab-{lab.id}-zz"  # after the lab's own

    def sudoers(self, text, asking=True):
        """The lines in force from now on; {user} is the account, {log} sudo's log file."""
        user = self.user(asking)
        accounts.write_sudoers(self.name, f"Defaults:{user} logfile={self.log}\n" + text.format(user=user, log=self.log) + "\n")

    def user(self, asking=True):
        return self.lab.asking_account if asking else self.lab.account

    def __call__(self, text, connection=CHURTEN, asking=True, host="lab001", **more):
        done = self._play(tasks(text, host, ignore_unreachable="true"), connection, "-vvv", env={**self._env, **more.pop("env", {})},
                          ansible_user=self.user(asking), password=self.lab.password, timeout=more.pop("timeout", 200), **more)  # fmt: skip
        print(done.text)  # pytest shows it with a failure
        return done

    def same(self, text, **more):
        runs = [self(text, connection, **more) for connection in ("ssh", CHURTEN)]
        assert_same(*runs)
        return runs

    def tries(self, run=None):
        """Lines of sudo's log, joined and without their dates; empties it."""
        if not self.log.exists():
            return []
        text = re.sub(r"\n {4,}", " ", self.log.read_text())
        self.log.write_text("")
        return [line.partition(" : ")[2] for line in text.splitlines()]


@pytest.fixture
def become(lab, play, tmp_path):
    made = Become(lab, play, library(tmp_path / "library"), lab.dir / "sudo.log")
    try:
        yield made
    finally:
        accounts.remove_sudoers(made.name)
        made.log.unlink(missing_ok=True)
        reset(lab)


def reset(lab):
    """No agent of another account is left, and no time stamp of sudo."""
    for folder in accounts.TRACES:
        for name in (lab.account, lab.asking_account):
            Path(folder, name).unlink(missing_ok=True)


def statuses(run):
    return {line["task"]: line["status"] for line in run.results}


WHO = """
- command: id -un
  name: {name}
  become: true
  ignore_errors: true
  vars: {{ansible_become_password: "{password}"}}
"""
RIGHT, WRONG = "{{ password }}", "wrong{{ password }}"


def who(name, password=RIGHT):
    return WHO.format(name=name, password=password)


def missing(name):
    return f"- command: id -un\n  name: {name}\n  become: true\n  ignore_errors: true\n"


# --- passwords ---


@pytest.mark.row("D1")
@pytest.mark.parametrize("module", ["command: id -un", "raw: id -un", "shell: id -un", "copy: {content: x, dest: /dev/shm/churten-d1}"])
def test_wrong_password(become, module):
    """Stock's text; each task tries once, and a password known to be bad is not tried again by itself."""
    become.sudoers("Defaults:{user} passwd_tries=3, !lecture")
    text = f"""
- {module}
  name: one
  become: true
  ignore_errors: true
  vars: {{ansible_become_password: "{WRONG}"}}
- {module}
  name: two
  become: true
  ignore_errors: true
  vars: {{ansible_become_password: "{WRONG}"}}
"""
    tries = []
    for connection in ("ssh", CHURTEN):
        last = become(text + who("right"), connection)
        assert "Incorrect sudo password" in last.one("one")["result"]["msg"], last.text[-3000:]
        assert last.one("right")["result"]["stdout"] == "root"
        time.sleep(1)  # sudo writes its log when it ends
        tries.append(become.tries())
        tries[-1] = [line for line in tries[-1] if "incorrect" in line]
        if connection == "ssh":
            stock = last
    assert_same(stock, last)
    # An attempt that is ended while sudo waits for the second try is not in its log, under neither.
    assert len(tries[1]) <= max(len(tries[0]), 2), tries
    assert all("1 incorrect password attempt" in line for line in tries[1]), tries


@pytest.mark.row("D1")
def test_tries_reach_pam_once(become, lab, tmp_path):
    """Counted where passwords are checked: every task with a wrong password asks once, the right one once."""
    count = lab.dir / "tries"
    service = Path("/etc/pam.d") / f"churten-{lab.id}"
    if not list(Path("/lib").rglob("pam_exec.so")) and not list(Path("/usr/lib").rglob("pam_exec.so")):
        pytest.skip("no pam_exec")
    script = lab.dir / "count.sh"
    script.write_text(f"#!/bin/sh\necho $PAM_TYPE >>{count}\n")
    script.chmod(0o755)
    line = f"auth optional pam_exec.so quiet {script}\n"
    service.write_text(line + Path("/etc/pam.d/sudo").read_text())
    try:
        become.sudoers(f"Defaults:{{user}} pam_service=churten-{lab.id}, passwd_tries=3, !lecture")
        found = []
        for connection in ("ssh", CHURTEN):
            count.write_text("")
            last = become(who("one", WRONG) + who("two", WRONG) + who("right") + who("right again"), connection)
            assert [line["status"] for line in last.results] == ["failed", "failed", "ok", "ok"], last.text[-3000:]
            time.sleep(3)  # pam_fail_delay
            found.append(count.read_text().split().count("auth"))
        # Stock: four tasks, four passwords. Ours: the two good ones share an agent.
        assert found[1] <= found[0] and found[1] <= 4 + 2, found
        # (sudo asks again after a wrong one, and is ended while it waits)
    finally:
        service.unlink()
        for path in (count, script):
            path.unlink(missing_ok=True)


@pytest.mark.row("D2")
@pytest.mark.parametrize("flags", ["-H -S -n", "-H -S", ""])
def test_missing_password(become, flags):
    """Within the connect timeout and two seconds, as under stock."""
    become.sudoers("Defaults:{user} !lecture")
    text = missing("missing") + "- raw: id -un\n  name: raw\n  become: true\n  ignore_errors: true\n" + missing("again") + who("right")
    begun = time.monotonic()
    stock = become(text, "ssh", ansible_become_flags=flags, ansible_timeout=4)
    between = time.monotonic()
    ours = become(text, ansible_become_flags=flags, ansible_timeout=4)
    assert time.monotonic() - between < (between - begun) + 40
    assert_same(stock, ours)
    if "-n" in flags:
        assert "Missing sudo password" in ours.one("missing")["result"]["msg"]


# --- what sudo says before ---

SAYS = {
    "plain": "Defaults:{user} !lecture",
    "lecture": "Defaults:{user} lecture=always",
    "lecture file": "Defaults:{user} lecture=always, lecture_file={log}.lecture",
    "insults": "Defaults:{user} insults, !lecture",
    "pwfeedback": "Defaults:{user} pwfeedback, !lecture",
    "log_output": "Defaults:{user} log_output, log_input, iolog_dir={log}.io, !lecture",
    "use_pty": "Defaults:{user} use_pty, !lecture",
    "pty and log": "Defaults:{user} use_pty, log_output, iolog_dir={log}.io, !lecture",
    "no pty": "Defaults:{user} !use_pty, !lecture",
    "passprompt": 'Defaults:{user} passprompt="Kennwort von %p:", passprompt_override, !lecture',
    "badpass": 'Defaults:{user} badpass_message="Falsch! Noch einmal.", !lecture',
    "env": "Defaults:{user} !env_reset, setenv, !lecture",
    "umask": "Defaults:{user} umask=0077, umask_override, !lecture",
    "noexec": "Defaults:{user} !lecture\n{user} ALL=(ALL:ALL) PASSWD: NOEXEC: ALL",
    "targetpw": "Defaults:{user} !lecture, closefrom_override, timestamp_type=global",
}


@pytest.fixture
def spoken(become):
    yield become
    shutil.rmtree(f"{become.log}.io", ignore_errors=True)
    Path(f"{become.log}.lecture").unlink(missing_ok=True)


@pytest.mark.row("D4")
@pytest.mark.parametrize("kind", list(SAYS))
def test_what_sudo_says(spoken, kind):
    Path(f"{spoken.log}.lecture").write_text("We trust you.\nPassword:\nSorry, try later.\n[sudo] password for you:\n#1) \u00e9\n")
    spoken.sudoers(SAYS[kind])
    if kind in ("badpass", "passprompt", "insults"):
        text = who("right") + who("again")  # a wrong one: see below
    else:
        text = who("wrong", WRONG) + who("right") + missing("missing") + who("again")
    text += f"""
- shell: umask; echo $HOME $USER $SUDO_USER; pwd; id; ps -o tty= -p $$
  become: true
  ignore_errors: true
  vars: {{ansible_become_password: "{RIGHT}"}}
- command: id -un
  become: true
  become_user: nobody
  ignore_errors: true
  vars: {{ansible_become_password: "{RIGHT}"}}
"""
    _, ours = spoken.same(text, ansible_timeout=5)
    assert statuses(ours)["again"] == "ok" or kind in ("passprompt", "noexec")
    assert "on agent 1" in ours.text or kind in ("passprompt", "noexec")


@pytest.mark.row("D4")
@pytest.mark.parametrize("kind", ["insults", "badpass"])
def test_words_for_a_wrong_password(spoken, kind):
    """Words that stock does not know: it waits for its timeout, and so is the verdict here."""
    spoken.sudoers(SAYS[kind] + "\nDefaults:{user} passwd_tries=2")
    stock = spoken(who("wrong", WRONG) + who("right"), "ssh", ansible_timeout=3)
    ours = spoken(who("wrong", WRONG) + who("right"), ansible_timeout=3)
    assert_same(stock, ours)


@pytest.fixture
def german(become):
    """The locale de_DE.UTF-8 where programs with other rights find it; removed if it was not there. Skips if sudo does not speak it then."""
    made = Path("/usr/lib/locale/de_DE.utf8")
    mine = not made.exists()
    if mine and (not shutil.which("localedef") or subprocess.run(["localedef", "-i", "de_DE", "-f", "UTF-8", "--no-archive", made], check=False).returncode):
        pytest.skip("localedef cannot make de_DE.UTF-8 here")
    try:
        become.sudoers("Defaults:{user} !lecture")
        ask = "LC_ALL=de_DE.UTF-8 LANGUAGE=de sudo -k -S -u nobody true"
        said = subprocess.run(["su", become.user(), "-s", "/bin/sh", "-c", ask], input="falsch\n", capture_output=True, text=True, check=False).stderr
        if "Passwort" not in said and "Kennwort" not in said:
            pytest.skip(f"sudo does not speak German here: {said!r}")
        yield said
    finally:
        if mine:
            shutil.rmtree(made, ignore_errors=True)


@pytest.mark.row("D4")
@pytest.mark.parametrize("flags", [None, "-H -S -p '' ", "-H -S -k"])
def test_sudo_speaks_german(german, become, lab, flags):
    """Its own prompt and its own words for a wrong password, translated: what stock makes of them."""
    more = {} if flags is None else {"ansible_become_flags": flags}
    text = who("wrong", WRONG) + who("right") + missing("missing") + "- raw: sudo -S -k id -un </dev/null\n  name: raw\n  ignore_errors: true\n"
    with wrapped(lab, "export LC_ALL=de_DE.UTF-8 LANGUAGE=de"):
        _, ours = become.same(text, host="lab002", ansible_timeout=5, **more)
    assert "Passwort" in str(ours.one("raw")["result"]) or "Kennwort" in str(ours.one("raw")["result"]), ours.one("raw")


@pytest.mark.row("D4")
@pytest.mark.parametrize("words", ["LANG=de_DE.UTF-8 LANGUAGE=de", "LC_ALL=fr_FR.UTF-8", "LANG=C"])
def test_localised(become, lab, words):
    """A target that speaks another language; messages of the login around the commands."""
    become.sudoers("Defaults:{user} !lecture")
    script = f"export {words}\necho 'Passwort:'; echo 'Willkommen' >&2; echo '[sudo] password for root: '"
    with wrapped(lab, script):
        become.same(who("wrong", WRONG) + who("right") + missing("missing"), host="lab002", ansible_timeout=5)


# --- terminals, slow, refused ---


@pytest.mark.row("D3")
@pytest.mark.parametrize("asking", [True, False])
@pytest.mark.parametrize("pipelining", [True, False])
def test_requiretty(become, asking, pipelining):
    """sudo wants a terminal: stock needs pipelining off, and so it is here; the text is stock's."""
    become.sudoers("Defaults:{user} requiretty, !lecture" + ("" if asking else "\n{user} ALL=(ALL:ALL) NOPASSWD: ALL"), asking)
    text = (who("first") if asking else missing("first")) + (who("second") if asking else missing("second"))
    env = {"ANSIBLE_PIPELINING": str(pipelining), "ANSIBLE_SSH_PIPELINING": str(pipelining)}
    _, ours = become.same(text, asking=asking, env=env, ansible_timeout=5, ansible_pipelining=pipelining)
    assert set(statuses(ours).values()) == ({"failed"} if pipelining else {"ok"})
    if pipelining:
        assert "tty" in str(ours.one("first")["result"]) and reasons(ours)


@pytest.mark.row("D3")
def test_visiblepw(become):
    become.sudoers("Defaults:{user} !visiblepw, !lecture")
    become.same(who("first") + who("wrong", WRONG) + who("second"), ansible_timeout=5)


@pytest.mark.row("D5")
def test_slow_pam(become, lab):
    """Longer than the timeout: stock's text, and as soon. Shorter: it works."""
    service = Path("/etc/pam.d") / f"churten-slow-{lab.id}"
    script = lab.dir / "slow.sh"
    script.write_text("#!/bin/sh\nsleep 6\n")
    script.chmod(0o755)
    service.write_text(f"auth optional pam_exec.so quiet {script}\n" + Path("/etc/pam.d/sudo").read_text())
    try:
        become.sudoers(f"Defaults:{{user}} pam_service=churten-slow-{lab.id}, pam_acct_mgmt, !lecture")
        text = who("slow")
        begun = time.monotonic()
        stock = become(text, "ssh", ansible_timeout=2)
        between = time.monotonic()
        ours = become(text, ansible_timeout=2)
        assert time.monotonic() - between < between - begun + 30
        assert_same(stock, ours)
        assert "privilege escalation prompt" in ours.one("slow")["result"]["msg"] or stock.one("slow")["status"] == "ok"
        assert become(text, ansible_timeout=20).one("slow")["result"]["stdout"] == "root"
    finally:
        service.unlink()
        script.unlink()


@pytest.mark.row("D7")
def test_only_stocks_form(become, lab):
    """sudoers that allow the command stock runs but not ours: refused once per run, then the stock way."""
    # Stock: /bin/sh -c 'echo BECOME-SUCCESS-... ; /usr/bin/python3'. (sudo matches the arguments as one text.)
    become.sudoers("{user} ALL=(ALL:ALL) NOPASSWD: /bin/sh ^-c echo BECOME-SUCCESS-[a-z]+ ; /usr/bin/python3$\nDefaults:{user} !lecture")
    # The lab's own line gives everything with a password; this one wins for what it names.
    text = missing("one") + missing("two") + missing("three")
    stock = become(text, "ssh")
    become.tries()
    ours = become(text, env={"ANSIBLE_STRATEGY": "churten.core.linear"})
    assert_same(stock, ours)
    assert set(statuses(ours).values()) == {"ok"}, ours.text[-3000:]
    refused = [line for line in become.tries() if "NOPASSWD" not in line and ("password is required" in line or "not allowed" in line)]
    assert len(refused) <= 1 and reasons(ours), refused


# --- other ways ---


OTHER = """
- command: id -un
  name: exe
  become: true
  ignore_errors: true
  vars: {ansible_become_exe: /usr/bin/sudo, ansible_become_password: "{{ password }}"}
- command: id -un
  name: wrapper
  become: true
  ignore_errors: true
  vars: {ansible_become_exe: "{{ wrapper }}", ansible_become_password: "{{ password }}"}
- command: id -un
  name: no such
  become: true
  ignore_errors: true
  vars: {ansible_become_exe: /nonexistent/sudo, ansible_become_password: "{{ password }}"}
- shell: echo $HOME; pwd
  name: flags
  become: true
  ignore_errors: true
  vars: {ansible_become_flags: "-i -S", ansible_become_password: "{{ password }}"}
- shell: echo $HOME $LANG
  name: flags E
  become: true
  ignore_errors: true
  vars: {ansible_become_flags: "-E -H -S -n", ansible_become_password: "{{ password }}"}
- command: id -un
  name: bad flags
  become: true
  ignore_errors: true
  vars: {ansible_become_flags: "--no-such-flag", ansible_become_password: "{{ password }}"}
- command: id -un
  name: empty flags
  become: true
  ignore_errors: true
  vars: {ansible_become_flags: "", ansible_become_password: "{{ password }}"}
- shell: pwd
  name: chdir
  become: true
  ignore_errors: true
  vars: {ansible_sudo_chdir: /usr, ansible_become_password: "{{ password }}"}
- command: id -gn
  name: group
  become: true
  ignore_errors: true
  vars: {ansible_become_flags: "-H -S -g nogroup", ansible_become_password: "{{ password }}"}
- command: id -un
  name: stock's way
  become: true
  vars: {ansible_churten_become: stock, ansible_become_password: "{{ password }}"}
"""


@pytest.mark.row("D6")
def test_sudo_in_other_words(become, lab):
    wrapper = lab.dir / "mysudo"
    wrapper.write_text("#!/bin/sh\necho a wrapper >&2\nexec sudo \"$@\"\n")
    wrapper.chmod(0o755)
    become.sudoers("Defaults:{user} !lecture")
    try:
        _, ours = become.same(OTHER, ansible_timeout=5, wrapper=str(wrapper))
    finally:
        wrapper.unlink()
    assert "churten_become is stock" in ours.text
    assert statuses(ours)["exe"] == "ok"


SU = """
- command: id -un
  name: right
  become: true
  become_method: METHOD
  become_user: "{{ other }}"
  ignore_errors: true
  vars: {ansible_become_password: "{{ theirs }}"}
- shell: id; echo $HOME $USER $LOGNAME; pwd; umask; tty
  name: where
  become: true
  become_method: METHOD
  become_user: "{{ other }}"
  ignore_errors: true
  vars: {ansible_become_password: "{{ theirs }}"}
- command: id -un
  name: wrong
  become: true
  become_method: METHOD
  become_user: "{{ other }}"
  ignore_errors: true
  vars: {ansible_become_password: wrong}
- command: id -un
  name: missing
  become: true
  become_method: METHOD
  become_user: "{{ other }}"
  ignore_errors: true
- command: id -un
  name: flags
  become: true
  become_method: METHOD
  become_user: "{{ other }}"
  become_flags: FLAGS
  ignore_errors: true
  vars: {ansible_become_password: "{{ theirs }}"}
- command: id -un
  name: unknown
  become: true
  become_method: METHOD
  become_user: no-such-account
  ignore_errors: true
  vars: {ansible_become_password: "{{ theirs }}"}
- raw: id -un
  name: raw
  become: true
  become_method: METHOD
  become_user: "{{ other }}"
  ignore_errors: true
  vars: {ansible_become_password: "{{ theirs }}"}
- copy: {content: x, dest: /dev/shm/churten-su}
  name: copy
  become: true
  become_method: METHOD
  become_user: "{{ other }}"
  ignore_errors: true
  vars: {ansible_become_password: "{{ theirs }}"}
- command: rm -f /dev/shm/churten-su
  become: true
  become_method: METHOD
  become_user: "{{ other }}"
  ignore_errors: true
  vars: {ansible_become_password: "{{ theirs }}"}
- command: id -un
  name: after
"""


@pytest.mark.row("D6")
def test_su(become, lab):
    """As under stock, by stock's way, with the reason in the log."""
    text = SU.replace("METHOD", "su").replace("FLAGS", '"-"')
    _, ours = become.same(text, asking=False, other=lab.asking_account, theirs=lab.password, ansible_timeout=5)
    assert statuses(ours)["right"] == "ok" and ours.one("right")["result"]["stdout"] == lab.asking_account
    assert reasons(ours)


@pytest.fixture
def doas_conf(lab):
    """Puts lines into /etc/doas.conf, which was not there before."""
    if not shutil.which("doas"):
        pytest.skip("doas is not installed (apt-get install opendoas)")
    path = Path("/etc/doas.conf")
    if path.exists():
        pytest.skip("this machine has a doas.conf of its own")
    try:
        yield path.write_text
    finally:
        path.unlink(missing_ok=True)


PLUGIN = '''
DOCUMENTATION = """
name: NAME
short_description: for tests
description: For tests.
options:
  become_user: {description: u, default: root, vars: [{name: ansible_become_user}], keyword: [{name: become_user}]}
  become_exe: {description: e, default: EXE, vars: [{name: ansible_become_exe}], keyword: [{name: become_exe}]}
  become_flags: {description: f, default: "", vars: [{name: ansible_become_flags}], keyword: [{name: become_flags}]}
  become_pass: {description: p, vars: [{name: ansible_become_password}, {name: ansible_become_pass}]}
"""
import re
from ansible.module_utils.common.text.converters import to_bytes
from ansible.plugins.become import BecomeBase


class BecomeModule(BecomeBase):
    name = "NAME"
    pipelining = PIPELINING
    fail = ("Permission denied", "Authentication failed", "Sorry, try again.")
    missing = ("Authorization required", "a password is required")

    def check_password_prompt(self, b_output):
        return self.prompt and re.search(rb"(?i)password.*:", b_output) is not None

    def build_become_command(self, cmd, shell):
        super().build_become_command(cmd, shell)
        if not cmd:
            return cmd
        self.prompt = "password:"
        flags = self.get_option("become_flags") or ""
        if not self.get_option("become_pass"):
            flags += " -n"
        user = self.get_option("become_user")
        return f"{self.get_option('become_exe')} {flags} STYLE -u {user} {self._build_success_command(cmd, shell, noexe=NOEXE)}"
'''


def plugins(folder, **kinds):
    """Become plugins as a collection would bring them (community.general's doas is of this kind)."""
    folder.mkdir(exist_ok=True)
    for name, (exe, style, noexe) in kinds.items():
        text = PLUGIN.replace("NAME", name).replace("STYLE", style).replace("NOEXE", noexe)
        text = text.replace("PIPELINING", str(exe != "doas"))  # doas reads from its terminal
        (folder / f"{name}.py").write_text(text.replace("default: EXE", f"default: {exe}"))
    return {"ANSIBLE_BECOME_PLUGINS": str(folder)}


@pytest.mark.row("D6")
@pytest.mark.parametrize("permit", ["permit nopass", "permit", "deny"])
def test_doas(become, lab, doas_conf, tmp_path, permit):
    doas_conf(f"{permit} {lab.asking_account} as {lab.account}\n{permit} {lab.asking_account} as root\n")
    text = SU.replace("METHOD", "doas").replace("FLAGS", '"-L"')
    env = plugins(tmp_path / "become", doas=("doas", "", "False"))
    runs = [become(text, connection, env=env, other=lab.account, theirs=lab.password, ansible_timeout=5) for connection in ("ssh", CHURTEN)]
    for run in runs:  # whether a terminal's line ends came with the prompt or later is chance
        for line in run.results:
            for name in ("stdout", "stderr", "module_stdout", "module_stderr", "msg"):
                if isinstance(line["result"].get(name), str):
                    line["result"][name] = re.sub(r"[\r\n]+", "\n", line["result"][name]).strip()
                line["result"].pop(f"{name}_lines", None)
    assert_same(*runs)
    ours = runs[1]
    assert statuses(ours)["after"] == "ok"
    assert reasons(ours)
    assert permit == "deny" or statuses(ours)["right"] == "ok"


@pytest.mark.row("D6")
def test_plugin_of_a_collection(become, collections, tmp_path):
    """A plugin of somebody's own, and one that is called sudo but is not core's."""
    become.sudoers("Defaults:{user} !lecture")
    folder = tmp_path / "ansible_collections" / "acme" / "tools" / "plugins" / "become"
    folder.mkdir(parents=True)
    plugins(folder, elevate=("sudo", "-S -p password:", "False"), sudo=("sudo", "-S -p password:", "False"))
    text = "".join(
        who(f"{name} {kind}", password) + f"  become_method: {name}\n"
        for name in ("acme.tools.elevate", "acme.tools.sudo")
        for kind, password in (("right", RIGHT), ("wrong", WRONG))
    )
    env = {"ANSIBLE_COLLECTIONS_PATH": f"{collections}:{tmp_path}"}
    runs = become.same(text + missing("missing"), env=env, ansible_timeout=5)
    assert statuses(runs[1])["acme.tools.elevate right"] == "ok", runs[1].text[-3000:]
    assert len([line for line in reasons(runs[1]) if "starts no agent" in line]) >= 2


# --- accounts ---


@pytest.fixture
def third(lab):
    """Makes and changes a third account."""
    name = f"{lab.account}-t"
    home = lab.dir / "home-t"
    accounts.create(name, lab.id, home, None)

    def change(*words):
        subprocess.run([words[0], *words[1:], name], check=True, capture_output=True, timeout=30)

    change.name = name
    yield change
    uid = __import__("pwd").getpwnam(name).pw_uid

    def ended():
        found = subprocess.run(["pgrep", "-u", str(uid)], capture_output=True, text=True).stdout.split()
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(int(pid), 9)
        return not found

    soon(ended)
    accounts.remove(name, lab.id)
    shutil.rmtree(home, ignore_errors=True)


@pytest.mark.row("D8")
@pytest.mark.parametrize("kind", ["nologin", "false", "expired", "locked", "no home", "unreadable home", "unknown", "odd name"])
def test_accounts(become, lab, third, kind):
    become.sudoers("{user} ALL=(ALL:ALL) NOPASSWD: ALL\nDefaults:{user} !lecture", asking=False)
    name = third.name
    if kind == "nologin":
        third("usermod", "-s", "/usr/sbin/nologin")
    elif kind == "false":
        third("usermod", "-s", "/bin/false")
    elif kind == "expired":
        third("usermod", "-e", "1")
    elif kind == "locked":
        third("usermod", "-L")
    elif kind == "no home":
        third("usermod", "-d", "/proc/none/home")
    elif kind == "unreadable home":
        os.chmod(lab.dir / "home-t", 0)
    elif kind == "unknown":
        name = "no-such-account"
    else:
        name = "#4294967290"
    text = f"""
- command: id -u
  name: one
  become: true
  become_user: "{name}"
  ignore_errors: true
- shell: pwd; echo $HOME $SHELL
  name: two
  become: true
  become_user: "{name}"
  ignore_errors: true
- shell: id -u
  name: login
  become: true
  become_user: "{name}"
  become_flags: "-i"
  ignore_errors: true
- copy: {{content: x, dest: "/dev/shm/churten-d8"}}
  name: copy
  become: true
  become_user: "{name}"
  ignore_errors: true
- file: {{path: /dev/shm/churten-d8, state: absent}}
  become: true
- command: id -un
  name: after
  become: true
"""
    _, ours = become.same(text, asking=False)
    assert statuses(ours)["after"] == "ok"


@pytest.mark.row("D9")
@pytest.mark.parametrize("asking", [False, True])
def test_rights_revoked(become, lab, asking, tmp_path):
    """The run goes on with what it has, as documented; with the opt-out variable each task asks sudo; the next run is refused as under stock."""
    grant = "{user} ALL=(ALL:ALL) " + ("" if asking else "NOPASSWD: ") + "ALL\nDefaults:{user} !lecture"
    revoke = "{user} ALL=(ALL:ALL) !ALL\nDefaults:{user} !lecture"
    task = who if asking else lambda name: missing(name)
    user = become.user(asking)
    path = accounts.SUDOERS / become.name
    (tmp_path / "revoked").write_text(revoke.format(user=user) + "\n")
    (tmp_path / "inject").write_text(f"#!/bin/sh\ncp {tmp_path}/revoked {path} && echo done\n")
    (tmp_path / "inject").chmod(0o755)
    inject = '- debug: {msg: "{{ lookup(\'pipe\', out + \'/inject\') }}"}\n  name: inject\n'
    text = task("before") + inject + task("after") + "- command: id -un\n  name: plain\n"

    become.sudoers(grant, asking)
    ours = become(text, asking=asking, env={"ANSIBLE_STRATEGY": "churten.core.linear"})
    assert ours.one("before")["result"]["stdout"] == "root", ours.text[-3000:]
    assert ours.one("after")["status"] == "ok"  # docs/differences.md: one sudo per run
    pids = agents("root")

    # the next run asks again
    stock = become(task("refused"), "ssh", asking=asking)
    ours = become(task("refused"), asking=asking)
    assert_same(stock, ours)
    assert ours.one("refused")["status"] == "failed"
    assert soon(lambda: all(gone(pid) or pid not in agents("root") for pid in pids if parent_is(pid, user))), "an agent outlives its run"

    # the opt-out, and stock
    runs = []
    for connection in ("ssh", CHURTEN):
        become.sudoers(grant, asking)
        runs.append(become(text, connection, asking=asking, ansible_churten_become="stock"))
    assert_same(*runs)
    assert runs[1].one("before")["status"] == "ok" and runs[1].one("after")["status"] == "failed"


@pytest.mark.row("D9")
def test_rights_revoked_while_another_run_has_them(become, tmp_path):
    """A run that begins asks sudo, whatever agents a run beside it has."""
    become.sudoers("{user} ALL=(ALL:ALL) NOPASSWD: ALL\nDefaults:{user} !lecture", asking=False)
    (tmp_path / "inject").write_text(f"#!/bin/sh\ntouch {tmp_path}/there; for i in $(seq 600); do [ -e {tmp_path}/go ] && break; sleep 0.1; done\n")
    (tmp_path / "inject").chmod(0o755)
    text = missing("before") + "- debug: {msg: \"{{ lookup('pipe', out + '/inject') }}\"}\n" + missing("after")
    linear = {"ANSIBLE_STRATEGY": "churten.core.linear"}
    first = threading.Thread(target=lambda: become(text, asking=False, env=linear))
    first.start()
    try:
        assert soon((tmp_path / "there").exists, 90)
        become.sudoers("{user} ALL=(ALL:ALL) !ALL\nDefaults:{user} !lecture", asking=False)
        second = become(missing("second"), asking=False, env=linear)
        assert second.one("second")["status"] == "failed"
    finally:
        (tmp_path / "go").touch()
        first.join(120)


def parent_is(pid, user):
    with contextlib.suppress(OSError):
        return f"SUDO_USER={user}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False


UNPRIVILEGED = """
- command: id -un
  name: module
  become: true
  become_user: "{{ other }}"
- copy: {content: "text", dest: "/dev/shm/churten-d10", mode: "0640"}
  name: copy
  become: true
  become_user: "{{ other }}"
  ignore_errors: true
- template: {src: "{{ out }}/tmpl", dest: "/dev/shm/churten-d10b"}
  name: template
  become: true
  become_user: "{{ other }}"
  ignore_errors: true
- script: "{{ out }}/script.sh"
  name: script
  become: true
  become_user: "{{ other }}"
  ignore_errors: true
- shell: stat -c '%U %a' /dev/shm/churten-d10*; cat /dev/shm/churten-d10*; rm -f /dev/shm/churten-d10*
  name: stat
  become: true
  become_user: "{{ other }}"
  ignore_errors: true
- slurp: {src: /etc/hostname}
  name: slurp
  become: true
  become_user: "{{ other }}"
  ignore_errors: true
"""


@pytest.mark.row("D10")
@pytest.mark.parametrize("acl", ["setfacl", "no setfacl", "world readable"])
def test_unprivileged_to_unprivileged(become, lab, third, tmp_path, acl):
    """Modules need no files; what is uploaded goes through stock's chain of setfacl, chown, chmod and group."""
    (tmp_path / "tmpl").write_text("{{ 6 * 7 }}\n")
    (tmp_path / "script.sh").write_text("#!/bin/sh\nid -un\n")
    become.sudoers(f"{{user}} ALL=({third.name}) NOPASSWD: ALL\nDefaults:{{user}} !lecture", asking=False)
    variables = {"other": third.name}
    if acl == "world readable":
        variables["ansible_shell_allow_world_readable_temp"] = True
    hidden = "" if acl == "setfacl" else "mount --make-rprivate /; f=$(command -v setfacl || true); [ -z \"$f\" ] || mount --bind /bin/false $f\n"
    with changed(lab, hidden):
        _, ours = become.same(UNPRIVILEGED, asking=False, host="lab002", **variables)
    assert ours.one("module")["result"]["stdout"] == third.name
    assert "churten: RUN ansible.modules.command on agent" in ours.text
