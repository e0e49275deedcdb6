#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule

module = AnsibleModule(argument_spec={"parallel": {"type": "bool"}, "gather_timeout": {"type": "int"}}, supports_check_mode=True)
module.exit_json(ansible_facts={"factsone": "from facts_one"})
