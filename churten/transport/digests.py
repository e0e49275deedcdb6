"""The MD5 of large files that go to several hosts.

Core's module `copy` reads a file that has come twice: for its SHA-1, which is compared with the controller's, and for its MD5, which is only in the result.
The second takes most of the module's time. Content that has the SHA-1 of ours has its MD5 as well; so the module's request says both (docs/protocol.md,
`known`), and where the target has found the one it need not compute the other.

Both are computed here from the same bytes, in a thread, beginning when the file goes to a second host. Who asks before that is done gets no answer.
"""

from __future__ import annotations

import hashlib
import os
import threading
import typing as t

from churten import late

_CHUNK = 1 << 20
_LIMIT = 1000
_CHECKSUM = late.pattern(rb'"checksum": "([0-9a-f]{40})"')

_sent: dict[tuple[int, ...], int] = {}  # device, number, size and times of a file -> to how many hosts
_known: dict[bytes, bytes] = {}  # SHA-1 -> MD5, in hex


def sending(file: t.BinaryIO, found: os.stat_result) -> None:
    """A file is being sent to one more host."""
    key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if len(_sent) >= _LIMIT:
        _sent.clear()
    _sent[key] = _sent.get(key, 0) + 1
    if _sent[key] == 2:
        fd = os.dup(file.fileno())
        try:
            threading.Thread(target=_learn, args=(fd,), daemon=True).start()
        except RuntimeError:  # no more threads
            os.close(fd)


def _learn(fd: int) -> None:
    try:
        sha1, md5, at = hashlib.sha1(), hashlib.md5(), 0
        while chunk := os.pread(fd, _CHUNK, at):
            sha1.update(chunk)
            md5.update(chunk)
            at += len(chunk)
    except (OSError, ValueError):  # no MD5 where policy forbids it
        return
    finally:
        os.close(fd)
    if len(_known) >= _LIMIT:
        _known.clear()
    _known[sha1.hexdigest().encode()] = md5.hexdigest().encode()


def known(fqn: str, params: bytes) -> bytes:
    """What a request to run this module may say; empty for nothing."""
    if fqn != "ansible.modules.copy" or not _known:
        return b""
    found = _CHECKSUM.search(params)
    md5 = _known.get(found[1]) if found else None
    return found[1] + b" " + md5 if found and md5 else b""
