#!/usr/bin/python
import os
import sys

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.respawn import has_respawned, respawn_module


def main():
    module = AnsibleModule({"n": {"type": "int", "default": 1}, "text": {"default": ""}, "twice": {"type": "bool", "default": False}})
    if not has_respawned() or module.params["twice"]:
        respawn_module(sys.executable)
    module.exit_json(changed=True, respawned=has_respawned(), n=module.params["n"], text=module.params["text"], python=os.path.basename(sys.executable) != "")


if __name__ == "__main__":
    main()
