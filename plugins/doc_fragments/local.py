# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every option of the built-in local plugin of the ansible-core that is installed."""

from __future__ import annotations

from ansible.plugins.connection import local as builtin

from churten.transport.documentation import connection_fragment


class ModuleDocFragment:
    DOCUMENTATION = connection_fragment(builtin.DOCUMENTATION, pipelining=True)
