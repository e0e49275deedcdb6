#!/usr/bin/python
"""Has the name of one of core's modules, and is not it: it leaves something behind in its process."""

import os

from ansible.module_utils.basic import FILE_COMMON_ARGUMENTS, AnsibleModule


def main():
    module = AnsibleModule(argument_spec=dict(data=dict(default="pong")))
    found = [os.environ.get("DIRT"), "dirt" in FILE_COMMON_ARGUMENTS, os.getcwd() == "/"]
    os.environ["DIRT"] = "1"
    FILE_COMMON_ARGUMENTS["dirt"] = {}
    os.chdir("/")
    module.exit_json(ping=module.params["data"], found=found)


main()
