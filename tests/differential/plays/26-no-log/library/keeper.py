#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(argument_spec={"password": {"no_log": True}, "echo": {}, "fail": {"type": "bool"}})
    if module.params["fail"]:
        module.fail_json(msg=module.params["echo"])
    module.warn("a warning")
    module.exit_json(said=module.params["echo"], deep={"list": [module.params["password"]]})


if __name__ == "__main__":
    main()
