# SPDX-License-Identifier: GPL-3.0-or-later
"""The frames of docs/protocol.md, and what a body holds."""

import struct
import zlib

HEADER = struct.Struct(">HBBBBHIII")
MAGIC = 0x4348
VERSION = 1
BODY_MAX = 256 * 1024
BODY_MAX_LARGE = 16 * 1024 * 1024
RAW_MAX = 64 * 1024 * 1024
WINDOW = 1024 * 1024  # DATA bytes under way per request and direction
REST_MAX = 64 * 1024  # bytes of each stream that EXIT carries
F_SETPIPE_SZ, PIPE_WIDE = 1031, 1024 * 1024
PIPE = 64 * 1024  # what a pipe holds, if nobody asks for more

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
