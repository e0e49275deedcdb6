"""The C core. Functions and types without a line here are not typed yet."""

import typing as t

VERSION: str

class Error(RuntimeError):
    """A negative `enum ch_err` (csrc/ch.h)."""

def facts_read(path: str | bytes, limit: int, /) -> bytes: ...
def facts_write(path: str | bytes, data: bytes, mode: int, /) -> None: ...
def facts_encode(
    value: object,
    style: str,
    str_types: tuple[type, ...],
    key_types: tuple[type, ...],
    leaf: t.Callable[[t.Any], str] | None,
    /,
) -> bytes: ...
def facts_decode(
    data: bytes,
    envelope: bool,
    hook_keys: tuple[str, ...],
    hook: t.Callable[[dict[str, t.Any]], object] | None,
    /,
) -> object: ...
def __getattr__(name: str) -> t.Any: ...
