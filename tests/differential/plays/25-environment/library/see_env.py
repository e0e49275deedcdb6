#!/usr/bin/python
import importlib
import os
import sys
import time

from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(argument_spec={"names": {"type": "list", "elements": "str"}, "import": {"type": "str"}})
    seen = {name: os.environ.get(name) for name in module.params["names"]}
    value = None
    if module.params["import"]:
        value = importlib.import_module(module.params["import"]).VALUE
    flags = {name: getattr(sys.flags, name) for name in ("utf8_mode", "no_site", "isolated", "optimize", "dont_write_bytecode")}
    module.exit_json(
        seen=seen,
        value=value,
        zone=time.tzname[0],
        encodings=[sys.stdout.encoding, sys.stderr.encoding, sys.getfilesystemencoding(), sys.stdin.encoding],
        flags=flags,
        errors=[sys.stdout.errors, sys.stderr.errors],
        umask=oct(os.umask(0o22)),
        cwd=os.getcwd(),
        argv0=os.path.basename(sys.argv[0]),
        argc=len(sys.argv),
        tty=[os.isatty(fd) for fd in (0, 1, 2)],
        path0=bool(sys.path[0]),
    )


if __name__ == "__main__":
    main()
