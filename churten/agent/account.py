# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent finds of its account: environment, locale, sys.path, shell."""

import os
import sys

# Variables that only a starting interpreter or C library reads.
START_VARIABLES = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "OPENSSL_", "LOCPATH")


def environ_at_start():
    """The environment the interpreter was started with: without the LC_CTYPE
    that Python puts in for the C locale (PEP 538)."""
    environ = dict(os.environ)
    if environ.get("LC_CTYPE") in ("C.UTF-8", "C.utf8", "UTF-8"):
        try:
            with open("/proc/self/environ", "rb") as file:
                if b"\0LC_CTYPE=" not in b"\0" + file.read():
                    del environ["LC_CTYPE"]
        except OSError:
            pass
    return environ


def locale_of(environ):
    """What decides the locale an interpreter starts in. In the C locale it takes
    another, but not if LC_ALL says so (PEP 538)."""
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        if environ.get(name) and environ[name] not in ("C", "POSIX"):
            return environ[name]
        if environ.get(name):
            break
    return "C", bool(environ.get("LC_ALL"))


def stock_sys_path(cwd):
    """As the wrapper does: no entry for the directory the script is in."""
    left_out = ("", ".", cwd and os.path.realpath(cwd))
    sys.path = [path for path in sys.path if path not in left_out]


def account_shell():
    """Path of the account's login shell. Asked in children only: the agent must
    not keep what the name service answered when it began."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"
    except KeyError:
        return "/bin/sh"
