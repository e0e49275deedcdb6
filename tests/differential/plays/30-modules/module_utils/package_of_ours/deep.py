from ansible.module_utils.helper_of_ours import helped


def depth():
    return helped("deep")
