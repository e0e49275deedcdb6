from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule({"text": {"type": "str"}, "number": {"type": "int", "default": 0}})
    module.exit_json(changed=False, got=module.params)


if __name__ == "__main__":
    main()
