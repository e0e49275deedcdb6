# SPDX-License-Identifier: GPL-3.0-or-later
"""RUN: what the frame says, and the module's run in this interpreter or in a fresh one."""

import gc
import os
import sys
import time

from churten.agent.child import in_working_directory
from churten.agent.frames import ProtocolError, number, text, unpack

KNOWN_SIZE = 40 + 1 + 32  # a SHA-1, a blank, an MD5
JOB_BEGINS = b"\0\0\0\3job"  # after the number of its items


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
        # What follows, or is there instead, is the item of a link.
        self.known = text(items[11]).split(" ") if len(b"".join(items[11:12])) == KNOWN_SIZE else []
        is_job = len(items) > 12 and items[12][2:9] == JOB_BEGINS
        self.job = Job(items[12]) if is_job else None
        self.body = body


class Job:
    """The item of RUN: how core would have started the job's program."""

    def __init__(self, item):
        items = unpack(item, 10)
        self.profile = text(items[1])
        self.umask, self.limits = items[2], items[3]
        self.environ = None
        if items[4]:
            pairs = [os.fsdecode(pair).partition("=") for pair in items[4].split(b"\0")]
            self.environ = {name: value for name, equal, value in pairs if name and equal}
        self.words = [os.fsdecode(word) for word in items[5:]]
        if len(self.words) == 5:  # program, number, limit, module's program, `_`
            self.program, self.command = self.words[3], None
        elif len(self.words) == 7:  # (2.22) program, number, limit, false, and twice the module's, its interpreter between
            self.program, self.command = self.words[4], self.words[5:]
        else:
            raise ProtocolError("bad job")


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


def like_a_start(agent, library, run):
    """Makes a forked child look like an interpreter that has just read the stock wrapper;
    returns how many modules are known in it."""
    gc.enable()
    sys.dont_write_bytecode = agent.dont_write_bytecode
    in_working_directory(agent)
    if run.env:
        os.environ.update(run.env)
        if "TZ" in run.env:
            time.tzset()
    if sys.version_info < (3, 7) and "random" in sys.modules:
        sys.modules["random"].seed()
    known = len(sys.modules)
    if library is not agent.ahead.library:
        agent.ahead.forget()
    return known


def run_module(library, run):
    basic = sys.modules.get("ansible.module_utils.basic")
    if len(run.known) != 2 or basic is None:
        load_module(library, run)
        return
    stock = basic.AnsibleModule.digest_from_file
    basic.AnsibleModule.digest_from_file = spare_md5(basic, stock, *run.known)
    try:
        load_module(library, run)
    finally:
        basic.AnsibleModule.digest_from_file = stock


def spare_md5(basic, stock, sha1, md5):
    """Where a file has this SHA-1 it has this MD5: no need to read it once more."""
    seen = {}  # name -> the state in which it had

    def digest_from_file(self, filename, algorithm):
        state = state_of(filename)
        if algorithm == "md5" and state is not None and seen.get(filename) == state:
            basic.AVAILABLE_HASH_ALGORITHMS[algorithm]()  # may it be used here?
            return md5
        digest = stock(self, filename, algorithm)
        if algorithm == "sha1" and digest == sha1:
            seen[filename] = state
        return digest

    return digest_from_file


def state_of(filename):
    try:
        info = os.stat(filename)
    except (OSError, TypeError, ValueError):
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def load_module(library, run):
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
