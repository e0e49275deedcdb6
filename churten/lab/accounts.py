"""The lab's accounts and its sudoers file (root only): made by `up`, taken away again by `down`.

Every account carries the lab's name in its comment field; only such accounts are ever removed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path

from .errors import LabError

SUDOERS = Path("/etc/sudoers.d")
# What sudo and the login of an account leave behind.
TRACES = ("/run/sudo/ts", "/var/run/sudo/ts", "/var/lib/sudo/ts", "/var/lib/sudo/lectured")


def comment(lab: str) -> str:
    """The comment field that says an account is this lab's."""
    return f"churten lab {lab}"


def ours(name: str, lab: str) -> pwd.struct_passwd | None:
    """The account's entry if it exists and is this lab's; None if there is none; LabError if it is somebody else's."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    if entry.pw_gecos != comment(lab):
        raise LabError(f"the account {name} exists and was not made by this lab")
    return entry


def _run(words: list[str], stdin: str | None = None) -> None:
    """Runs one of the shadow tools; waits for its lock file (another lab's) and for init to reap ended processes."""
    for attempt in range(40):
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=30)
        if done.returncode == 0:
            return
        passing = "cannot lock" in done.stderr or "currently used by process" in done.stderr
        if not passing or attempt == 39:
            raise LabError(f"{words[0]}: {done.stderr.strip() or 'exit code ' + str(done.returncode)}")
        time.sleep(0.25)


def create(name: str, lab: str, home: Path, password: str | None) -> pwd.struct_passwd:
    """Makes a system account with /bin/sh and `home`; the password `*` lets keys in, but no password."""
    entry = ours(name, lab)
    if entry is None:
        _run(["useradd", "--system", "--user-group", "--no-create-home", "--no-log-init", "--shell", "/bin/sh",
              "--home-dir", str(home), "--comment", comment(lab), "--password", "*", name])  # fmt: skip
        entry = pwd.getpwnam(name)
    if password is not None:
        _run(["chpasswd"], f"{name}:{password}\n")
    home.mkdir(mode=0o755, exist_ok=True)
    os.chown(home, entry.pw_uid, entry.pw_gid)
    return entry


def remove(name: str, lab: str) -> None:
    """Takes the account and its traces away; nothing happens if it does not exist or is not this lab's."""
    try:
        if ours(name, lab) is None:
            return
    except LabError:
        return
    _run(["userdel", name])
    for folder in TRACES:
        Path(folder, name).unlink(missing_ok=True)


def sudoers_text(free: str, asking: str, marker: str) -> str:
    """`free` becomes anybody without a password, `asking` with its own; the marker variable survives sudo."""
    return (
        "# made by `churten lab up`, removed by `churten lab down`\n"
        f"Defaults:{free},{asking} !lecture, !syslog, !requiretty, timestamp_timeout=0, env_keep += {marker}\n"
        f"{free} ALL=(ALL:ALL) NOPASSWD: ALL\n"
        f"{asking} ALL=(ALL:ALL) ALL\n"
    )


def write_sudoers(name: str, text: str) -> None:
    """Checks the text with visudo first: a broken file here would lock everybody out of sudo."""
    visudo = shutil.which("visudo", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if visudo is None or not SUDOERS.is_dir():
        raise LabError("sudo is not installed; apt-get install sudo (or give --sudo none)")
    # sudo ignores names with a dot, so the draft is never in force.
    draft = SUDOERS / f"{name}.draft"
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o440), "w") as file:
        file.write(text)
    try:
        done = subprocess.run([visudo, "-c", "-q", "-f", str(draft)], capture_output=True, text=True, timeout=30)
        if done.returncode != 0:
            raise LabError(f"visudo refuses the lab's sudoers file: {done.stderr.strip()}")
        os.replace(draft, SUDOERS / name)
    finally:
        draft.unlink(missing_ok=True)


def remove_sudoers(name: str) -> None:
    """Takes the lab's sudoers file away."""
    for path in (SUDOERS / name, SUDOERS / f"{name}.draft"):
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            pass
