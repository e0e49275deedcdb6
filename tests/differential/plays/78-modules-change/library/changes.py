#!/usr/bin/python
import json
import locale
import os
import random
import signal
import sys
import tempfile

from ansible.module_utils import basic
from ansible.module_utils.basic import AnsibleModule

COUNTED = []


def main():
    module = AnsibleModule({"what": {"default": "look"}})
    what = module.params["what"]
    COUNTED.append(what)
    if what == "process":
        os.environ["LEAKED"] = "yes"
        os.environ["PATH"] = "/leaked"
        os.chdir("/")
        os.umask(0o077)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.alarm(0)
        os.nice(1)
    elif what == "python":
        sys.path.insert(0, "/leaked")
        sys.modules["leaked"] = sys
        sys.argv.append("leaked")
        sys.setrecursionlimit(500)
        random.seed(1)
        locale.setlocale(locale.LC_ALL, "C")
        tempfile.tempdir = "/leaked"
        basic.LEAKED = True
        json.LEAKED = True
    elif what == "fds":
        os.close(0)
        os.open("/dev/zero", os.O_RDONLY)
        os.dup2(2, 9)
        os.open("/dev/null", os.O_RDONLY)
    elif what == "threads":
        import threading

        threading.Thread(target=lambda: signal.pause(), daemon=True).start()
    mask = os.umask(0)
    os.umask(mask)
    module.exit_json(
        changed=False,
        env=[os.environ.get("LEAKED"), os.environ.get("PATH")],
        cwd=os.getcwd(),
        mask=oct(mask),
        term=str(signal.getsignal(signal.SIGTERM)).split(" ")[0],
        nice=os.nice(0),
        path="/leaked" in sys.path,
        mods="leaked" in sys.modules,
        argv=len(sys.argv),
        limit=sys.getrecursionlimit(),
        dice=random.random() == 0.13436424411240122,
        temp=tempfile.gettempdir(),
        basic=hasattr(basic, "LEAKED"),
        json=hasattr(json, "LEAKED"),
        counted=COUNTED,
        stdin=len(sys.stdin.read()) if what != "fds" else -1,
    )


if __name__ == "__main__":
    main()
