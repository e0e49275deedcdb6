#!/usr/bin/python
import sys

from ansible.module_utils.basic import AnsibleModule

if __name__ == "__main__":
    m = AnsibleModule(argument_spec={"value": {"type": "int", "default": 3}})
    print("printed before")
    sys.stderr.write("on stderr\n")
    sys.stdout.flush()
    m.exit_json(value=m.params["value"])
