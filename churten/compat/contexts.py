"""What core keeps per "logical callstack" in context variables whose values change: a copied context is not enough for a fiber of its own."""

from __future__ import annotations

try:
    from ansible._internal._templating._access import AnsibleAccessContext
except ImportError:  # ansible-core before 2.19 has no such

    def separate() -> None:
        """Called first in a fiber: what it shares with others through its copied context becomes its own."""

else:

    def separate() -> None:
        """Called first in a fiber: what it shares with others through its copied context becomes its own."""
        AnsibleAccessContext._contextvar.set(AnsibleAccessContext())
