"""Lab hosts under other conditions, a module that runs any lines, and who runs on a target: helpers of the tests of targets, modules and become."""

import contextlib
import os
import pwd
import subprocess
import time
from pathlib import Path

from churten.lab import procs

# A module that runs the lines it is given, with `module` and `result` at hand.
DO = """#!/usr/bin/python
import json, os, signal, sys, time
from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(argument_spec=dict(code=dict(type='str'), arg=dict(type='raw')))
    result = {}
    exec(module.params['code'], dict(globals(), module=module, result=result, arg=module.params['arg']))
    module.exit_json(**result)


if __name__ == '__main__':
    main()
"""


def library(folder):
    """A folder with the module `do`, as environment for `play`."""
    folder.mkdir(exist_ok=True)
    (folder / "do.py").write_text(DO)
    return {"ANSIBLE_LIBRARY": str(folder)}


def tasks(text, host="lab001", **play):
    """A play with these tasks."""
    head = [f"- hosts: {host}", "  gather_facts: false", *(f"  {key}: {value}" for key, value in play.items()), "  tasks:"]
    return "\n".join(head + ["    " + line for line in text.strip("\n").splitlines()]) + "\n"


@contextlib.contextmanager
def changed(lab, before="", options=(), name="lab002"):
    """That host's sshd started anew: behind the shell text `before`, in a mount namespace of its own, and with further sshd_config lines."""
    host = lab.host(name)
    lab.stop(name)
    words = ["/usr/sbin/sshd", "-D", "-f", str(lab.sshd_config), "-o", f"ListenAddress={host.address}:{host.port}", "-o", "PidFile=none"]
    for option in options:
        words += ["-o", option]
    inside = ["unshare", "-m", "/bin/sh", "-ec", before + '\nexec "$@"', "sh", *words]
    process = subprocess.Popen(
        inside, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/", start_new_session=True
    )
    host.pid, host.start = process.pid, procs.start_time(process.pid) or 0
    try:
        until = time.monotonic() + 60
        while subprocess.run(["bash", "-c", f": </dev/tcp/{host.address}/{host.port}"], stderr=subprocess.DEVNULL).returncode:
            assert process.poll() is None and time.monotonic() < until, process.communicate()
            time.sleep(0.05)
        yield host
    finally:
        lab.stop(name)
        process.wait(20)
        process.stderr.close()
        lab.start(name)


@contextlib.contextmanager
def wrapped(lab, script, options=(), before="", name="lab002"):
    """That host with every command run behind the shell lines `script`."""
    path = lab.dir / "wrap.sh"
    path.write_text(f'#!/bin/sh\nc=$SSH_ORIGINAL_COMMAND; unset SSH_ORIGINAL_COMMAND\n{script}\nexec /bin/sh -c "$c"\n')
    path.chmod(0o755)
    try:
        with changed(lab, before, [f"ForceCommand={path}", *options], name) as host:
            yield host
    finally:
        path.unlink()


def agents(account=None):
    """Pids of the agents that run now, of one account if it is named."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, KeyError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if len(words) < 3 or b"python" not in words[0] or b"exec(d[:640])" not in words[2]:
                continue
            if account is None or pwd.getpwuid(entry.stat().st_uid).pw_name == account:
                found.append(int(entry.name))
    return found


def gone(pid):
    """Whether no such process runs any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def soon(condition, seconds=30):
    """Waits until it is true; answers whether it became so."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def full():
    """Whether the counts of the table are wanted, not the quick ones."""
    return bool(os.environ.get("CHURTEN_FAULTS_FULL"))


def reasons(run):
    """Why operations of that run went the stock way."""
    return [line.partition("the stock way: ")[2] for line in run.text.splitlines() if "the stock way: " in line]
