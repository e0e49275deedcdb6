# SPDX-License-Identifier: GPL-3.0-or-later
"""When Python looks for objects that nobody holds any more.

While a play runs: less often, and not among what was there before. When the run ends: before it is gone Python looks three times through all objects, a sixth
of a short run's CPU time. That frees memory which the kernel is about to take back as a whole, and has the last words said (`__del__`, the flushing of a file
that nobody closed) of what holds itself in a circle. Where only code is loaded that is known to have none there, all objects are set aside instead.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import typing as t

import ansible

# Who may be there: ansible-core, what it needs, what its own plugins import, ourselves, and what installs itself into Python's start.
_KNOWN = frozenset(
    "ansible churten yaml _yaml jinja2 markupsafe cryptography _openssl cffi _cffi_backend packaging resolvelib greenlet rich pygments markdown_it mdurl "
    "passlib paramiko nacl bcrypt six typing_extensions cython_runtime _distutils_hack _virtualenv __main__ __mp_main__".split()
)
_COLLECTIONS = tuple(f"ansible_collections.{name}." for name in ("ansible.builtin", "ansible.legacy", "ansible._protomatter", "churten.core"))
_PACKAGES = frozenset({"ansible_collections", "ansible_collections.ansible", "ansible_collections.churten"})
_BUILT_BY_INSTALLERS = ("__editable___", "_cython_")
_CORE = os.path.join(os.path.realpath(os.path.dirname(ansible.__file__)), "")


def stranger() -> str | None:
    """The name of a loaded module that is none of those, None if there is none: a plugin of somebody else may rely on being collected."""
    for name, module in list(sys.modules.items()):
        name = getattr(module, "__name__", name)  # six.moves.* are others under a second name
        top = name.partition(".")[0]
        if top == "ansible":
            path = getattr(module, "__file__", None)
            if path and not os.path.realpath(path).startswith(_CORE):
                return name
        elif top == "ansible_collections":
            if name not in _PACKAGES and not f"{name}.".startswith(_COLLECTIONS):
                return name
        elif top not in sys.stdlib_module_names and top not in _KNOWN and not top.startswith(_BUILT_BY_INSTALLERS):
            return name
    return None


@contextlib.contextmanager
def fewer_collections() -> t.Iterator[None]:
    """Garbage collection for a process that lives as long as the run: what is loaded stays, and young objects are looked at less often."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    atexit.unregister(_set_aside)
    atexit.register(_set_aside)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _set_aside() -> None:
    if sys.gettrace() is None and stranger() is None:
        gc.freeze()
