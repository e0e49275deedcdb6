# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent imports ahead, for all children."""

import os
import sys

# Only these parts of ansible.module_utils are imported ahead: a role's own
# module_utils land in the same package, but are not for the agent to run.
CORE_UTILS = frozenset(
    """_internal _text ansible_release api basic common compat connection datatag
    distro embed errors facts json_utils parsing pycompat24 secrets service six
    splitter urls yumdnf""".split()
)
# Importing these does something to the process.
NEVER_AHEAD = frozenset(
    "this antigravity readline rlcompleter curses tkinter turtle idlelib".split()
)


class Ahead:
    """What the agent has imported from the first library, for all children."""

    def __init__(self, at_start):
        self.at_start = at_start  # names of sys.modules when the agent began
        self.library = None
        self.done = set()
        self.age = 0  # how often all was forgotten
        self.site = None
        user = getattr(sys.modules.get("site"), "USER_SITE", None)
        self.site_folders = sorted(
            path for path in set(sys.path + [user or ""]) if path.endswith("-packages")
        )

    def site_state(self):
        """Changes when Python packages are installed or removed."""
        state = []
        for path in self.site_folders:
            try:
                state.append(os.stat(path).st_mtime)
            except OSError:
                state.append(None)
        return state

    def refresh(self):
        """A package was installed: optional imports that failed may work now."""
        state = self.site_state()
        if self.site is not None and state != self.site:
            self.forget()
            import site

            known = set(sys.path)
            site.addusersitepackages(known)
            site.addsitepackages(known)
            state = self.site_state()
        self.site = state

    def forget(self):
        """Drops everything imported that an interpreter does not bring along."""
        self.done.clear()
        self.age += 1
        for name in list(sys.modules):
            if name.partition(".")[0] in ("ansible", "ansible_collections"):
                del sys.modules[name]
            elif not is_stdlib(name) and name not in self.at_start:
                del sys.modules[name]

    def prepare(self, payload, modules, form):
        """Imports what the modules will import first, if that was not done yet."""
        if payload.done == self.age:
            return
        if payload.wanted is None:
            payload.wanted = self.wanted(payload, modules, form)
        self.run(payload, payload.wanted)
        payload.done = self.age

    def wanted(self, payload, modules, form):
        """Names for the unconditional imports of the modules and what runs them."""
        if form == b"218":
            names = ["runpy", "ansible.module_utils.basic"]
        else:
            names = ["ansible.module_utils._internal._ansiballz._loader"]
        library = payload.library
        for module in modules:
            names.append(module.rpartition(".")[0])
            path = module.replace(".", "/") + ".py"
            if path in library.crcs:
                try:
                    names += column_zero_imports(library.source(path), library.code(path))
                except (SyntaxError, ValueError):
                    pass
        return names

    def run(self, payload, names):
        """Imports names that are allowed. One that fails or starts a thread
        makes us forget all and never import ahead for this payload again."""
        library = payload.library
        if self.library is None:
            self.library = library
        if self.library is not library or not payload.ahead:
            return
        todo = [n for n in names if n not in self.done and self.allowed(library, n)]
        if not todo:
            return
        sys.path.insert(0, library.path)
        try:
            for name in todo:
                self.done.add(name)
                try:
                    __import__(name)
                except ImportError:
                    if name.startswith("ansible."):
                        raise
        except BaseException:  # a module may raise SystemExit
            payload.ahead = False
        sys.path.remove(library.path)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (AttributeError, OSError, ValueError):
                pass
        if sys.modules.get("_thread") and sys.modules["_thread"]._count():
            payload.ahead = False
        if not payload.ahead:
            self.forget()
        elif "subprocess" in sys.modules:
            spare_needless_forks()
            spare_needless_waits()

    def allowed(self, library, name):
        parts = name.split(".")
        if parts[0] == "ansible":
            path = name.replace(".", "/")
            if path + ".py" not in library.crcs and path not in library.packages:
                return False
            if name in ("ansible.modules", "ansible.legacy"):
                return True
            return parts[1:2] == ["module_utils"] and (
                len(parts) == 2 or parts[2] in CORE_UTILS
            )
        return parts[0] not in NEVER_AHEAD and is_stdlib(name)


def is_stdlib(name):
    top = name.partition(".")[0]
    known = getattr(sys, "stdlib_module_names", None)
    if known is not None:
        return top in known
    if top in sys.builtin_module_names:
        return True
    from _frozen_importlib_external import PathFinder

    try:
        spec = PathFinder.find_spec(top)
    except Exception:
        return False
    where = spec and spec.origin or ""
    return where.startswith(os.path.dirname(os.__file__) + os.sep) and (
        "-packages" not in where
    )


def column_zero_imports(source, code):
    """Names imported by statements at column 0 of a module's source (and named
    in its code, so that text inside documentation does not count)."""
    import re

    known = set(code.co_names)
    found = []
    pattern = re.compile(
        rb"^(?:import[ \t]+([\w., \t]+?)|from[ \t]+([\w.]+)[ \t]+import[ \t]+"
        rb"(\([^)]*\)|[^\n#]*))[ \t]*(?:#.*)?$",
        re.M,
    )
    for plain, origin, names in pattern.findall(source):
        for name in plain.decode("ascii", "replace").split(","):
            name = name.split(" as ")[0].strip()
            if name in known:
                found.append(name)
        origin = origin.decode("ascii", "replace")
        if origin in known and origin != "__future__":
            found.append(origin)
            if not origin.startswith("ansible."):
                continue
            for name in re.findall(rb"\w+", re.sub(rb"#.*|\bas\s+\w+", b"", names)):
                found.append(origin + "." + name.decode("ascii", "replace"))
    return found


def spare_needless_forks():
    """core's run_command gives Popen a preexec_fn that does nothing unless it has
    a umask to set, and for it Popen forks the whole process where it would use
    vfork: half the time of a `command` task. Takes exactly that function away."""
    import _posixsubprocess
    import subprocess

    def fork_exec(*args):
        return real(*[None if does_nothing(item) else item for item in args])

    real = _posixsubprocess.fork_exec
    if real.__name__ == "fork_exec" and not hasattr(real, "__code__"):
        _posixsubprocess.fork_exec = fork_exec
        if hasattr(subprocess, "_fork_exec"):
            subprocess._fork_exec = fork_exec


def does_nothing(item):
    """Whether it is run_command's preexec() without a umask."""
    code = getattr(item, "__code__", None)
    if code is None or item.__module__ != "ansible.module_utils.basic":
        return False
    return (
        item.__qualname__ == "AnsibleModule.run_command.<locals>.preexec"
        and code.co_names in (("os", "umask"), ("_restore_signal_handlers", "os", "umask"))
        and "umask" in code.co_freevars
        and not item.__closure__[code.co_freevars.index("umask")].cell_contents
    )


def spare_needless_waits():
    """core's run_command asks twice whether its program has ended, and when that
    ends between the two questions it waits a whole second in a selector with
    nothing registered. The first such wait of a selector ends at once: then
    run_command asks again, and hears what the second question would have said."""
    basic = sys.modules.get("ansible.module_utils.basic")
    real = getattr(basic, "selectors", None)
    if not hasattr(real, "PollSelector") or hasattr(real, "waits_spared"):
        return

    class PollSelector(real.PollSelector):
        spared = False

        def select(self, timeout=None):
            if not self.spared and not self.get_map():
                self.spared = True
                return []
            return super().select(timeout)

    ours = type(sys)(real.__name__)
    vars(ours).update(vars(real), PollSelector=PollSelector, waits_spared=True)
    basic.selectors = ours
