#!/usr/bin/python
from __future__ import annotations

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.helper_of_ours import helped
from ansible.module_utils.package_of_ours.deep import depth


def main():
    module = AnsibleModule(
        argument_spec={
            "text": {"type": "str", "default": "none"},
            "number": {"type": "int"},
            "flag": {"type": "bool"},
            "listed": {"type": "list", "elements": "str"},
            "path": {"type": "path"},
            "old": {"type": "str", "aliases": ["older"], "removed_in_version": "9.9", "removed_from_collection": "a.b"},
        },
        supports_check_mode=True,
    )
    module.warn("a warning")
    module.deprecate("a deprecation", version="9.9", collection_name="a.b")
    module.exit_json(changed=True, params=module.params, helper=helped(module.params["text"]), depth=depth(), tmp=bool(module.tmpdir))


if __name__ == "__main__":
    main()
