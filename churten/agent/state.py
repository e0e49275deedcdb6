# SPDX-License-Identifier: GPL-3.0-or-later
"""What a child would carry from one module to the next (standing.py): seen, and put back."""

import _signal as signal  # type: ignore[import-not-found]  # `signal` itself would import enum at every start
import gc
import os
import sys

# Modules whose globals are put back, beside those of ansible; and those in which a
# difference ends the child. (What others keep are caches that hold as long as any
# process lives; core's own modules set nothing in them.)
PUT_BACK = frozenset("__main__ platform sys tempfile".split())
UNCHANGED = frozenset(
    "builtins io locale logging os posix random signal socket subprocess time".split()
)
CONTAINERS = (dict, list, set, bytearray)
FUNCTION = type(lambda: 0)
NOTHING_INSIDE = frozenset(
    [str, bytes, int, float, bool, type(None), type(sys), type(len), frozenset]
)
NOT_DEEP = "ansible.module_utils.six"  # its names are found when they are asked for
MEMBER = type(FUNCTION.__dict__["__closure__"])  # a name in __slots__


class Picture:
    """Modules as every child finds them: taken in the agent, where that copies no page
    of memory for each child, and looked at in children."""

    DEEP = 6

    def __init__(self):
        self.modules = {}
        self.globals = []  # (live names, names then, may they be put back?)
        self.kept = []  # (container, its copy)
        self.classes = []  # (class, its names)
        self.slots = []  # (object, name, value)
        self.caches = []
        self.seen = {}  # id -> object

    def refresh(self):
        """Something may have been imported since."""
        if sys.modules == self.modules:
            return
        known, self.modules = self.modules, dict(sys.modules)
        if any(self.modules.get(name) is not module for name, module in known.items()):
            known = {}
        if not known:
            self.kept, self.classes, self.slots, self.caches, self.seen = [], [], [], [], {}
        self.globals = []
        self.kept = [(value, type(value).copy(value)) for value, _ in self.kept]
        self.classes = [(value, dict(vars(value))) for value, _ in self.classes]
        self.slots = [(value, name, getattr(value, name)) for value, name, _ in self.slots]
        for name, module in self.modules.items():
            ansible = name == "ansible" or name.startswith("ansible.")
            if not isinstance(module, type(sys)):
                continue
            if ansible or name in PUT_BACK or name in UNCHANGED:
                live = vars(module)
                self.globals.append((live, dict(live), name not in UNCHANGED))
                if ansible and name not in known and not name.startswith(NOT_DEEP):
                    self.look_inside(list(live.values()), 0)

    def look(self, value, depth):
        """Notes what can be changed without changing a global: what is reached from a
        global name of ansible's."""
        if id(value) in self.seen or depth > self.DEEP:
            return
        kind = type(value)
        if isinstance(value, type):
            if not value.__module__.startswith("ansible"):
                return
            names = dict(vars(value))
            self.classes.append((value, names))
            inside = list(names.values())
        elif isinstance(value, CONTAINERS):
            self.kept.append((value, kind.copy(value)))
            inside = value.values() if isinstance(value, dict) else value
            inside = [] if isinstance(value, bytearray) else list(inside)
        elif kind is tuple:
            inside = list(value)
        elif kind is FUNCTION:
            inside = [value.__dict__] if value.__dict__ else []
            inside += list(value.__defaults__ or ())
            inside += list((value.__kwdefaults__ or {}).values())
        elif kind is staticmethod or kind is classmethod:
            inside = [value.__func__]
        elif hasattr(kind, "cache_clear"):
            self.caches.append(value)
            inside = []
        elif kind.__module__.startswith("ansible"):
            inside = [vars(value)] if kind.__dictoffset__ else []
            for base in kind.__mro__:
                for name, slot in vars(base).items():
                    if type(slot) is MEMBER and hasattr(value, name):
                        inside.append(getattr(value, name))
                        self.slots.append((value, name, inside[-1]))
        else:
            return
        self.seen[id(value)] = value
        self.look_inside(inside, depth + 1)

    def look_inside(self, values, depth):
        for value in values:
            if type(value) not in NOTHING_INSIDE:
                self.look(value, depth)

    def put_back(self):
        """Makes globals and containers what they were; False if that is not for us."""
        for live, then, mine in self.globals:
            if live != then:
                if not mine:
                    return False
                for name in [name for name in live if name not in then]:
                    del live[name]
                live.update(then)
        for value, then in self.kept:
            if value != then:
                if isinstance(value, (list, bytearray)):
                    value[:] = then
                else:
                    value.clear()
                    value.update(then)
        for cache in self.caches:
            cache.cache_clear()
        return True

    def is_same(self):
        """Whether all else is what it was."""
        for value, names in self.classes:
            if vars(value) != names:
                return False
        for value, name, then in self.slots:
            if getattr(value, name) is not then:
                return False
        return sys.modules == self.modules


class State:
    """What a child would carry from one module to the next."""

    def __init__(self, agent):
        import atexit
        from contextvars import copy_context

        for name in ("contextvars", "_contextvars"):
            if name not in agent.picture.modules:
                sys.modules.pop(name, None)
        # Handlers of what was imported ahead: none of it has anything to do at exit.
        # (weakref.finalize believes to have one from its first object on.)
        atexit._clear()
        self.copy_context = copy_context
        self.finalize = getattr(sys.modules.get("weakref"), "finalize", None)
        self.picture = agent.picture
        self.group, self.agents_group = os.getpid(), os.getpgid(agent.pid)
        self.locale = sys.modules.get("locale")
        self.words = self.locale.setlocale(self.locale.LC_ALL) if self.locale else None
        self.handlers = [signal.getsignal(number) for number in range(1, signal.NSIG)]
        self.folder = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.cwd = self.where()
        self.umask = os.umask(0o77)
        os.umask(self.umask)
        self.process = self.look_at_process()
        gc.freeze()

    def in_context(self, call):
        """A new module has a new context."""
        return self.copy_context().run(call)

    def where(self):
        try:
            info = os.stat(".")
        except OSError:
            return None
        return info.st_dev, info.st_ino

    def look_at_process(self):
        """What the kernel and the interpreter keep, as one value to compare."""
        streams = (sys.stdin, sys.stdout, sys.stderr)
        socket = sys.modules.get("socket")
        return (
            sorted(os.listdir("/proc/self/fd")),
            [(info.st_dev, info.st_ino) for info in map(os.fstat, (0, 1, 2))],
            len(os.listdir("/proc/self/task")),
            list(os.environ.items()),
            [signal.getsignal(number) for number in range(1, signal.NSIG)],
            signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            signal.getitimer(signal.ITIMER_REAL),
            self.limits(),
            (os.getresuid(), os.getresgid(), os.getgroups(), os.getpgrp(), os.getsid(0)),
            os.getpriority(os.PRIO_PROCESS, 0),
            [(one.fileno(), one.encoding, one.errors) for one in streams],
            (gc.isenabled(), gc.get_threshold(), list(gc.callbacks)),
            (sys.getrecursionlimit(), sys.getswitchinterval()),
            (sys.gettrace(), sys.getprofile()),
            [list(names) for names in (sys.argv, sys.path, sys.meta_path, sys.path_hooks)],
            socket.getdefaulttimeout() if socket else None,
        )

    def limits(self):
        resource = sys.modules.get("resource")
        names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
        return [resource.getrlimit(getattr(resource, name)) for name in names]

    def restore(self):
        """Whether this is now what it was when it was made."""
        try:
            return self.nobody_left() and self.put_back() and self.is_same()
        except Exception:
            return False

    def nobody_left(self):
        """No child, and nobody else in the process group."""
        try:
            os.waitpid(-1, os.WNOHANG)
            return False
        except ChildProcessError:
            pass
        os.setpgid(0, self.agents_group)
        try:
            os.killpg(self.group, 0)
            return False
        except ProcessLookupError:
            return True
        finally:
            os.setpgid(0, 0)

    def put_back(self):
        if not self.picture.put_back():
            return False
        if self.finalize is not None:
            self.finalize._registered_with_atexit = False
        if "syslog" in sys.modules:
            sys.modules["syslog"].closelog()
        if self.words is not None:
            self.locale.setlocale(self.locale.LC_ALL, self.words)
        for number, handler in enumerate(self.handlers, 1):
            # (each module of core 2.22 asks to write a trace at a signal)
            name = getattr(signal.getsignal(number), "__module__", None) or ""
            if name.startswith("ansible.module_utils"):
                signal.signal(number, handler)
        os.umask(self.umask)
        os.fchdir(self.folder)
        return True

    def is_same(self):
        if self.where() != self.cwd or not self.picture.is_same():
            return False
        return self.look_at_process() == self.process
