#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(argument_spec={"value": {"type": "str", "required": True}}, supports_check_mode=True)
    module.exit_json(changed=True, said=module.params["value"].upper())


if __name__ == "__main__":
    main()
