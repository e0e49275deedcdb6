# SPDX-License-Identifier: GPL-3.0-or-later
"""RUN: what the frame says, and the module's run in this interpreter or in a fresh one."""

import os
import sys

from churten.agent.frames import number, text, unpack


class Run:
    """The fields of a RUN frame."""

    def __init__(self, body):
        items = unpack(body, 10)
        self.key, self.module = items[0], text(items[1])
        self.params, self.profile = items[2], text(items[3])
        self.env = environment(items[4])
        self.rlimit_nofile, self.timeout_ms = number(items[5]), number(items[6])
        self.form = items[7]
        self.secrets = []
        if items[8]:
            import json

            self.secrets = json.loads(text(items[8]))
        self.temp = os.fsdecode(items[9])
        self.stays = items[10:11] == [b"1"]
        self.body = body


def environment(item):
    pairs = {}
    for pair in os.fsdecode(item).split("\0"):
        name, equal, value = pair.partition("=")
        if name and equal:
            pairs[name] = value
    return pairs


def limit_files(wanted):
    if not wanted:
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if min(hard, wanted) != soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, wanted), hard))
        except ValueError:
            pass


def run_module(library, run):
    limit_files(run.rlimit_nofile)
    sys.path = [library.path] + sys.path
    if run.form == b"218":
        from ansible.module_utils import basic

        basic._ANSIBLE_ARGS = run.params
        import runpy

        runpy.run_module(
            mod_name=run.module,
            init_globals=dict(_module_fqn=run.module, _modlib_path=library.path),
            run_name="__main__",
            alter_sys=True,
        )
        print(
            '{"msg": "New-style module did not handle its own exit", "failed": true}'
        )
        sys.exit(1)
    from ansible.module_utils._internal._ansiballz import _loader

    _loader.run_module(**loader_arguments(_loader.run_module.__code__, library, run))


def loader_arguments(code, library, run):
    """The arguments the core line of this payload knows."""
    known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    arguments = dict(
        json_params=run.params,
        profile=run.profile,
        module_fqn=run.module,
        modlib_path=library.path,
        extensions={},
    )
    if "secrets" in known:
        arguments["secrets"] = frozenset(run.secrets)
    return arguments


# Read by a fresh interpreter from its stdin, before a line with the arguments.
FRESH = """\
import os, sys
try:
    os.getcwd()
except OSError:
    try:
        os.chdir(os.path.expanduser('~'))
    except OSError:
        os.chdir('/')
sys.path = [p for p in sys.path if p not in ('', '.', os.getcwd())]
def limit(wanted):
    if wanted:
        import resource
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, wanted), hard))
        except ValueError:
            pass
def main(module, params, profile, rlimit_nofile, form, secrets, path):
    limit(rlimit_nofile)
    sys.path.insert(0, path)
    if form == '218':
        from ansible.module_utils import basic
        basic._ANSIBLE_ARGS = params
        import runpy
        runpy.run_module(mod_name=module, init_globals=dict(
            _module_fqn=module, _modlib_path=path),
            run_name='__main__', alter_sys=True)
        print('{"msg": "New-style module did not handle its own exit", "failed": true}')
        sys.exit(1)
    from ansible.module_utils._internal._ansiballz import _loader
    more = {}
    if 'secrets' in _loader.run_module.__code__.co_varnames:
        more['secrets'] = frozenset(secrets)
    _loader.run_module(json_params=params, profile=profile, module_fqn=module,
                       modlib_path=path, extensions={}, **more)
"""


def fresh_script(library, run):
    arguments = (
        run.module, run.params, run.profile, run.rlimit_nofile, text(run.form),
        list(run.secrets), library.path,
    )  # fmt: skip
    return (FRESH + "main(*%r)\n" % (arguments,)).encode("utf-8", "backslashreplace")
