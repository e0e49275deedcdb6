#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule

m = AnsibleModule(argument_spec={}, supports_check_mode=True)
m.exit_json(changed=True, check=m.check_mode, diff=[{"before": "a\n", "after": "b\n", "before_header": "x"}, {"prepared": "as text\n"}], d=m._diff)
