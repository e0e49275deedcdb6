#!/usr/bin/python
import os
import sys

from ansible.module_utils import helper_of_ours
from ansible.module_utils.basic import AnsibleModule

m = AnsibleModule(argument_spec={})
m.exit_json(
    from_zip=".zip" in (helper_of_ours.__file__ or ""),
    main=__name__,
    file=os.path.basename(globals().get("__file__", "none")),
    modules="__main__" in sys.modules,
    cwd=os.getcwd(),
)
