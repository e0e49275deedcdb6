#!/usr/bin/python
import atexit
import os
import sys

from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(argument_spec={"how": {}})
    how = module.params["how"]
    if how in ("noise", "trailing"):
        print("noise")
        print('{"a": 1, "how": "%s"}' % how)
        if how == "trailing":
            print("and this")
        sys.exit(0)
    elif how == "nothing":
        os._exit(0)
    elif how == "text":
        print("text")
        sys.exit(0)
    elif how == "bytes":
        os.write(1, b'{"a": "\xff"}\n')
        os._exit(0)
    elif how == "killed":
        os.kill(os.getpid(), 9)
    elif how == "exit":
        sys.exit(7)
    elif how == "exception":
        raise ValueError("no")
    elif how == "stderr":
        sys.stderr.write("words\n")
    elif how == "late":
        atexit.register(sys.stderr.write, "late words\n")
    module.exit_json(how=how)


if __name__ == "__main__":
    main()
