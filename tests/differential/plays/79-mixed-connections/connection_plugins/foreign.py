from ansible.plugins.connection.local import Connection as LocalConnection

DOCUMENTATION = """
name: foreign
short_description: stands for a connection that churten does not know
description: The controller, under another name.
options:
  foreign_option: {description: an option, default: by default, vars: [{name: ansible_foreign_option}]}
extends_documentation_fragment: connection_pipelining
"""


class Connection(LocalConnection):
    transport = "foreign"
    connected = 0

    def _connect(self):
        Connection.connected += 1
        return super()._connect()

    def exec_command(self, cmd, in_data=None, sudoable=True):
        rc, out, err = super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        return rc, out.replace(b"OPTION", self.get_option("foreign_option").encode()), err
