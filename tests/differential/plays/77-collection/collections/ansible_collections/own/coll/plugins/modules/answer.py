from ansible.module_utils.basic import AnsibleModule
from ansible_collections.own.coll.plugins.module_utils.helper import twice
from ..module_utils.sub import deep


def main():
    module = AnsibleModule({"n": {"type": "int", "default": 21}}, supports_check_mode=True)
    module.exit_json(changed=False, answer=twice(module.params["n"]), deep=deep.NAME)


if __name__ == "__main__":
    main()
