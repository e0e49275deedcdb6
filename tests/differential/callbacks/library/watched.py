from ansible.module_utils.basic import AnsibleModule

module = AnsibleModule({})
module.warn("a warning of the module")
module.deprecate("it is old", version="9.9", collection_name="own.coll")
module.exit_json(changed=False)
