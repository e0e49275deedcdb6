#!/usr/bin/python
import json
import os
import signal
import sys
import threading
import time

from ansible.module_utils import basic
from ansible.module_utils.basic import AnsibleModule

ANSWERED = ("before", "after", "both", "two_json", "bad_json", "list_json", "nul", "latin1", "deep", "huge_int", "nan")


def say(**what):
    print(json.dumps(what))


def main():
    module = AnsibleModule(argument_spec={"how": {}})
    how = module.params["how"]
    if how == "traceback":
        raise RuntimeError("on purpose \xe4")
    if how in ("before", "both"):
        print("junk before\nmore [ junk { here")
    if how in ("before", "after", "both"):
        say(how=how, changed=False)
    if how in ("after", "both"):
        print("junk after }")
    if how == "nonzero":
        say(changed=True, value=1)
        sys.exit(9)
    if how == "exit0_silent":
        sys.exit(0)
    if how == "os_exit":
        sys.stdout.write("not flushed")
        os._exit(11)
    if how.startswith("sig"):
        os.kill(os.getpid(), getattr(signal, how.upper()))
        time.sleep(5)
    if how == "stderr_only":
        sys.stderr.write("only here\n")
        sys.exit(1)
    if how == "two_json":
        say(first=1)
        say(second=2)
    if how == "bad_json":
        print('{"changed": tru')
    if how == "list_json":
        print('["a", "b"]')
    if how == "nul":
        print('{"text": "a\\u0000b", "changed": false}')
    if how == "syntax":
        exec("def broken(:\n  pass")
    if how == "sysexit_text":
        sys.exit("a text for exit")
    if how == "warn_before":
        sys.stderr.write("[WARNING]: from stderr\n")
        module.exit_json(fine=True)
    if how == "failed_rc":
        module.fail_json(msg="failed with rc", rc=77, stdout="so\n", stderr="se\n")
    if how == "latin1":
        sys.stdout.flush()
        os.write(1, b'{"text": "\xe4\xf6", "changed": false}\n')
    if how == "deep":
        value = []
        for _ in range(90):
            value = [value]
        say(value=value)
    if how == "huge_int":
        print('{"n": 123456789012345678901234567890, "f": 1e400, "g": 0.1, "h": 1.0, "i": -0.0}')
    if how == "nan":
        print('{"n": NaN}')
    if how == "closed_stdout":
        os.close(1)
        sys.exit(0)
    if how == "abort_in_thread":
        thread = threading.Thread(target=os._exit, args=(5,))
        thread.start()
        thread.join()
    if how in ("daemon", "daemon_open"):
        if os.fork() == 0:
            os.setsid()
            if how == "daemon":
                null = os.open(os.devnull, os.O_RDWR)
                for fd in (0, 1, 2):
                    os.dup2(null, fd)
            time.sleep(3)
            os._exit(0)
        module.exit_json(left=how)
    if how == "mark":
        seen = [hasattr(basic, "churten_mark"), os.environ.get("CHURTEN_MARK"), os.getcwd() == "/"]
        basic.churten_mark = 1
        os.environ["CHURTEN_MARK"] = "1"
        os.chdir("/")
        os.umask(0o777)
        module.exit_json(seen=seen)
    if how not in ANSWERED:
        module.exit_json(how=how)


if __name__ == "__main__":
    main()
