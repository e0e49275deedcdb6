"""The only package that names private parts of ansible-core: one adapter per core line, chosen once.

`adapter()` returns the adapter of the running core. A core newer than all we know runs through the newest adapter with one warning; one older than all
is refused with one clear sentence.
"""

from __future__ import annotations

import functools
import importlib
import typing as t

from ansible import release
from ansible.errors import AnsibleError
from ansible.utils.display import Display

import churten

if t.TYPE_CHECKING:
    from .base import Adapter

# First version of each line -> module of its adapter, oldest first.
LINES: dict[tuple[int, int], str] = {
    (2, 16): "core_218",
    (2, 19): "core_219",
    (2, 21): "core_222",
}
NEWEST = (2, 22)


def core_version() -> tuple[int, int]:
    """Major and minor version of the running ansible-core."""
    major, minor = release.__version__.split(".")[:2]
    return int(major), int(minor)


@functools.cache
def adapter() -> Adapter:
    """The adapter for the running ansible-core; AnsibleError if it is too old."""
    version = core_version()
    fitting = [module for first, module in LINES.items() if first <= version]
    if not fitting:
        oldest = ".".join(map(str, min(LINES)))
        raise AnsibleError(
            f"churten's strategies need ansible-core {oldest} or newer, not {release.__version__}; "
            "ansible_connection: churten.core.ssh with a built-in strategy works there."
        )
    if version > NEWEST:
        Display().warning(
            f"churten does not know ansible-core {release.__version__} yet and uses what it knows of {'.'.join(map(str, NEWEST))}; "
            "set strategy = free if something looks wrong."
        )
    try:
        found = importlib.import_module(f"{__name__}.{fitting[-1]}").CoreAdapter()
        found.check()
    except (ImportError, AttributeError, TypeError) as ex:
        raise AnsibleError(f"churten {churten.__version__} does not fit ansible-core {release.__version__} ({ex}); a newer churten may.") from None
    return t.cast("Adapter", found)
