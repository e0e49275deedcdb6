#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule

m = AnsibleModule(argument_spec={"say": {"default": "first"}})
m.warn("module warns: " + m.params["say"])
m.deprecate("module deprecates " + m.params["say"], version="99.9", collection_name="ansible.builtin")
m.exit_json(warnings=["a warning in the result"], deprecations=[{"msg": "old thing", "version": "99.9"}])
