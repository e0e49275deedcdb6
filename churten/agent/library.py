# SPDX-License-Identifier: GPL-3.0-or-later
"""Payloads, and the zip file they are merged into."""

import errno
import marshal
import os
import struct
import sys
import zlib

from churten.agent.frames import T_RUN, ProtocolError, inflate

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
        self.lock = None  # see lock_folder
        self.is_closed = False  # no source is read from it
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

        def get_source(self, fullname):
            if library.is_closed:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), library.path)
            return super(Importer, self).get_source(fullname)

    def importer(path):
        if path == library.path or path.startswith(library.path + os.sep):
            return Importer(path)
        raise ImportError("not of this library")

    return importer
