"""The agent: one warm Python per account on a target.

It is sent over the wire by churten/transport/bootstrap.py, speaks the frames of
docs/protocol.md on the stdin and stdout it was started with, and ends when its
stdin does. It needs only the standard library, runs on Python 3.6 and later, has
one thread and never waits for one child: everything goes through Agent.loop().

What happens to a module (RUN). Its AnsiballZ payload came once (PAYLOAD). All
payloads whose files agree are merged into one zip file, the Library, because
modules that respawn read it, and because the modules of ansible.module_utils that
the agent has imported ahead then carry the paths the module itself sees. For each
run the agent forks; the child makes itself look like the interpreter the stock
wrapper would have started, calls the payload's own loader, and ends as an
interpreter ends. What cannot be made equal after the start (PYTHON* variables,
another locale) runs in a fresh interpreter on the same zip file.

Always true: fds 0, 1 and 2 are /dev/null in the agent; its own descriptors are
close-on-exec; a request is answered by exactly one EXIT or FAILED; ACCEPTED is
queued only after the fork; nothing of a request is written to disk but files the
request names and the zip file, which has no arguments in it.
"""

import _signal as signal  # type: ignore[import-not-found]  # `signal` itself would import enum at every start
import errno
import gc
import marshal
import os
import select
import stat
import struct
import sys
import time
import zlib

# ------------------------------------------------------------------ frames

HEADER = struct.Struct(">HBBBBHIII")
MAGIC = 0x4348
VERSION = 1
BODY_MAX = 256 * 1024
BODY_MAX_LARGE = 16 * 1024 * 1024
RAW_MAX = 64 * 1024 * 1024
WINDOW = 1024 * 1024  # DATA bytes under way per request and direction
REST_MAX = 64 * 1024  # bytes of each stream that EXIT carries

F_ZLIB, F_END, F_LINK = 1, 2, 16
STDIN, STDOUT, STDERR = 0, 1, 2

(
    T_HELLO, T_OPEN, T_OPENED, T_START, T_STARTED, T_PAYLOAD, T_NEED, T_RUN,
    T_EXEC, T_PUT, T_FETCH, T_DATA, T_WINDOW, T_CANCEL, T_ACCEPTED, T_STAMP,
    T_EXIT, T_FAILED, T_PING, T_PONG, T_CLOSE, T_RESET, T_STATUS, T_STOP, T_LOG,
) = range(1, 26)  # fmt: skip


class ProtocolError(Exception):
    """The other side broke docs/protocol.md: the hop ends."""


def frame(kind, body=b"", request=0, agent=0, flags=0):
    return HEADER.pack(
        MAGIC, VERSION, kind, flags, 0, agent, 0, request, len(body)
    ) + body


def frame_at(buffer, at):
    """The header at `at` as (kind, flags, agent, request, length), or None while
    the frame is not complete."""
    if len(buffer) - at < HEADER.size:
        return None
    magic, version, kind, flags, _, agent, _, request, length = HEADER.unpack_from(
        buffer, at
    )
    if magic != MAGIC or version != VERSION or not T_HELLO <= kind <= T_LOG:
        raise ProtocolError("bad header")
    if length > (BODY_MAX_LARGE if kind in (T_PAYLOAD, T_RUN) else BODY_MAX):
        raise ProtocolError("body too long")
    if len(buffer) - at - HEADER.size < length:
        return None
    return kind, flags, agent, request, length


def inflate(body, kind):
    """What a u32 raw length and a zlib stream hold."""
    if len(body) < 4:
        raise ProtocolError("bad zlib body")
    size = int.from_bytes(body[:4], "big")
    if size > (RAW_MAX if kind == T_RUN else BODY_MAX):
        raise ProtocolError("raw length too long")
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(body[4:], size + 1)
    except zlib.error:
        raise ProtocolError("bad zlib stream")
    if len(raw) != size or not stream.eof:
        raise ProtocolError("bad raw length")
    return raw


def pack(items):
    out = [struct.pack(">H", len(items))]
    for item in items:
        if not isinstance(item, bytes):
            item = str(item).encode("utf-8", "surrogateescape")
        out.append(struct.pack(">I", len(item)))
        out.append(item)
    return b"".join(out)


def unpack(body, least=0):
    items, at = [], 2
    if len(body) < 2:
        raise ProtocolError("bad vec")
    for _ in range(int.from_bytes(body[:2], "big")):
        end = at + 4 + int.from_bytes(body[at : at + 4], "big")
        if at + 4 > len(body) or end > len(body):
            raise ProtocolError("bad vec")
        items.append(body[at + 4 : end])
        at = end
    if at != len(body) or len(items) < least:
        raise ProtocolError("bad vec")
    return items


def number(item, empty=0):
    try:
        return int(item) if item else empty
    except ValueError:
        raise ProtocolError("bad number")


def text(item):
    return item.decode("utf-8", "surrogateescape")


class Failure(Exception):
    """Ends a request with FAILED."""

    def __init__(self, kind, layer, message, started=0):
        Exception.__init__(self, message)
        self.items = [kind, layer, message[:4096], started]


# ------------------------------------------------- payloads, the library

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
# Variables that only a starting interpreter or C library reads.
START_VARIABLES = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "OPENSSL_", "LOCPATH")

CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
END = struct.Struct("<4s4H2LH")


def zip_entries(data):
    """Yields (name, crc, method, packed size, size, central entry, local entry)
    of the plain zip file core's zipfile writes."""
    try:
        sign, _, _, _, count, size, at, comment = END.unpack_from(data, len(data) - 22)
        if sign != b"PK\5\6" or comment or at + size + 22 != len(data):
            raise ProtocolError("payload is not a plain zip file")
        for _ in range(count):
            head = CENTRAL.unpack_from(data, at)
            method, crc, packed, raw = head[4], head[7], head[8], head[9]
            name_len, extra_len, comment_len, local = (
                head[10], head[11], head[12], head[16],
            )  # fmt: skip
            end = at + 46 + name_len + extra_len + comment_len
            central = data[at:end]
            name = data[at + 46 : at + 46 + name_len].decode("utf-8")
            lead = LOCAL.unpack_from(data, local)
            stop = local + 30 + lead[9] + lead[10] + packed
            if head[0] != b"PK\1\2" or lead[0] != b"PK\3\4" or stop > len(data):
                raise ProtocolError("payload has a bad zip entry")
            yield name, crc, method, packed, raw, central, data[local:stop]
            at = end
    except (struct.error, UnicodeDecodeError):
        raise ProtocolError("payload is not a zip file")


def payload_of(items):
    """PAYLOAD as docs/protocol.md has it: packed if it says what Python its code
    is for, and then the code is ours only if that is this one."""
    marshalled = items[2] if len(items) > 2 else None
    if len(items) < 4:
        return Payload(items[1], marshalled)
    from _frozen_importlib_external import MAGIC_NUMBER

    ours = items[3] == MAGIC_NUMBER.hex().encode()
    return Payload(
        inflate(items[1], T_RUN), inflate(marshalled, T_RUN) if ours else None
    )


class Payload:
    """What one PAYLOAD frame brought; merged into a Library at its first RUN."""

    def __init__(self, data, marshalled):
        self.entries = list(zip_entries(data))
        self.marshalled = marshalled
        self.library = None
        self.runs = 0
        self.ahead = True  # may its imports be done ahead?
        self.wanted = None  # names of these imports, once known
        self.done = -1  # the age of Ahead in which they were done

    def names(self):
        return {entry[0]: entry[1] for entry in self.entries}


class Library:
    """Payloads that agree on every file they share: one zip file, its code
    objects, and (for the first library only) what is imported from it."""

    def __init__(self, where):
        self.path = where  # becomes _modlib_path; the file is written by save()
        self.crcs = {}
        self.body = bytearray()
        self.central = []
        self.places = {}  # name -> (method, start in body, packed size)
        self.codes = {}  # name -> code object, or marshalled bytes of one
        self.directory = {}  # what zipimport keeps of an archive, same form
        self.saved = None
        self.packages = set()
        import zipimport

        cache = getattr(zipimport, "_zip_directory_cache", None)
        if cache is not None:  # spares reading the directory of our own file
            cache[where] = self.directory
        source = 'import sys\nsys.path.insert(0, "%s")\n' % where
        data = source.encode("utf-8", "surrogateescape")
        crc, name = zlib.crc32(data) & 0xFFFFFFFF, b"sitecustomize.py"
        sizes = (crc, len(data), len(data), len(name), 0)
        lead = LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, 33, *sizes)
        head = CENTRAL.pack(
            b"PK\1\2", 0x0314, 20, 0, 0, 0, 33, *(sizes + (0, 0, 0, 0o600 << 16, 0))
        )
        self.add_entry(
            name.decode(), crc, 0, len(data), len(data), head + name, lead + name + data
        )

    def agrees(self, payload):
        crcs = self.crcs
        for name, crc in payload.names().items():
            if crcs.get(name, crc) != crc:
                return False
        return True

    def add(self, payload):
        grown = False
        for entry in payload.entries:
            if entry[0] not in self.crcs:
                self.add_entry(*entry)
                grown = True
        codes = {}
        if payload.marshalled and not sys.flags.optimize:
            try:
                codes = marshal.loads(payload.marshalled)
            except (ValueError, EOFError, TypeError):
                codes = {}
        for module, (package, code) in codes.items():
            name = module.replace(".", "/") + ("/__init__.py" if package else ".py")
            if name in self.crcs:
                self.codes.setdefault(name, code)
        payload.library, payload.entries, payload.marshalled = self, None, None
        if grown:
            self.save()

    def add_entry(self, name, crc, method, packed, size, central, local):
        at = len(self.body)
        self.body += local
        self.central.append(central[:42] + struct.pack("<L", at) + central[46:])
        self.places[name] = (method, len(self.body) - packed, packed)
        self.crcs[name] = crc
        where = self.path + os.sep + name
        self.directory[name.replace("/", os.sep)] = (
            where, method, packed, size, at, 0, 33, crc,
        )  # fmt: skip
        if name.endswith("/__init__.py"):
            self.packages.add(os.path.dirname(name))

    def save(self):
        """Writes the zip file beside and renames it: running modules may be
        reading the old one, whose entries stay where they were."""
        index = b"".join(self.central)
        count = len(self.central)
        tail = END.pack(
            b"PK\5\6", 0, 0, count, count, len(index), len(self.body), 0
        )
        folder = os.path.dirname(self.path)
        self.saved = None  # check() tries again what fails here
        if not os.path.isdir(folder):
            os.mkdir(folder, 0o700)
        try:
            with open(self.path + ".new", "wb") as out:
                out.write(self.body)
                out.write(index + tail)
            os.rename(self.path + ".new", self.path)
        except OSError:
            try:
                os.unlink(self.path + ".new")  # a full disk gets its space back
            except OSError:
                pass
            raise
        self.saved = self.state()

    def state(self):
        info = os.stat(self.path)
        return info.st_ino, info.st_size, info.st_mtime

    def check(self):
        """Makes sure the file is still there (plays do clean /tmp)."""
        try:
            if self.state() == self.saved:
                return
        except OSError:
            pass
        self.save()

    def remove(self):
        for path in (self.path, self.path + ".new"):
            try:
                os.unlink(path)
            except OSError:
                pass
        try:
            os.rmdir(os.path.dirname(self.path))
        except OSError:
            pass

    def know_folder(self, folder):
        """Makes the importer of one of its folders here, for all children."""
        path = os.path.join(self.path, folder)
        if path not in sys.path_importer_cache:
            sys.path_importer_cache[path] = self.importer(path)

    def other_core(self, library):
        """Whether that library is of another ansible-core."""
        name = "ansible/module_utils/basic.py"
        return library is not None and self.crcs.get(name) != library.crcs.get(name)

    def source(self, name):
        method, start, size = self.places[name]
        data = bytes(self.body[start : start + size])
        return zlib.decompress(data, -15) if method == 8 else data

    def code(self, name):
        path = self.path + os.sep + name.replace("/", os.sep)
        code = self.codes.get(name)
        if code is None:
            code = compile(self.source(name), path, "exec", 0, True)
        elif isinstance(code, bytes):
            code = marshal.loads(code)
            import _imp

            _imp._fix_co_filename(code, path)
        self.codes[name] = code
        return code


def find_module(library, folder, fullname):
    """The entry's name and whether it is a package; (None, False) if missing."""
    name = folder + fullname.rpartition(".")[2]
    if name + "/__init__.py" in library.crcs:
        return name + "/__init__.py", True
    if name + ".py" in library.crcs:
        return name + ".py", False
    return None, False


def make_importer(library):
    """A zipimporter of the library that takes code objects from memory. All else
    (get_source, get_data, resources, pkgutil) is zipimport's own work on the
    real file. The frames of a module's import show nothing of this class, as
    exec_module is importlib's own."""
    import _frozen_importlib
    import zipimport
    from _frozen_importlib_external import _LoaderBasics

    bases = (zipimport.zipimporter,)
    if not issubclass(zipimport.zipimporter, _LoaderBasics):
        bases += (_LoaderBasics,)

    class Importer(*bases):
        def find_spec(self, fullname, target=None):
            name, package = find_module(library, self.prefix, fullname)
            if name is None:
                parent = super(Importer, self)
                if hasattr(parent, "find_spec"):
                    return parent.find_spec(fullname, target)
                return None
            where = self.archive + os.sep + name
            spec = _frozen_importlib.ModuleSpec(
                fullname, self, origin=where, is_package=package
            )
            spec.has_location = True
            if package:
                spec.submodule_search_locations = [os.path.dirname(where)]
            return spec

        def get_code(self, fullname):
            name, _ = find_module(library, self.prefix, fullname)
            if name is None:
                return super(Importer, self).get_code(fullname)
            return library.code(name)

    def importer(path):
        if path == library.path or path.startswith(library.path + os.sep):
            return Importer(path)
        raise ImportError("not of this library")

    return importer


class Ahead:
    """What the agent has imported from the first library, for all children."""

    def __init__(self):
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
            elif not is_stdlib(name) and name not in AT_START:
                del sys.modules[name]

    def prepare(self, payload, module, form):
        """Imports what the module will import first, if that was not done yet."""
        if payload.done == self.age:
            return
        if payload.wanted is None:
            payload.wanted = self.wanted(payload, module, form)
        self.run(payload, payload.wanted)
        payload.done = self.age

    def wanted(self, payload, module, form):
        """Names for the unconditional imports of the module and what runs it."""
        if form == b"218":
            names = ["runpy", "ansible.module_utils.basic"]
        else:
            names = ["ansible.module_utils._internal._ansiballz._loader"]
        names.append(module.rpartition(".")[0])
        path = module.replace(".", "/") + ".py"
        library = payload.library
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


AT_START = frozenset()  # names of sys.modules when the agent began; set by main


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


# ----------------------------------------------------- in the forked child


def become_child(agent, stdin, stdout, stderr, standing=None):
    """First steps of every child: own session, three descriptors, nothing of
    the agent's left open, signals as the agent found them."""
    if standing is None:
        os.setsid()
    else:
        os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for signum, handler in agent.signals_at_start.items():
        signal.signal(signum, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, agent.mask_at_start)
    if stdin is not None:
        os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for fd in agent.own_fds:
        try:
            os.close(fd)
        except OSError:
            pass


def in_working_directory(agent):
    """A fresh login stands in its home. The agent's own directory is that one,
    unless it was removed in the meantime."""
    try:
        os.getcwd()
        return
    except OSError:
        pass
    for path in (agent.cwd, os.path.expanduser("~"), "/"):
        try:
            os.chdir(path)
            return
        except (OSError, TypeError):
            pass


def exec_child(agent, argv, env, path):
    """Becomes another program, with the signals a program expects."""
    for signum in (signal.SIGPIPE, getattr(signal, "SIGXFSZ", None)):
        if signum:
            signal.signal(signum, signal.SIG_DFL)
    in_working_directory(agent)
    try:
        os.execve(path, argv, env)
    except OSError as error:
        os.write(2, ("%s: %s\n" % (path, error.strerror)).encode())
    os._exit(127)


def login_child(agent, command, environ):
    """Becomes the account's shell with `command`, as a login by sshd does."""
    path = account_shell()
    env = dict(environ)
    for name in ("SHLVL", "PWD", "OLDPWD", "_"):
        env.pop(name, None)
    argv = [os.path.basename(path), "-c", command]
    exec_child(agent, argv, env, path)


def do_in_child(act, plain, environ, flag=None):
    """Ends the child if that could do it without a shell, and says so in `flag`."""
    try:
        if not plain.holds(environ):
            return
        said = act.do(plain)
    except (OSError, ValueError, KeyError):
        return
    while said:
        said = said[os.write(1, said) :]
    if flag is not None:
        flag[0] = 1
    os._exit(0)


def module_child(agent, library, run, learn, standing=None):
    """Runs the module as the stock wrapper does, in an interpreter that looks
    as one that has just read that wrapper from its stdin."""
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
    if standing is not None:
        stand(agent, library, run, standing)
    status = interpreter_exit(lambda: run_module(library, run), learn, known)
    os._exit(status)


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


def interpreter_exit(main, learn=None, known=0):
    """Calls main and ends as an interpreter ends; returns the exit status."""
    status = call_main(main)
    if learn is not None:
        teach(learn, known)
    return leave(status)


def leave(status):
    """The rest of an interpreter's end; returns the exit status."""
    if "threading" in sys.modules:
        try:
            sys.modules["threading"]._shutdown()
        except BaseException as error:
            print_exception(error)
    status = wind_up(status)
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return status & 0xFF


def call_main(main):
    """Calls main; returns the exit status an interpreter would have after it."""
    try:
        main()
        return 0
    except SystemExit as error:
        code = error.code
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 0xFF if -(2**63) <= code < 2**63 else 255
        print(code, file=sys.stderr)
        return 1
    except BaseException as error:
        return print_exception(error)


def wind_up(status):
    """What finalization does that can be seen; returns the status, or another."""
    try:
        import atexit

        atexit._run_exitfuncs()
    except BaseException:
        pass  # it has printed it
    # What finalization would still flush or delete: files left open, cycles that
    # hold temporary files. (The agent's own objects are frozen, not walked.)
    for left in gc.get_objects():
        if type(left).__name__ in ("TextIOWrapper", "BufferedWriter"):
            try:
                left.flush()
            except Exception:
                pass
    left = None
    gc.collect()
    for stream in (sys.__stdout__, sys.stderr, sys.stdout):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except Exception:
            if stream is sys.stdout:
                status = 120
    return status


def print_exception(error):
    """As the interpreter does, without the agent's frames."""
    trace = error.__traceback__
    mine = interpreter_exit.__code__.co_filename
    while trace is not None and trace.tb_frame.f_code.co_filename == mine:
        trace = trace.tb_next
    try:
        sys.excepthook(type(error), error.with_traceback(trace), trace)
    except BaseException:
        pass
    if isinstance(error, KeyboardInterrupt) and sys.version_info >= (3, 8):
        return -signal.SIGINT
    return 1


def teach(learn, known):
    """Leaves the names of modules imported since the fork for the agent."""
    names = "\n".join(list(sys.modules)[known:]).encode("utf-8", "replace")
    if 0 < len(names) <= len(learn) - 4:
        learn[4 : 4 + len(names)] = names
        learn[:4] = struct.pack(">I", len(names))


# ------------------------------------------------------ the standing child

# Forking a warm interpreter and touching its pages costs a target several times what
# a module such as `command` or `copy` takes itself. So a child that has run a module of
# which the client says that all of it is core's own (RUN's `stays`) waits for the next
# RUN of the same payload, if by then nothing can tell it from a child just forked. That
# is not believed but looked at, by State.restore(): the names and values of modules, and
# what the kernel keeps of a process. Globals are put back; anything else that is not as
# it was, a thread, a process left behind, one descriptor too many, ends the child as
# any other ends, and the next run gets a new one. Messages to it: u32 length and a
# body, RUN's own or pack(ACT...); its answer is one byte, the status (RUN), or whether
# it could (ACT).
#
# It is in the agent's session, in a process group of its own: so it can leave that
# group for a moment and ask whether anybody is still in it.

ACT = b"act"
STANDING_BODY = 60 * 1024  # what a pipe takes at once; a longer RUN gets a new child
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


def can_stand():
    """Whether such children are possible here. With SELinux its library keeps the
    policy's contexts for the life of a process; without /proc nobody can look; with a
    terminal a group of its own would be in the background."""
    if not hasattr(gc, "freeze") or os.path.exists("/sys/fs/selinux/enforce"):
        return False
    try:
        with open("/proc/self/stat", "rb") as file:
            tty = file.read().rpartition(b")")[2].split()[4]
        os.listdir("/proc/self/task")
        return tty == b"0"
    except (OSError, IndexError):
        return False


def has_memory():
    """Whether a child of some 7 MB may stay: an eighth of the memory is free."""
    try:
        with open("/proc/meminfo", "rb") as file:
            lines = [line.split() for line in file.read(256).splitlines()]
        found = {line[0]: int(line[1]) for line in lines if len(line) == 3}
        return found[b"MemAvailable:"] * 8 > found[b"MemTotal:"]
    except (OSError, KeyError, ValueError):
        return False


def stand(agent, library, run, standing):
    """Runs the module, and what comes after it, until the state is another. Ends the
    process."""
    state = State(agent)
    while True:
        status = run_standing(state, library, run)
        run, answer = None, bytes([status])
        while run is None:
            run = next_run(standing, answer)
            if not isinstance(run, Run):
                run, answer = None, bytes([act_here(agent, run)])
        in_working_directory(agent)
        time.tzset()


def run_standing(state, library, run):
    """Runs the module; returns its status if all is as before, else ends the process."""
    status = state.in_context(lambda: call_main(lambda: run_module(library, run)))
    threads = sys.modules["_thread"]._count() if "_thread" in sys.modules else 0
    if threads or status < 0:
        os._exit(leave(status))
    status = wind_up(status) & 0xFF
    if not state.restore():
        os._exit(status)
    return status


def next_run(standing, answer):
    """Says how the last one ended; the next message: a Run, or the items of an ACT."""
    source, sink = standing.theirs
    try:
        os.write(sink, answer)
        body = receive(source, int.from_bytes(receive(source, 4), "big"))
        standing.begun[0] = 1
    except BaseException:  # the agent has gone, or a signal came
        os._exit(255)
    items = unpack(body, 1)
    return items if items[0] == ACT else Run(body)


def receive(fd, size):
    data = b""
    while len(data) < size:
        part = os.read(fd, size - len(data))
        if not part:
            os._exit(0)
        data += part
    return data


def act_here(agent, items):
    """Does an ACT if all is as its Plain says; whether it could."""
    try:
        act = shell_act(items[1])
        plain = Plain(items[2], items[5:], items[3], items[4])
        in_working_directory(agent)
        if act is None or not plain.holds(agent.environ):
            return False
        said = act.do(plain)
    except (OSError, ValueError, KeyError):
        return False
    while said:
        said = said[os.write(1, said) :]
    return True


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


# ---------------------------------------------- what core asks of every shell

# Around each file that it puts on a target, core's shell plugin asks for a home,
# a folder, permissions and the folder's removal: a dozen programs start for what
# takes a few system calls. These texts, with nothing in them that a shell would
# read as anything but plain paths, are done by the forked child itself: only where
# a Probe has seen that the account's shells bring nothing of their own, and only
# if all goes well. Else the child becomes the shell, as for any other command; how
# far it has come makes no difference to that (`mkdir -p` finds what is there, `rm
# -f` what is left), and the words of a failure are the shell's. It is a child of
# its own because a folder of a hung file server must not hold the agent. Only what
# is quick in a folder that such a child made just now is done without any.

SHELL_LEAD, SHELL_TAIL = b"/bin/sh -c '", b"'"
SHELL_PAUSE = b" && sleep 0"  # core 2.20 and older put it behind each
SHELL_PATH = rb"(?:/[\w.+:@%=,-]+)+"
SHELL_NAME = rb"ansible-tmp-[0-9.]+-[0-9]+-[0-9]+"
SHELL_PATTERNS = []  # (work, compiled pattern), once made
QUICK_FILES, QUICK_BYTES = 8, 16 * 1024 * 1024


class Act:
    """One of these texts: what does it, and with what."""

    def __init__(self, work, groups):
        self.work, self.groups = work, groups

    def do(self, plain):
        """Returns what the shell would print, or raises."""
        return self.work(plain, *self.groups)

    def makes(self):
        """The folder that it makes, or None."""
        return self.groups[1] if self.work is shell_folder else None

    def is_quick(self, made):
        """Whether it is a matter of moments in folders that were `made` just now."""
        if self.work is shell_permit:
            paths = [path.rstrip(b"/") for path in self.groups[1].split()]
            return all(path in made or os.path.dirname(path) in made for path in paths)
        if self.work is not shell_remove or self.groups[0] not in made:
            return False
        with os.scandir(self.groups[0]) as entries:
            sizes = [entry.stat(follow_symlinks=False).st_size for entry in entries]
        return len(sizes) <= QUICK_FILES and sum(sizes) <= QUICK_BYTES


def shell_act(command):
    """The Act that `command` is; None for any other command."""
    if not command.startswith(SHELL_LEAD) or not command.endswith(SHELL_TAIL):
        return None
    import re

    if not SHELL_PATTERNS:
        for act, pattern in (
            (shell_home, rb"echo ~([A-Za-z_][\w.-]*)?"),
            (
                shell_folder,
                rb'\( umask 77 && mkdir -p "` echo (PATH) `"&& mkdir "` echo (PATH) `"'
                rb' && echo (NAME)="` echo (PATH) `" \)',
            ),
            (shell_permit, rb"chmod u\+(r?w?x)((?: PATH/?)+)"),
            (shell_remove, rb"rm -f -r (PATH/NAME)/ > /dev/null 2>&1"),
        ):
            pattern = pattern.replace(b"PATH", SHELL_PATH).replace(b"NAME", SHELL_NAME)
            SHELL_PATTERNS.append((act, re.compile(pattern)))
    text = command[len(SHELL_LEAD) : -len(SHELL_TAIL)]
    if text.endswith(SHELL_PAUSE):
        text = text[: -len(SHELL_PAUSE)]
    for act, pattern in SHELL_PATTERNS:
        found = pattern.fullmatch(text)
        if found is not None and not re.search(rb"/\.\.?(?:[/ `]|$)", text):
            return Act(act, found.groups())
    return None


def shell_home(plain, name):
    import pwd
    import re

    home = os.fsencode(pwd.getpwnam(os.fsdecode(name)).pw_dir) if name else plain.home
    if not re.fullmatch(SHELL_PATH, home):
        raise ValueError(home)
    return home + b"\n"


def shell_folder(plain, parent, path, name, same):
    if path != same or path != parent + b"/" + name:
        raise ValueError(path)
    before = os.umask(0o77)
    try:
        os.makedirs(parent, exist_ok=True)
        os.mkdir(path)
    finally:
        os.umask(before)
    return name + b"=" + path + b"\n"


def shell_permit(plain, letters, paths):
    more = sum({"r": 0o400, "w": 0o200, "x": 0o100}[chr(c)] for c in letters)
    for path in paths.split():
        os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | more)
    return b""


def shell_remove(plain, path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    for name in os.listdir(fd):
        os.unlink(name, dir_fd=fd)  # a folder inside is for rm
    os.close(fd)
    os.rmdir(path)
    return b""


def account_shell():
    """Path of the account's login shell. Asked in children only: the agent must
    not keep what the name service answered when it began."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"
    except KeyError:
        return "/bin/sh"


class Plain:
    """What a Probe found where shells do what these texts say and no more."""

    FILES = ("/bin/sh", "/etc/bash.bashrc", "/etc/bashrc", "/etc/profile.d")
    FILES_AT_HOME = (".bashrc", ".bashrc.d", ".bash_aliases")
    PROGRAMS = ("mkdir", "chmod", "rm", "sleep")

    def __init__(self, marks, programs, path, home):
        self.marks, self.programs = marks, programs
        self.path, self.home = path, home

    @staticmethod
    def now(environ):
        """Changes with the account's shell and with what it reads when it starts.
        Raises for a shell whose ways are not known."""
        shell, home = account_shell(), environ.get("HOME", "/")
        if os.path.basename(shell) not in ("sh", "dash", "bash") or "BASH_ENV" in environ:
            raise ValueError(shell)
        found = [shell]
        files = [os.path.join(home, name) for name in Plain.FILES_AT_HOME]
        for path in (shell,) + Plain.FILES + tuple(files):
            try:
                info = os.stat(path)
                found += [str(info.st_ino), str(info.st_size), str(info.st_mtime_ns)]
            except OSError:
                found.append("-")
        return os.fsencode(" ".join(found))

    def holds(self, environ):
        """Whether all is as it was when the probe looked (in the child)."""
        if self.now(environ) != self.marks:
            return False
        for name, program in zip(self.PROGRAMS, self.programs):
            for folder in self.path.split(b":"):
                path = folder + b"/" + name.encode()
                if os.access(path, os.X_OK):
                    break
            if path != program:
                return False
        return True


# -------------------------------------------------------------- the chains

BROKEN = "a request before it did not end as foretold"


class Link:
    """A request that is not to begin before another has ended well; until then it
    keeps what comes for it."""

    def __init__(self, agent, head, body, part):
        self.agent, self.body, self.part = agent, body, part
        self.kind, self.index, self.request = head
        self.data, self.size = [], 0

    def begin(self):
        agent, request = self.agent, self.request
        del agent.jobs[request]
        if self.index:
            agent.on_sub_frame(self.index, self.kind, request, self.part)
            return
        agent.on_request(self.kind, 0, request, self.body)
        for flags, body in self.data:
            if request in agent.jobs:
                agent.jobs[request].on_data(flags, body)

    def on_data(self, flags, body):
        self.size += len(body)
        if self.size > WINDOW + BODY_MAX:
            raise ProtocolError("window passed")
        self.data.append((flags, body))

    def on_window(self, count):
        pass

    def fail(self, kind, message):
        self.agent.fail(self.request, Failure(kind, "agent", message), self.index)

    def cancel(self):
        self.fail("cancelled", "cancelled before it began")

    def drop(self):
        pass


class Chain:
    """Requests that go out together though each depends on the one before: number n
    begins when n - 1 has ended exactly as its client foretold. If one ends in any
    other way, none after it begins. One whose turn came begins at the end of the
    agent's turn, not amid the end of another request."""

    MOST = 256  # kept, beside those that have something under way

    def __init__(self):
        self.turn = 0  # the number that may begin
        self.held = {}  # number -> Link
        self.foretold = {}  # request -> (number, agent, rc, stdout, stderr); rc empty: any
        self.spilled = set()  # requests with output that did not come in EXIT
        self.broken = None  # the first number that did not end as foretold

    def takes(self, turn):
        if self.broken is not None and turn > self.broken:
            return False
        return turn >= self.turn and turn not in self.held

    def ended(self, kind, request, body):
        turn, _, rc, out, err = self.foretold.pop(request)
        self.held.pop(turn, None)
        if kind == T_EXIT and (not rc or self.is_foretold(request, body, rc, out, err)):
            self.turn = turn + 1
            return
        if self.broken is None or turn < self.broken:
            self.broken = turn
        for later in sorted(n for n in self.held if n > turn):
            if later in self.held:
                self.held.pop(later).fail("chain", BROKEN)

    def is_foretold(self, request, body, rc, out, err):
        items = unpack(body, 6)
        if request in self.spilled or (items[1], items[5]) != (b"0", b"0"):
            return False
        return (items[0], items[3], items[4]) == (rc, out, err)


# ------------------------------------------------------------ the requests


class Process:
    """A child with stdout and stderr pipes, perhaps stdin: RUN and EXEC.

    starting -> running -> ended (reaped, draining) -> answered. Killing is a
    matter of its own: TERM to the group, after 2 s KILL, the child left as a
    zombie until then so that its group number stays ours."""

    KILL_AFTER = 2.0
    DRAIN = 0.5  # longest wait for pipes a background process keeps open
    QUIET = 0.1  # ... and it ends after so long without data

    def __init__(self, agent, request, timeout_ms):
        self.agent, self.request = agent, request
        self.pid = None
        self.pipes = {}  # fd -> stream number
        self.buffers = {STDOUT: bytearray(), STDERR: bytearray()}
        self.credit = WINDOW
        self.stdin = None
        self.stdin_buffer, self.stdin_end = bytearray(), False
        self.stdin_credit = WINDOW
        self.stdin_given = 0  # bytes of the agent's own in the buffer
        self.cancelled = False
        self.status, self.elapsed = None, 0
        self.deadline = None
        self.timeout = timeout_ms / 1000.0
        self.kill_at = None
        self.zombie = False
        self.drain_until = self.quiet_until = None
        self.truncated = 0
        self.learn = None
        self.makes = self.flag = None  # a folder; whether the child made it itself
        self.standing = None  # the Standing that this child is or may become
        self.otherwise = None  # what to do if a standing child did not do it
        self.is_act = self.said_accepted = False
        self.on_end = None  # called with the wait status instead of EXIT

    def start(self, child, stdin=None, standing=None):
        """Forks; `child` is called in the child and must not return. stdin:
        None for /dev/null, bytes to begin with (END by close_stdin). standing:
        what the child may become."""
        agent, pipes = self.agent, []
        try:
            for _ in range(2 if stdin is None else 3):
                pipes.append(os.pipe())
            (out_r, out_w), (err_r, err_w) = pipes[:2]
            agent.own_fds.update(fd for pair in pipes for fd in pair)
            begun = time.monotonic()
            self.pid = agent.fork()
            if self.pid == 0:
                try:
                    in_r = pipes[2][0] if stdin is not None else None
                    become_child(agent, in_r, out_w, err_w, standing)
                    child()
                except BaseException as error:
                    os.write(2, ("agent's child: %r\n" % error).encode())
                finally:
                    os._exit(255)
        except OSError as error:
            for pair in pipes:
                for fd in pair:
                    agent.own_fds.discard(fd)
                    os.close(fd)
            if standing is not None:
                standing.gone()
            raise Failure("agent", "agent", "cannot start a process: %s" % error)
        self.begun = begun
        agent.close(out_w)
        agent.close(err_w)
        if standing is not None:
            self.standing = standing
            standing.started(self, (out_r, err_r))
        for fd, stream in ((out_r, STDOUT), (err_r, STDERR)):
            os.set_blocking(fd, False)
            self.pipes[fd] = stream
            agent.watch(fd, select.POLLIN, self.on_output)
        if stdin is not None:
            agent.close(pipes[2][0])
            self.stdin = pipes[2][1]
            os.set_blocking(self.stdin, False)
            self.stdin_buffer += stdin
            self.stdin_given = len(stdin)
            self.feed()
        if self.timeout:
            self.deadline = begun + self.timeout
        self.accepted()

    def take(self, standing, message):
        """Instead of start(): gives `message` to a child that stands. False: it could
        not be given, and the child has gone."""
        self.begun = time.monotonic()
        if not standing.give(self, message):
            return False
        self.standing, self.pid = standing, standing.pid
        for fd, stream in zip(standing.fds, (STDOUT, STDERR)):
            self.pipes[fd] = stream
            self.agent.watch(fd, select.POLLIN, self.on_output)
        if self.timeout:
            self.deadline = self.begun + self.timeout
        return True

    def stood(self, said):
        """The child has done it, and stands: all it wrote is in the pipes."""
        if self.cancelled or self.kill_at is not None:
            return  # it is being killed
        standing, self.standing, self.pid = self.standing, None, None
        for fd in list(self.pipes):
            self.read(fd, 4 * WINDOW)
            self.agent.unwatch(fd)
        whole = len(self.pipes) == 2
        self.pipes.clear()
        standing.stands(whole)
        otherwise, self.otherwise = self.otherwise, None
        if not self.is_act:
            self.ended((said, 0))
        elif said:
            self.accepted()
            if self.makes:
                self.agent.made_folder(self.makes)
            self.ended((0, 0))
        else:
            self.again(otherwise)

    def accepted(self):
        if not self.said_accepted:
            self.said_accepted = True
            self.agent.send(T_ACCEPTED, b"", self.request)

    # stdin

    def on_data(self, flags, body):
        self.stdin_credit -= len(body)
        if self.stdin_credit < -BODY_MAX:
            raise ProtocolError("window passed")
        if self.stdin is None:
            self.consumed(len(body))
        else:
            self.stdin_buffer += body
        if flags & F_END:
            self.stdin_end = True
        self.feed()

    def consumed(self, count):
        own = min(count, self.stdin_given)
        self.stdin_given -= own
        count -= own
        self.stdin_credit += count
        if count:
            self.agent.send(T_WINDOW, struct.pack(">I", count), self.request)

    def feed(self, fd=None, events=0):
        if self.stdin is None:
            return
        if self.stdin_buffer:
            try:
                count = os.write(self.stdin, bytes(self.stdin_buffer[:BODY_MAX]))
            except BlockingIOError:
                count = 0
            except OSError:  # it closed its stdin: the rest is for nobody
                count = len(self.stdin_buffer)
                self.agent.close(self.stdin)
                self.stdin = None
            del self.stdin_buffer[:count]
            self.consumed(count)
        if self.stdin is None:
            return
        if self.stdin_buffer:
            self.agent.watch(self.stdin, select.POLLOUT, self.feed)
        elif self.stdin_end:
            self.agent.close(self.stdin)
            self.stdin = None
        else:
            self.agent.unwatch(self.stdin)

    # output

    def on_window(self, count):
        self.credit += count
        self.advance()

    def on_output(self, fd, events):
        self.read(fd, BODY_MAX)
        self.advance()

    def read(self, fd, most):
        """Reads what is there, up to about `most`; closes the pipe at its end."""
        stream = self.pipes[fd]
        while most > 0:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.agent.close(fd)
                del self.pipes[fd]
                return
            self.buffers[stream] += data
            most -= len(data)
            if self.drain_until:
                self.quiet_until = time.monotonic() + self.QUIET
            if len(data) < 4096 and self.status is None and self.pid is not None:
                return  # the rest can wait for the next turn

    def send_output(self, keep):
        for stream, buffer in self.buffers.items():
            while len(buffer) > keep and self.credit > 0:
                part = bytes(buffer[: min(self.credit, BODY_MAX)])
                del buffer[: len(part)]
                self.credit -= len(part)
                self.agent.send(T_DATA, part, self.request, stream << 2)
            if self.cancelled and len(buffer) > keep:
                del buffer[keep:]  # nobody opens the window any more

    def advance(self):
        self.send_output(REST_MAX)
        if self.drain_until is not None:
            self.maybe_answer()
            return
        for fd, stream in self.pipes.items():
            if len(self.buffers[stream]) > BODY_MAX:
                self.agent.unwatch(fd)  # back pressure: the child waits
            else:
                self.agent.watch(fd, select.POLLIN, self.on_output)

    # the end

    def on_sigchld(self):
        if self.pid is None or self.zombie:
            return
        if self.kill_at is not None and hasattr(os, "waitid"):
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if info is None:
                return
            self.zombie = True
            if self.agent.ending:  # what else is in its group: hurry up
                self.kill_at = min(self.kill_at, time.monotonic() + 0.2)
            code = info.si_status
            killed = info.si_code != os.CLD_EXITED
            self.ended((-1, code) if killed else (code, 0))
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self.pid = None
            if os.WIFSIGNALED(status):
                self.ended((-1, os.WTERMSIG(status)))
            else:
                self.ended((os.WEXITSTATUS(status), 0))

    def ended(self, status):
        self.elapsed = int((time.monotonic() - self.begun) * 1e6)
        self.status = status
        self.deadline = None
        if self.standing is not None and self.left_standing():
            return
        if self.learn is not None:
            self.agent.learned(self)
        if self.flag is not None:
            if self.flag[0]:
                self.agent.made_folder(self.makes)
            self.flag.close()
            self.flag = None
        now = time.monotonic()
        for fd in list(self.pipes):
            self.read(fd, 4 * WINDOW)
        self.drain_until, self.quiet_until = now + self.DRAIN, now + self.QUIET
        self.send_output(REST_MAX)
        for fd in self.pipes:
            self.agent.watch(fd, select.POLLIN, self.on_output)
        self.maybe_answer()

    def left_standing(self):
        """The child has gone. One that stood, and had not begun with this, was killed
        for another reason: whether the request begins anew."""
        standing, self.standing = self.standing, None
        otherwise, self.otherwise = self.otherwise, None
        begun = standing.begun[0]
        standing.gone()
        if otherwise is None:
            return False
        if begun or self.cancelled:
            self.accepted()
            return False
        self.close_fds()
        self.status = None
        self.again(otherwise)
        return True

    def again(self, otherwise):
        try:
            otherwise()
        except Failure as failure:
            self.agent.fail(self.request, failure)

    def maybe_answer(self):
        full = max(len(buffer) for buffer in self.buffers.values())
        if self.pipes:
            if time.monotonic() < min(self.drain_until, self.quiet_until):
                return
            self.truncated = 1
            self.close_fds()
        if full <= REST_MAX and self.agent.jobs.get(self.request) is self:
            self.answer()  # else when the WINDOW for the rest comes

    def answer(self):
        self.close_fds()
        if self.on_end is not None:
            self.on_end(self)
        else:
            body = pack(
                [self.status[0], self.status[1], self.elapsed,
                 bytes(self.buffers[STDOUT]), bytes(self.buffers[STDERR]),
                 self.truncated]
            )  # fmt: skip
            self.agent.send(T_EXIT, body, self.request)
        del self.agent.jobs[self.request]
        if self.zombie:
            self.agent.leaving.append(self)

    def close_fds(self):
        for fd in list(self.pipes):
            self.agent.close(fd)
        self.pipes.clear()
        if self.stdin is not None:
            self.agent.close(self.stdin)
            self.stdin = None

    # time and killing

    def next_time(self):
        times = [t for t in (self.deadline, self.kill_at) if t is not None]
        if self.drain_until is not None and self.pipes:
            times.append(min(self.drain_until, self.quiet_until))
        return min(times) if times else None

    def on_time(self, now):
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self.cancel()
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = None
            self.kill(signal.SIGKILL)
            if self.zombie:
                self.zombie = False
                os.waitpid(self.pid, 0)
                self.pid = None
        if self.drain_until is not None:
            self.maybe_answer()

    def alone(self):
        """Nobody listens any more: no more input, its output goes nowhere."""
        self.stdin_end = self.cancelled = True
        self.credit = 0
        self.feed()
        self.advance()

    def cancel(self):
        self.cancelled = True
        self.send_output(REST_MAX)
        if self.drain_until is not None:
            self.maybe_answer()
        if self.pid is not None and self.kill_at is None and self.status is None:
            self.kill(signal.SIGTERM)
            self.kill_at = time.monotonic() + self.KILL_AFTER

    def kill(self, signum):
        for action in (os.killpg, os.kill):
            try:
                action(self.pid, signum)
                return
            except OSError as error:  # no group yet: setsid is still to come
                if error.errno != errno.ESRCH:
                    return


class Probe(Process):
    """Asks the account's shells, as an EXEC would reach them, what the words of
    core's texts mean there. Nobody waits for it; its finding holds for a minute."""

    NUMBER = -1  # among the jobs; requests have others
    AGE = 60.0
    TEXT = (
        "/bin/sh -c 'for name in echo umask mkdir chmod rm sleep; do command -v $name"
        ' || exit 1; done; echo "$PATH"; echo "$HOME"\''
    )

    def __init__(self, agent):
        Process.__init__(self, agent, self.NUMBER, 5000)
        self.on_end = self.judge

    def child(self):
        environ = self.agent.environ
        os.write(1, Plain.now(environ) + b"\n")
        login_child(self.agent, self.TEXT, environ)

    def accepted(self):
        pass

    def send_output(self, keep):
        for buffer in self.buffers.values():
            del buffer[REST_MAX:]

    def alone(self):
        self.cancel()

    def judge(self, job):
        lines = bytes(self.buffers[STDOUT]).split(b"\n")
        whole = self.status == (0, 0) and not self.truncated and len(lines) == 10
        if not whole or self.buffers[STDERR] or lines[1:3] != [b"echo", b"umask"]:
            return
        for name, path in zip(Plain.PROGRAMS, lines[3:7]):
            if path not in (b"/bin/" + name.encode(), b"/usr/bin/" + name.encode()):
                return
        self.agent.plain = Plain(lines[0], lines[3:7], lines[7], lines[8])


class Standing:
    """A child that may run a module more than once; see "the standing child".

    lent (to a Process) -> idle (between two) -> leaving -> reaped, or lent -> gone
    with the Process, which reaps it as any other child."""

    IDLE = 60.0  # seconds an idle one is kept, as a session
    MOST = 4  # idle ones

    zombie, status = False, None

    def __init__(self, agent, key):
        self.agent, self.key = agent, key
        self.pid = self.job = self.until = self.kill_at = None
        self.fds = ()  # the pipes of its output
        self.theirs = self.ours = ()  # where it reads and writes; where we do
        import mmap

        self.begun = mmap.mmap(-1, 1)  # it has what it was given
        try:
            (its_in, our_out), (our_in, its_out) = os.pipe(), os.pipe()
        except OSError as error:
            raise Failure("agent", "agent", "cannot start a process: %s" % error)
        self.theirs, self.ours = (its_in, its_out), (our_in, our_out)
        agent.own_fds.update(self.ours)

    def started(self, job, fds):
        for fd in self.theirs:
            os.close(fd)
        self.theirs = ()
        self.job, self.pid, self.fds = job, job.pid, fds
        for fd in self.ours:
            os.set_blocking(fd, False)
        self.agent.watch(self.ours[0], select.POLLIN, self.on_control)

    def give(self, job, message):
        """Lends it to `job`; whether it took the message."""
        self.agent.idle.remove(self)
        self.begun[0] = 0
        try:
            sent = os.write(self.ours[1], struct.pack(">I", len(message)) + message)
        except OSError:
            sent = 0
        if sent != len(message) + 4 or self.reaped():
            self.leave()
            return False
        self.job, self.until = job, None
        return True

    def on_control(self, fd, events):
        try:
            said = os.read(fd, 2)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if len(said) == 1 and self.job is not None:
            self.job.stood(said[0])
        elif self.job is not None:
            self.close_control()  # it is ending; SIGCHLD will say how
        else:
            self.agent.idle.remove(self)
            self.leave()

    def stands(self, whole):
        """Its Process is done with it; `whole`: its pipes are open."""
        self.job = None
        if not whole or self.agent.ending or self.key[0] != self.agent.ahead.age:
            self.leave()
            return
        idle = self.agent.idle
        idle.append(self)
        self.until = time.monotonic() + self.IDLE
        same = [one for one in idle if one.key == self.key]
        if len(same) > 2 or len(idle) > self.MOST:
            oldest = same[0] if len(same) > 2 else idle[0]
            idle.remove(oldest)
            oldest.leave()

    def gone(self):
        """Its Process has reaped it, and closes its pipes."""
        self.close_control()
        self.begun.close()
        self.pid = self.job = None

    def close_control(self):
        for fd in self.ours:
            self.agent.close(fd)
        for fd in self.theirs:
            os.close(fd)
        self.ours = self.theirs = ()

    def leave(self):
        """Ends it: it is idle, and goes when nobody holds the other end."""
        self.close_control()
        self.begun.close()
        for fd in self.fds:
            if fd in self.agent.own_fds:
                self.agent.close(fd)
        self.until, self.kill_at = None, time.monotonic() + 2.0
        if self.pid is not None:
            self.agent.leaving.append(self)

    def reaped(self):
        try:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                self.pid = None
        except ChildProcessError:
            self.pid = None
        return self.pid is None

    def on_sigchld(self):
        if self.job is None and self.pid is not None and self.reaped():
            if self in self.agent.idle:
                self.agent.idle.remove(self)
                self.leave()

    def next_time(self):
        return self.until if self.until is not None else self.kill_at

    def on_time(self, now):
        if self.until is not None:
            self.agent.idle.remove(self)
            self.leave()
        elif self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            self.kill_at = None


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


class Put:
    """PUT: DATA frames into a temporary file beside, then a rename."""

    def __init__(self, agent, request, body):
        path, mode, size = unpack(body, 3)[:3]
        self.agent, self.request = agent, request
        self.masked = mode[:1] == b"~"
        self.mode = int(mode.lstrip(b"~"), 8) if mode else None
        self.size, self.got = number(size, -1), 0
        self.begun = time.monotonic()
        self.path = os.path.realpath(path)
        self.temp = None
        self.fd = None
        self.old = None
        self.open()

    def open(self):
        try:
            self.old = os.stat(self.path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
        if self.old is not None and self.in_place():
            self.fd = os.open(self.path, os.O_WRONLY | os.O_TRUNC | os.O_NOCTTY)
        else:
            temp = self.path + b".churten-" + os.urandom(6).hex().encode()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            mode = 0o600
            if self.old is None and (self.masked or self.mode is None):
                mode = self.mode if self.masked else 0o666
            try:
                self.fd = os.open(temp, flags, mode)
                self.temp = temp
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG):
                    raise
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                self.fd = os.open(self.path, flags, 0o666)
        if self.temp and self.old is not None:
            try:
                os.fchown(self.fd, self.old.st_uid, self.old.st_gid)
                os.fchmod(self.fd, stat.S_IMODE(self.old.st_mode))
            except OSError:  # not ours to give: write into the old file
                self.drop()
                self.fd = os.open(self.path, os.O_WRONLY | os.O_TRUNC)
        self.agent.own_fds.add(self.fd)

    def in_place(self):
        """Whether a new file could not be all the old one was."""
        if self.old.st_nlink > 1:
            return True
        try:
            names = os.listxattr(self.path)
        except (AttributeError, OSError):
            return False
        return any(name != "security.selinux" for name in names)

    def on_data(self, flags, body):
        if self.fd is None:
            return
        try:
            at = 0
            while at < len(body):
                at += os.write(self.fd, body[at:])
            self.got += len(body)
            if flags & F_END:
                self.finish()
            elif body:
                self.agent.send(T_WINDOW, struct.pack(">I", len(body)), self.request)
        except OSError as error:
            self.drop()
            self.agent.fail(self.request, file_failure(error, self.path))

    def finish(self):
        if self.size >= 0 and self.got != self.size:
            self.drop()
            message = "%d of %d bytes came" % (self.got, self.size)
            self.agent.fail(self.request, Failure("file", "file", message, 1))
            return
        if self.mode is not None and not self.masked:
            os.fchmod(self.fd, self.mode)
        self.agent.close(self.fd)
        self.fd = None
        if self.temp:
            os.rename(self.temp, self.path)
            self.temp = None
        self.agent.exit_zero(self)

    def drop(self):
        if self.fd is not None:
            self.agent.close(self.fd)
            self.fd = None
        if self.temp:
            try:
                os.unlink(self.temp)
            except OSError:
                pass
            self.temp = None

    def cancel(self):
        self.drop()
        self.agent.fail(self.request, Failure("cancelled", "file", "cancelled", 1))

    def on_window(self, count):
        pass


class Fetch:
    """FETCH: a file as DATA frames, as the window allows."""

    def __init__(self, agent, request, body):
        (path,) = unpack(body, 1)[:1]
        self.agent, self.request = agent, request
        self.begun = time.monotonic()
        self.path, self.credit = path, WINDOW
        self.fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        agent.own_fds.add(self.fd)
        self.mode = os.fstat(self.fd).st_mode
        if stat.S_ISDIR(self.mode):
            self.drop()
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))

    def on_window(self, count):
        self.credit += count

    def ready(self):
        return self.fd is not None and self.credit > 0

    def pump(self):
        try:
            data = os.read(self.fd, min(BODY_MAX, self.credit))
        except OSError as error:
            self.drop()
            self.agent.fail(self.request, file_failure(error, self.path))
            return
        self.credit -= len(data)
        flags = 0 if data else F_END
        self.agent.send(T_DATA, data, self.request, flags)
        if not data:
            self.drop()
            self.agent.exit_zero(self, b"%o" % stat.S_IMODE(self.mode))

    def drop(self):
        if self.fd is not None:
            self.agent.close(self.fd)
            self.fd = None

    def cancel(self):
        self.drop()
        self.agent.fail(self.request, Failure("cancelled", "file", "cancelled", 1))

    def on_data(self, flags, body):
        pass


def file_failure(error, path, started=1):
    message = "%s: %s" % (text(path), error.strerror or error)
    return Failure("file", "file", message, started)


# --------------------------------------------------------------- sub-agents


class SubAgent:
    """START: an agent of another account, begun by the become plugin's command.

    become (waiting for the success marker, answering the prompt) -> ready
    (source written, waiting for READY) -> up (frames are passed on, only the
    agent number changes) -> gone."""

    NOISE_MAX = 64 * 1024

    def __init__(self, agent, index, request, body):
        items = unpack(body)
        if len(items) % 2:
            raise ProtocolError("bad map")
        self.spec = {}
        for key, value in zip(items[::2], items[1::2]):
            self.spec.setdefault(key, []).append(value)
        self.agent, self.index, self.request = agent, index, request
        self.marker = b"\nCHURTEN-" + self.one(b"nonce") + b"-READY\n"
        self.missing = b"CHURTEN-" + self.one(b"nonce") + b"-NOPYTHON"
        self.noise, self.errors = bytearray(b"\n"), bytearray()
        self.out, self.outbuf, self.inbuf = None, bytearray(), bytearray()
        self.state, self.asked, self.kill_at = "become", False, None
        self.command = None
        # Whoever has work to do answers a PING; after that many seconds twice in vain
        # it stands still (0: nobody asks).
        self.patience = number(self.one(b"alive_ms"), 0) / 2000.0
        self.under_way, self.quiet, self.pinged = set(), None, False
        timeout = number(self.one(b"timeout_ms"), 0) / 1000.0
        self.deadline = time.monotonic() + timeout if timeout else None
        self.start()
        if not self.one(b"become_success"):
            self.ready()

    def one(self, key):
        return self.spec.get(key, [b""])[0]

    def start(self):
        agent, pipes = self.agent, []
        command = self.one(b"command")
        try:
            for _ in range(3):
                pipes.append(os.pipe())
            agent.own_fds.update(fd for pair in pipes for fd in pair)
            self.pid = agent.fork()
            if self.pid == 0:
                try:
                    become_child(agent, pipes[0][0], pipes[1][1], pipes[2][1])
                    argv = ["/bin/sh", "-c", os.fsdecode(command)]
                    exec_child(agent, argv, agent.environ, argv[0])
                finally:
                    os._exit(255)
        except OSError as error:
            for pair in pipes:
                for fd in pair:
                    agent.own_fds.discard(fd)
                    os.close(fd)
            raise Failure("agent", "agent", "cannot start a process: %s" % error)
        (in_r, self.stdin), (self.stdout, out_w), (self.stderr, err_w) = pipes
        for fd in (in_r, out_w, err_w):
            agent.close(fd)
        for fd in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(fd, False)
        agent.watch(self.stdout, select.POLLIN, self.on_stdout)
        agent.watch(self.stderr, select.POLLIN, self.on_stderr)

    # before it is up

    def read(self, fd):
        try:
            return os.read(fd, 65536)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def on_stdout(self, fd, events):
        data = self.read(fd)
        if data == b"":
            self.on_close()
        elif data and self.state == "up":
            self.inbuf += data
            self.relay()
        elif data:
            self.noise += data
            self.look()

    def on_stderr(self, fd, events):
        data = self.read(fd)
        if data == b"":
            self.agent.close(fd)
            self.stderr = None
        elif data and self.state != "up":
            self.errors += data
            self.look()

    def look(self):
        if len(self.noise) + len(self.errors) > self.NOISE_MAX:
            self.fail("agent", "agent", "the start printed too much")
            return
        if self.state == "become":
            self.look_for_success()
        if self.state == "ready":
            at = self.noise.find(self.marker)
            if at >= 0:
                self.state = "up"
                self.inbuf += self.noise[at + len(self.marker) :]
                del self.noise[:], self.errors[:]
                self.spec = {}
                self.relay()
            elif self.missing in self.noise:
                self.fail("no_python", "agent", "no Python found on the target")

    def look_for_success(self):
        success, prompt = self.one(b"become_success"), self.one(b"become_prompt")
        for seen in (self.noise, self.errors):
            for line in bytes(seen).splitlines():
                if success in line:
                    self.ready()
                    return
        # (as stock: who has a password for the prompt heeds nothing before it)
        waits = prompt and self.one(b"become_password") and not self.asked
        for key, kind in () if waits and not self.prompted() else (
            (b"become_wrong", "become_password_wrong"),
            (b"become_missing", "become_password_missing"),
        ):
            for words in self.spec.get(key, []):
                if words and (words in self.noise or words in self.errors):
                    self.fail(kind, "become", self.said())
                    return
        if prompt and not self.asked and self.prompted():
            if not self.spec.get(b"become_password"):
                self.fail("become_password_missing", "become", self.said())
                return
            self.asked = True
            self.outbuf += self.one(b"become_password") + b"\n"
            self.spec[b"become_password"] = [b""]
            self.write()

    def prompted(self):
        prompt = self.one(b"become_prompt")
        return prompt in self.noise or prompt in self.errors

    def ready(self):
        self.state = "ready"
        self.outbuf += self.one(b"input")
        self.write()

    def said(self):
        """What the become command printed, for the message."""
        lines = (bytes(self.errors) + b"\n" + bytes(self.noise)).strip()
        return text(lines[-2048:])

    # frames

    def relay(self):
        at = 0
        try:
            while True:
                head = frame_at(self.inbuf, at)
                if head is None:
                    break
                kind, flags, index, request, length = head
                end = at + HEADER.size + length
                if index:
                    raise ProtocolError("agent of an agent of an agent")
                if kind == T_HELLO and self.request is not None:
                    self.on_hello(bytes(self.inbuf[at + HEADER.size : end]))
                elif kind != T_PONG or request:
                    if kind in (T_EXIT, T_FAILED):
                        self.under_way.discard(request)
                    part = self.inbuf[at:end]
                    struct.pack_into(">H", part, 6, self.index)
                    self.agent.out += part
                    if request in self.agent.links:
                        self.agent.link_said(kind, request, bytes(part[HEADER.size :]))
                at = end
        except ProtocolError as error:
            self.gone("agent", "protocol error of the sub-agent: %s" % error)
            return
        del self.inbuf[:at]
        self.quiet, self.pinged = None, False
        self.listen()

    def listen(self):
        if self.patience and self.under_way and self.quiet is None:
            self.quiet = time.monotonic() + self.patience

    def on_quiet(self, now):
        if self.pinged:
            silent = int(2 * self.patience)
            self.gone("unreachable", "no answer for %d seconds" % silent)
            return
        self.pinged, self.quiet = True, now + self.patience
        self.forward(T_PING, 0, bytearray(frame(T_PING, b"churten")))

    def on_hello(self, body):
        items = unpack(body)
        self.agent.send(
            T_STARTED, pack(items + [b"reused", b"0"]), self.request, 0, self.index
        )
        self.request = self.deadline = None

    def forward(self, kind, request, header_and_body):
        struct.pack_into(">H", header_and_body, 6, 0)
        self.outbuf += header_and_body
        if kind in (T_RUN, T_EXEC, T_PUT, T_FETCH):
            self.under_way.add(request)
            self.listen()
        self.write()

    def write(self, fd=None, events=0):
        if self.stdin is None:
            return
        while self.outbuf:
            try:
                count = os.write(self.stdin, bytes(self.outbuf[:BODY_MAX]))
            except BlockingIOError:
                self.agent.watch(self.stdin, select.POLLOUT, self.write)
                return
            except OSError:
                self.outbuf.clear()
                break
            del self.outbuf[:count]
        self.agent.unwatch(self.stdin)

    # the end

    def on_close(self):
        """Its stdout ended: it is dying or dead. Let its last words come."""
        self.agent.close(self.stdout)
        self.stdout = None
        self.close_stdin()
        if self.kill_at is None:
            self.kill_at = time.monotonic() + 1.0

    def on_sigchld(self):
        if self.pid is None:
            return
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return
        self.pid = None
        for fd in (self.stderr, self.stdout):
            for _ in range(16):
                if fd is not None and fd in (self.stderr, self.stdout):
                    (self.on_stderr if fd == self.stderr else self.on_stdout)(fd, 0)
        if self.state == "gone":
            return
        rc = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        if self.state == "up":
            self.gone("agent", "the sub-agent ended with status %d" % rc)
        elif self.state == "become":
            said = self.said() or "become ended with status %d" % rc
            self.fail("become", "become", said)
        else:
            said = "the agent's interpreter ended with status %d: %s" % (
                rc,
                self.said(),
            )
            self.fail("agent", "agent", said)

    def next_time(self):
        times = [t for t in (self.deadline, self.kill_at, self.quiet) if t is not None]
        return min(times) if times else None

    def on_time(self, now):
        if self.quiet is not None and now >= self.quiet:
            self.on_quiet(now)
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            what = "become" if self.state == "become" else "agent"
            self.fail(what, what, "no answer in time: %s" % self.said())
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = None
            if self.pid is not None:
                self.kill(signal.SIGKILL)

    def kill(self, signum):
        for action in (os.killpg, os.kill):
            try:
                action(self.pid, signum)
            except OSError:  # another account's, or no group yet
                pass

    def fail(self, kind, layer, message):
        """Not up yet: answers START."""
        if self.request is not None:
            failure = Failure(kind, layer, message)
            self.agent.send(
                T_FAILED, pack(failure.items), self.request, 0, self.index
            )
            self.request = None
        self.stop()

    def gone(self, kind, message):
        """Was up: everything it had under way has failed."""
        if self.request is not None:
            self.fail(kind, "agent", message)
            return
        failure = Failure(kind, "agent", message, 1)
        self.agent.send(T_FAILED, pack(failure.items), 0, 0, self.index)
        self.stop()

    def cancel(self):
        self.fail("cancelled", "agent", "cancelled")

    def close_stdin(self):
        if self.stdin is not None:
            self.agent.close(self.stdin)
            self.stdin = None

    def stop(self):
        """Closes its stdin, which ends it; kills what is left after 3 s. One that
        is not up yet knows nothing of that and gets TERM."""
        if self.state != "up" and self.pid is not None:
            self.kill(signal.SIGTERM)
        self.state, self.deadline, self.quiet = "gone", None, None
        self.agent.subs.pop(self.index, None)
        self.agent.break_links(self.index)
        self.close_stdin()
        for fd in (self.stdout, self.stderr):
            if fd is not None:
                self.agent.close(fd)
        self.stdout = self.stderr = None
        if self.pid is not None:
            self.kill_at = time.monotonic() + 3.0
            self.agent.leaving.append(self)


# ---------------------------------------------------------------- the agent


class Agent:
    def __init__(self, nonce, interpreters):
        self.nonce, self.interpreters = nonce, interpreters
        self.jobs = {}  # request -> Process, Put, Fetch
        self.sweep_at, self.sweep_where = None, set()  # places of libraries
        self.subs = {}  # agent number -> SubAgent
        self.leaving = []  # killed, but not reaped yet
        self.idle = []  # Standing children, the one longest idle first
        self.may_stand, self.picture = False, Picture()
        self.is_picture_due = False
        self.payloads = {}
        self.libraries = []
        self.chains = {}  # token -> Chain, oldest first
        self.links = {}  # request -> its Chain, until it has ended
        self.own_fds = set()
        self.handlers = {}
        self.poll = select.poll()
        self.input, self.out = bytearray(), bytearray()
        self.ending = self.killed = False  # killed: by a signal
        self.stale = False  # the interpreter's file has changed
        self.plain, self.probed = None, float("-inf")  # a Plain; when it was asked for
        self.made = {}  # folder that a child made itself -> when
        self.signalled = False

    # descriptors

    def watch(self, fd, events, handler):
        known = self.handlers.get(fd)
        if known is None:
            self.poll.register(fd, events)
        elif known[0] != events:
            self.poll.modify(fd, events)
        self.handlers[fd] = (events, handler)

    def unwatch(self, fd):
        if self.handlers.pop(fd, None) is not None:
            self.poll.unregister(fd)

    def close(self, fd):
        self.unwatch(fd)
        self.own_fds.discard(fd)
        os.close(fd)

    def fork(self):
        """In the child signals stay blocked until become_child: one that comes
        before must not end in the agent's handlers there."""
        if hasattr(gc, "freeze"):
            gc.freeze()
        signal.pthread_sigmask(signal.SIG_BLOCK, self.signals_at_start)
        pid = None
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                signal.pthread_sigmask(signal.SIG_SETMASK, self.mask_at_start)
        return pid

    def send(self, kind, body, request=0, flags=0, agent=0):
        self.out += frame(kind, body, request, agent, flags)
        if request in self.links:
            self.link_said(kind, request, body)

    def log(self, level, message):
        self.send(T_LOG, pack([level, message]))

    def fail(self, request, failure, agent=0):
        self.jobs.pop(request, None)
        self.send(T_FAILED, pack(failure.items), request, 0, agent)

    def exit_zero(self, job, out=b""):
        self.jobs.pop(job.request, None)
        elapsed = int((time.monotonic() - job.begun) * 1e6)
        self.send(T_EXIT, pack([0, 0, elapsed, out, b"", 0]), job.request)

    # start

    def start(self):
        """Takes stdin and stdout for the frames, and leaves /dev/null there."""
        import fcntl

        global AT_START
        self.pid, self.may_stand = os.getpid(), can_stand()
        AT_START = frozenset(sys.modules)
        self.dont_write_bytecode = sys.dont_write_bytecode
        sys.dont_write_bytecode = True
        self.environ = environ_at_start()
        try:
            self.cwd = os.getcwd()
        except OSError:
            self.cwd = None
        stock_sys_path(self.cwd)
        self.locale = locale_of(self.environ)
        self.ahead = Ahead()
        self.control_in = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
        self.control_out = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        wake_r, self.wake_w = os.pipe()
        for fd in (self.control_in, self.control_out, wake_r, self.wake_w):
            os.set_blocking(fd, fd == self.control_out)
            self.own_fds.add(fd)
        self.signals_at_start = {}
        self.mask_at_start = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        for name in ("SIGCHLD", "SIGTERM", "SIGHUP", "SIGINT"):
            signum = getattr(signal, name)
            self.signals_at_start[signum] = signal.getsignal(signum)
            if name == "SIGCHLD" or self.signals_at_start[signum] != signal.SIG_IGN:
                signal.signal(signum, self.on_signal)
        signal.set_wakeup_fd(self.wake_w)
        self.watch(wake_r, select.POLLIN, self.on_wake)
        self.watch(self.control_in, select.POLLIN, self.on_input)
        gc.disable()
        self.executable = self.executable_state()
        self.out += b"\nCHURTEN-" + self.nonce + b"-READY\n"
        self.hello()
        # Requests may have been sent with the start. Nothing of them begins before
        # this is out: who never hears it knows that nothing began.
        self.flush()
        os.set_blocking(self.control_out, False)

    def hello(self):
        from _frozen_importlib_external import MAGIC_NUMBER

        info = [
            "python", sys.executable or "",
            "version", "%d.%d.%d" % sys.version_info[:3],
            "magic", MAGIC_NUMBER.hex(),
            "pid", os.getpid(),
            "uid", os.getuid(),
            "platform", sys.platform,
            "home", os.path.expanduser("~"),
            "hostname", os.uname().nodename,
            "interpreters", self.interpreters,
            "path", os.environ.get("PATH", ""),
        ]  # fmt: skip
        self.send(T_HELLO, pack(info))

    def executable_state(self):
        try:
            info = os.stat(sys.executable)
            return info.st_dev, info.st_ino, info.st_mtime
        except (OSError, TypeError, ValueError):
            return None

    # the loop

    def on_signal(self, signum, stack):
        self.signalled = True
        if signum != signal.SIGCHLD:
            self.ending = self.killed = True

    def on_wake(self, fd, events):
        try:
            os.read(fd, 4096)
        except OSError:
            pass

    def loop(self):
        while not self.ending:
            self.turn(self.next_time())
            if self.stale and not (self.jobs or self.subs or self.out):
                break
        self.shutdown()

    def turn(self, until):
        fetches = self.fetches()
        wait = None
        if until is not None:
            wait = max(0, int((until - time.monotonic()) * 1000) + 1)
        if fetches:
            wait = 0
        for fd, events in self.poll.poll(wait):
            known = self.handlers.get(fd)
            if known is not None:
                known[1](fd, events)
        if self.signalled:
            self.signalled = False
            for job in self.everyone():
                job.on_sigchld()
        now = time.monotonic()
        for job in self.everyone():
            due = job.next_time()
            if due is not None and now >= due:
                job.on_time(now)
        self.leaving = [job for job in self.leaving if job.pid is not None]
        if self.sweep_at is not None and now >= self.sweep_at:
            self.sweep_at = None
            while self.sweep_where:
                sweep(self.sweep_where.pop())
        if not self.ending:
            self.take_frames()
            self.begin_links()
        for fetch in fetches:
            if fetch.ready():
                fetch.pump()
        self.flush()
        if self.is_picture_due and not self.jobs:
            self.is_picture_due = False
            self.take_picture()

    def everyone(self):
        """All that have a child process."""
        jobs = [job for job in self.jobs.values() if isinstance(job, Process)]
        return jobs + list(self.subs.values()) + self.leaving + self.idle

    def fetches(self):
        if len(self.out) > WINDOW:
            return []
        return [
            job
            for job in self.jobs.values()
            if isinstance(job, Fetch) and job.ready()
        ]

    def next_time(self):
        times = [job.next_time() for job in self.everyone()] + [self.sweep_at]
        times = [t for t in times if t is not None]
        return min(times) if times else None

    def flush(self, fd=None, events=0):
        try:
            while self.out:
                count = os.write(self.control_out, bytes(self.out[:BODY_MAX]))
                del self.out[:count]
        except BlockingIOError:
            self.watch(self.control_out, select.POLLOUT, self.flush)
            return
        except OSError:
            self.ending = True
            self.out.clear()
        self.unwatch(self.control_out)

    def outlive(self):
        """The connection has gone. What runs goes on to its end, as under a plain
        sshd; a signal still ends it."""
        for job in self.everyone():
            if isinstance(job, SubAgent):
                if job.state == "up":
                    job.close_stdin()
                else:
                    job.stop()
            elif isinstance(job, Process):
                job.alone()
        while not self.killed and (self.subs or self.leaving or self.jobs):
            self.turn(self.next_time())

    def shutdown(self):
        self.ending = True
        for request, job in list(self.jobs.items()):
            if not isinstance(job, Process):
                job.drop()
                del self.jobs[request]
        self.unwatch(self.control_in)
        while self.idle:
            self.idle.pop().leave()
        if not self.killed:
            self.outlive()
        jobs = self.everyone()
        for job in jobs:
            if isinstance(job, SubAgent):
                job.stop()
            elif isinstance(job, Process) and job.pid is not None and job.status is None:
                job.cancel()
        until = time.monotonic() + 3.5
        while time.monotonic() < until:
            waiting = [j for j in jobs if j.pid is not None and j.kill_at is not None]
            if not waiting:
                break
            times = [j.next_time() for j in waiting if j.next_time() is not None]
            self.turn(min([until] + times))
        for library in self.libraries:
            library.remove()

    # frames

    def on_input(self, fd, events):
        try:
            data = os.read(fd, BODY_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.ending = True
            return
        self.input += data
        self.take_frames()

    def closing(self):
        """A request may be about the account of a sub-agent that was closed
        before: it waits until that one has gone, or will not go."""
        return any(isinstance(job, SubAgent) and job.kill_at for job in self.leaving)

    def take_frames(self):
        at = 0
        while True:
            head = frame_at(self.input, at)
            if head is None:
                break
            kind, flags, index, request, length = head
            if kind in (T_RUN, T_EXEC) and self.closing():
                break
            end = at + HEADER.size + length
            link = flags & F_LINK and kind in (T_RUN, T_EXEC, T_PUT)
            waits = isinstance(self.jobs.get(request), Link)
            if index and kind != T_START and not (link or waits):
                self.on_sub_frame(index, kind, request, self.input[at:end])
            else:
                body = bytes(self.input[at + HEADER.size : end])
                if flags & F_ZLIB:
                    body = inflate(body, kind)
                if link:
                    part = self.input[at:end]
                    part[4] &= ~F_LINK
                    self.on_link((kind, index, request), body, part)
                else:
                    self.on_frame(kind, flags, index, request, body)
            at = end
        del self.input[:at]

    # chains

    def on_link(self, head, body, part):
        request = head[2]
        token, turn, rc, out, err = unpack(unpack(body, 1)[-1], 5)[:5]
        turn = number(turn)
        if request in self.jobs or request in self.links or request == 0:
            raise ProtocolError("request number in use")
        link = self.jobs[request] = Link(self, head, body, part)
        chain = self.chains.get(token)
        if chain is None and turn == 0:
            self.forget_chains()
            chain = self.chains[token] = Chain()
        if chain is None or not chain.takes(turn):
            link.fail("chain", BROKEN)
            return
        chain.held[turn] = link
        chain.foretold[request] = turn, head[1], rc, out, err
        self.links[request] = chain

    def forget_chains(self):
        if len(self.chains) < Chain.MOST:
            return
        for token in [t for t, chain in self.chains.items() if not chain.foretold]:
            del self.chains[token]

    def begin_links(self):
        """Those whose turn it is, as long as beginning one ends it."""
        todo = True
        while todo and self.links:
            todo = [c for c in set(self.links.values()) if c.turn in c.held]
            for chain in todo:
                chain.held.pop(chain.turn).begin()

    def link_said(self, kind, request, body):
        if kind in (T_EXIT, T_FAILED):
            self.links.pop(request).ended(kind, request, body)
        elif kind == T_DATA:
            self.links[request].spilled.add(request)

    def break_links(self, index):
        """A sub-agent has gone: what depends on its requests will not begin. (They
        themselves have failed with it.)"""
        for request, chain in list(self.links.items()):
            if request in chain.foretold and chain.foretold[request][1] == index:
                self.jobs.pop(request, None)
                self.link_said(T_FAILED, request, b"")


    def on_sub_frame(self, index, kind, request, part):
        sub = self.subs.get(index)
        if sub is None or sub.state != "up":
            if kind in (T_RUN, T_EXEC, T_PUT, T_FETCH):
                failure = Failure("agent", "agent", "no such sub-agent")
                self.send(T_FAILED, pack(failure.items), request, 0, index)
            elif kind == T_CANCEL and sub is not None:
                sub.cancel()
            elif kind == T_CLOSE and sub is not None:
                sub.stop()
        elif kind == T_CLOSE and request == 0:
            sub.stop()
        else:
            sub.forward(kind, request, part)

    def on_frame(self, kind, flags, index, request, body):
        if kind in (T_DATA, T_WINDOW, T_CANCEL):
            job = self.jobs.get(request)
            if job is None:
                return  # it has ended meanwhile
            if kind == T_DATA:
                job.on_data(flags, body)
            elif kind == T_WINDOW:
                if len(body) != 4:
                    raise ProtocolError("bad window")
                job.on_window(int.from_bytes(body, "big"))
            else:
                job.cancel()
        elif kind == T_PING:
            if request and request not in self.jobs:
                lost = Failure("agent", "agent", "the agent does not know this request", 1)
                self.fail(request, lost)
            else:
                self.send(T_PONG, body[:64], request, 0, index)
        elif kind in (T_PONG, T_CLOSE):
            pass
        elif kind == T_PAYLOAD:
            items = unpack(body, 2)
            if items[0] not in self.payloads:
                self.payloads[items[0]] = payload_of(items)
        elif kind in (T_START, T_RUN, T_EXEC, T_PUT, T_FETCH):
            self.on_request(kind, index, request, body)
        else:
            raise ProtocolError("frame type %d is not for an agent" % kind)

    def on_request(self, kind, index, request, body):
        if kind != T_START and (request in self.jobs or request == 0):
            raise ProtocolError("request number in use")
        try:
            if kind == T_START:
                if index == 0 or index in self.subs:
                    raise ProtocolError("agent number in use")
                self.subs[index] = SubAgent(self, index, request, body)
            elif kind == T_RUN:
                self.on_run(request, Run(body))
            elif kind == T_EXEC:
                self.on_exec(request, unpack(body, 5))
            elif kind == T_FETCH:
                self.jobs[request] = Fetch(self, request, body)
            else:
                self.on_put(request, body)
        except Failure as failure:
            if kind == T_START:
                self.send(T_FAILED, pack(failure.items), request, 0, index)
            else:
                self.fail(request, failure)
        except OSError as error:
            path = unpack(body, 1)[0] if kind in (T_PUT, T_FETCH) else b"agent"
            self.fail(request, file_failure(error, path, 0))

    # RUN

    def on_run(self, request, run):
        if self.executable_state() != self.executable:
            self.stale = True
            raise Failure("agent", "agent", "interpreter changed")
        payload = self.payloads.get(run.key)
        if payload is None:
            raise Failure("agent", "agent", "no such payload")
        if run.form not in (b"218", b"219"):
            raise Failure("unsupported", "agent", "unknown form of payload")
        self.prepare(payload, run)
        library = payload.library
        job = Process(self, request, run.timeout_ms)
        self.jobs[request] = job
        if self.needs_fresh(run.env) or library.other_core(self.ahead.library):
            env = dict(self.environ, **run.env)
            argv = [sys.executable]
            job.stdin_end = True
            job.start(
                lambda: exec_child(self, argv, env, argv[0]), fresh_script(library, run)
            )
            return
        learn = None
        if payload.ahead and payload.runs == 1 and library is self.ahead.library:
            import mmap

            learn = job.learn = mmap.mmap(-1, 65536)
            job.payload = payload
        if learn is None and run.stays and library is self.ahead.library and self.may_stand:
            key = self.ahead.age, run.key, run.module, run.form, run.env, run.rlimit_nofile

            def begin():
                self.take_picture()
                stays = self.may_stand and has_memory()
                standing = Standing(self, key) if stays else None
                job.start(
                    lambda: module_child(self, library, run, None, standing), None, standing
                )

            if self.given(job, key, run.body, begin):
                job.accepted()
            else:
                begin()
            return
        job.start(lambda: module_child(self, library, run, learn))

    def take_picture(self):
        try:
            self.picture.refresh()
        except Exception:  # an object that cannot be looked at
            self.may_stand = False

    def given(self, job, key, message, otherwise):
        """Whether an idle child of that key (None: any in the agent's environment) has
        taken it. otherwise: called if the child turns out not to have begun."""
        if len(message) > STANDING_BODY:
            return False
        for standing in self.idle[::-1]:
            if standing.key == key or (key is None and not standing.key[4]):
                if job.take(standing, message):
                    job.otherwise = otherwise
                    return True
                return False
        return False

    def prepare(self, payload, run):
        """Before the fork: the zip file, compiled code, imports done ahead."""
        self.ahead.refresh()
        if payload.library is None:
            for library in self.libraries:
                if library.agrees(payload):
                    break
            else:
                library = self.new_library(run)
            library.add(payload)
        library = payload.library
        library.check()
        payload.runs += 1
        path = run.module.replace(".", "/") + ".py"
        if path in library.crcs:
            library.know_folder(os.path.dirname(path))
            try:
                library.code(path)
            except (SyntaxError, ValueError):
                pass  # the child will say so
        self.ahead.prepare(payload, run.module, run.form)
        # The next of its kind may stand: time for it when nobody waits.
        self.is_picture_due = run.stays and payload.runs == 1 and self.may_stand

    def new_library(self, run):
        name = "ansible_%s_payload" % run.module.rpartition(".")[2]
        folder = make_folder(run.temp, name + "_")
        lock = lock_folder(folder)
        if lock is not None:
            self.own_fds.add(lock)
        self.sweep_at = time.monotonic() + SWEEP_AFTER
        self.sweep_where.add(os.path.dirname(folder))
        library = Library(os.path.join(folder, name + ".zip"))
        self.libraries.append(library)
        library.importer = make_importer(library)
        sys.path_hooks.insert(0, library.importer)
        return library

    def learned(self, job):
        size = struct.unpack(">I", job.learn[:4])[0]
        if 0 < size <= len(job.learn) - 4:
            names = job.learn[4 : 4 + size].decode("utf-8", "replace").split("\n")
            self.ahead.run(job.payload, names)
        job.learn.close()
        job.learn = None

    def needs_fresh(self, env):
        for name in env:
            if name.startswith(START_VARIABLES):
                return True
        if not any(name == "LANG" or name.startswith("LC_") for name in env):
            return False
        return locale_of(dict(self.environ, **env)) != self.locale

    # EXEC and PUT

    def on_exec(self, request, items):
        command, env, timeout_ms, stdin, shell = items[:5]
        if stdin not in (b"null", b"data") or shell not in (b"login", b"sh"):
            raise ProtocolError("bad EXEC")
        env = dict(self.environ, **environment(env))
        job = Process(self, request, number(timeout_ms))
        self.jobs[request] = job

        job.begun = time.monotonic()
        act = plain = None
        if shell == b"login" and stdin == b"null" and not items[1]:
            act = shell_act(command)
        if act is not None:
            plain = self.plain_shell()
        if plain is not None and self.do_here(act, plain):
            self.send(T_ACCEPTED, b"", request)
            self.exit_zero(job)
            return
        if plain is not None:
            job.makes = act.makes()

        def begin():
            self.start_exec(job, items, env, act, plain)

        if plain is not None and self.idle:
            words = [ACT, command, plain.marks, plain.path, plain.home]
            job.is_act = self.given(job, None, pack(words + list(plain.programs)), begin)
        if not job.is_act:
            begin()

    def start_exec(self, job, items, env, act, plain):
        command, stdin, shell = items[0], items[3], items[4]
        if job.makes:
            import mmap

            job.flag = mmap.mmap(-1, 1)

        def child():
            if plain is not None:
                do_in_child(act, plain, env, job.flag)
            if shell == b"login":
                login_child(self, os.fsdecode(command), env)
            exec_child(self, ["sh", "-c", os.fsdecode(command)], env, "/bin/sh")

        job.start(child, b"" if stdin == b"data" else None)

    def plain_shell(self):
        """What is known of the account's shells; None until a probe has said it."""
        if time.monotonic() - self.probed > Probe.AGE and Probe.NUMBER not in self.jobs:
            self.plain, self.probed = None, time.monotonic()
            probe = self.jobs[Probe.NUMBER] = Probe(self)
            try:
                probe.start(probe.child)
            except Failure:
                del self.jobs[Probe.NUMBER]
        return self.plain

    MADE_FOR = 10.0  # seconds

    def made_folder(self, path):
        """A child has looked at the account's shells, and made a folder itself: what
        comes for that folder within seconds needs no second look."""
        now = time.monotonic()
        self.made = {p: t for p, t in self.made.items() if now - t < self.MADE_FOR}
        self.made[path] = now

    def do_here(self, act, plain):
        """Does what is quick without a child. It may wait for a file server, but no
        longer than the PUT before it, which writes into that folder from here."""
        now = time.monotonic()
        made = [p for p, t in self.made.items() if now - t < self.MADE_FOR]
        try:
            if not made or not act.is_quick(made):
                return False
            act.do(plain)
        except (OSError, ValueError):
            return False
        return True

    def on_put(self, request, body):
        path, mode, _ = unpack(body, 3)[:3]
        try:
            special = not stat.S_ISREG(os.stat(path).st_mode)
        except OSError:
            special = False
        if not special:
            if mode:
                try:
                    int(mode[1:] if mode[:1] == b"~" else mode, 8)
                except ValueError:
                    raise ProtocolError("bad mode")
            self.jobs[request] = Put(self, request, body)
            return
        job = Process(self, request, 0)
        self.jobs[request] = job
        argv = ["sh", "-c", 'exec cat > "$1"', "sh", os.fsdecode(path)]
        job.on_end = self.put_ended
        job.start(lambda: exec_child(self, argv, self.environ, "/bin/sh"), b"")

    def put_ended(self, job):
        if job.status == (0, 0):
            self.send(T_EXIT, pack([0, 0, job.elapsed, b"", b"", 0]), job.request)
            return
        said = text(bytes(job.buffers[STDERR]).strip()) or "cat failed"
        failure = Failure("file", "file", said, 1)
        self.send(T_FAILED, pack(failure.items), job.request)


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


ROOM = 16 * 1024 * 1024  # bytes that a place for a library should have to spare


def has_room(place):
    try:
        info = os.statvfs(place)
    except (AttributeError, OSError):
        return True  # nobody knows: mkdir will say
    files = info.f_favail or not info.f_files  # some filesystems count none
    return bool(files) and info.f_bavail * info.f_frsize >= ROOM


def make_folder(wanted, prefix):
    """A new 0700 directory in `wanted` or where tempfile would make one, in memory
    if these are full or read-only; a full one at last."""
    places = [wanted] + [os.environ.get(n) for n in ("TMPDIR", "TEMP", "TMP")]
    places += ["/tmp", "/var/tmp", "/usr/tmp", ".", "/dev/shm"]
    places = [os.path.realpath(os.path.expanduser(p)) for p in places if p]
    error = None
    # (sorted() keeps the order of those that are alike)
    for place in sorted(places, key=lambda p: not has_room(p)):
        folder = os.path.join(place, prefix + os.urandom(4).hex())
        try:
            os.mkdir(folder, 0o700)
            return folder
        except OSError as problem:
            error = problem
    raise Failure("agent", "agent", "no temporary directory: %s" % error)


SWEEP_AFTER = 2.0  # seconds from the first module on: nobody waits for it then
SWEEP_AGE = 86400  # a module may outlive its agent, and need its files
SWEEP_MOST = 10000  # names of a directory that are looked at


def lock_folder(folder):
    """A descriptor that holds the lock of a library's folder for as long as this
    agent lives, however it ends. None without locks or descriptors: then its age
    alone keeps others off."""
    import fcntl

    fd = None
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if fd is not None:
            os.close(fd)
        fd = None
    return fd


def sweep(place):
    """Removes folders of libraries whose agents were killed, in a directory that
    others may write to: by descriptors, never through a link."""
    import re

    known = re.compile(r"(ansible_\w+_payload)_[0-9a-f]{8}")
    try:
        with os.scandir(place) as entries:
            for count, entry in enumerate(entries):
                if count >= SWEEP_MOST:
                    break
                match = known.fullmatch(entry.name)
                if match:
                    sweep_folder(entry.path, match.group(1) + ".zip")
    except OSError:
        pass


def sweep_folder(path, name):
    """Only one that is ours, old, unlocked, and holds a library and no more."""
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        info = os.fstat(fd)
        if (
            info.st_uid != os.geteuid()
            or stat.S_IMODE(info.st_mode) != 0o700
            or time.time() - info.st_mtime < SWEEP_AGE
        ):
            return
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        names = os.listdir(fd)
        if name not in names or not set(names) <= {name, name + ".new"}:
            return
        if not is_library(name, fd):
            return
        for one in names:
            os.unlink(one, dir_fd=fd)
        os.rmdir(path)
    except OSError:
        pass
    finally:
        os.close(fd)


def is_library(name, folder_fd):
    """Whether a zip file begins as Library does. Stock's folders have the same
    names, but another file first; their modules may still run."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(name, flags, dir_fd=folder_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        head = os.read(fd, LOCAL.size + 16)
    finally:
        os.close(fd)
    return head[:4] == b"PK\3\4" and head[LOCAL.size :] == b"sitecustomize.py"


def main(nonce, interpreters):
    """Called by the bootstrap's loader in a fresh `python -c`."""
    sys.argv = [""]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv = sys.orig_argv[:1]
    sys.modules["__main__"].__file__ = "<stdin>"
    agent = Agent(nonce, interpreters)
    agent.start()
    try:
        agent.loop()
    except ProtocolError:
        agent.killed = True
        agent.shutdown()
    except BaseException as error:
        import traceback

        trace = "".join(traceback.format_tb(error.__traceback__)[-4:])
        agent.log("error", "agent: %r\n%s" % (error, trace))
        agent.killed = True
        agent.shutdown()
    finally:
        os._exit(0)
