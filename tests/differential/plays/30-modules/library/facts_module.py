#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule

AnsibleModule(argument_spec={}).exit_json(ansible_facts={"from_module": {"a": [1, 2]}, "ansible_python_interpreter_of_ours": "x"})
