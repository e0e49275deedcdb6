#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule

m = AnsibleModule(argument_spec={"text": {}})
m.exit_json(length=len(m.params["text"]))
