# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = """
name: local
short_description: run tasks on the controller, with a warm Python
description:
  - Takes the place of the built-in C(local) connection plugin and accepts all its options and variables.
  - One Python process per account stays ready and forks a child for each module.
  - What would not come out exactly as with the built-in plugin is left to the built-in plugin, with the reason at C(-vvv).
author: churten developers
options:
  churten_transport:
    description:
      - V(stock) is the built-in plugin. Everything else means the same here.
    type: str
    choices: [auto, libssh, ssh, stock]
    default: auto
    ini:
      - {section: churten, key: transport}
    env:
      - name: CHURTEN_TRANSPORT
    vars:
      - name: ansible_churten_transport
  churten_become:
    description:
      - V(auto) keeps one Python process per become account on the target, started by the become plugin's own command line.
      - V(stock) runs that command line for every module, so that each shows up in the log of C(sudo).
    type: str
    choices: [auto, stock]
    default: auto
    ini:
      - {section: churten, key: become}
    env:
      - name: CHURTEN_BECOME
    vars:
      - name: ansible_churten_become
  churten_standing:
    description:
      - Whether a child of the Python process on the target that has run one of core's own modules (C(command), C(copy), C(file), C(stat) and their like)
        may run it again, if nothing tells it from a new child. With V(false) each module gets a new child.
    type: bool
    default: true
    ini:
      - {section: churten, key: standing}
    env:
      - name: CHURTEN_STANDING
    vars:
      - name: ansible_churten_standing
extends_documentation_fragment:
  - churten.core.local
"""

from churten.transport.local import LocalConnection


class Connection(LocalConnection):
    """The controller itself, through churten's pool."""
