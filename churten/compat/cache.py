"""What the running ansible-core writes into a fact cache file, and its own encoders for it.

| core | file | content |
|---|---|---|
| up to 2.18 | `<prefix><host>` | plain JSON, indent=4, sorted keys, core's AnsibleJSONEncoder |
| 2.19 and later | `<prefix>s<schema>_<host>` | `{"__payload__": "<JSON of the _cache_persistence profile>"}` |
| 2.22 and later, `persist_metadata` off | `<prefix><host>` | plain JSON, no indent |

Inventory plugins reach a cache plugin through core's own wrapper, which has made keys and values opaque before we see them: form `interposed`.
"""

from __future__ import annotations

import dataclasses
import json
import typing as t

from ansible.errors import AnsibleError
from ansible.plugins.cache.jsonfile import CacheModule as BuiltinJsonfile
from ansible.release import __version__ as core_version

PAYLOAD = "__payload__"


@dataclasses.dataclass(frozen=True)
class Form:
    """One way to name and write cache files. The `fast_*` fields are arguments of `churten._core.facts_encode` and `facts_decode`."""

    key_prefix: str  # before the host name, after the user's prefix
    style: str  # "indent", "compact" or "envelope"
    str_types: tuple[type, ...]  # str subclasses that are written as str
    key_types: tuple[type, ...]
    leaf: t.Callable[[object], str] | None  # core's text for one value that is not plain
    hook_keys: tuple[str, ...]  # an object holding one of these is more than an object
    hook: t.Callable[[dict[str, object]], object] | None
    encode: t.Callable[[object], bytes]  # core's own way, for everything
    decode: t.Callable[[bytes], object]
    keeps_object: bool  # core returns the object that was set, not what the file says
    fast: bool = True  # False: this core does something we do not know, always take its own way


def has_persist_metadata() -> bool:
    """Whether the built-in plugin of this core knows the option `persist_metadata`."""
    return isinstance(vars(BuiltinJsonfile).get("_persistent"), property)


def has_interposer() -> bool:
    """Whether this core wraps persistent cache plugins (2.19 and later)."""
    return tuple(int(n) for n in core_version.split(".")[:2]) >= (2, 19)


def form_for(persist_metadata: bool, interposed: bool) -> Form:
    """The form of the running core. Raises AnsibleError when core hides its encoder from us."""
    if not has_interposer():
        return _form_218()
    if interposed or not persist_metadata:
        return _form_plain(keeps_object=True)
    try:
        return _form_219()
    except (ImportError, AttributeError) as ex:
        raise AnsibleError(
            f"churten.core.jsonfile does not know the cache format of ansible-core {core_version}; use fact_caching = ansible.builtin.jsonfile"
        ) from ex


def _form_218() -> Form:
    from ansible.parsing.ajson import AnsibleJSONDecoder, AnsibleJSONEncoder
    from ansible.parsing.yaml.objects import AnsibleUnicode
    from ansible.utils.unsafe_proxy import AnsibleUnsafeText

    def encode(value: object) -> bytes:
        return json.dumps(value, cls=AnsibleJSONEncoder, sort_keys=True, indent=4).encode("utf-8")

    def decode(data: bytes) -> object:
        return json.loads(data.decode("utf-8"), cls=AnsibleJSONDecoder)

    texts = (AnsibleUnsafeText, AnsibleUnicode)
    hook_keys = ("__ansible_vault", "__ansible_unsafe")
    return Form(
        "", "indent", texts, texts, None, hook_keys, AnsibleJSONDecoder().object_hook, encode, decode, keeps_object=True
    )


def _form_219() -> Form:
    from ansible._internal._json._profiles import _cache_persistence
    from ansible.module_utils._internal import _datatag
    from ansible.module_utils._internal._json import _profiles

    profile = _cache_persistence._Profile
    encoder, decoder = _cache_persistence.Encoder, _cache_persistence.Decoder

    def text(value: object) -> str:
        return json.dumps(value, cls=encoder)

    def encode(value: object) -> bytes:
        return json.dumps({PAYLOAD: json.dumps(value, cls=encoder)}).encode("utf-8")

    def decode(data: bytes) -> object:
        return json.loads(json.loads(data.decode("utf-8"))[PAYLOAD], cls=decoder)

    base = _profiles._JSONSerializationProfile
    type_key = _datatag.AnsibleSerializable._TYPE_KEY
    # The C encoder and decoder stand in for the profile's treatment of plain values only; if the profile changes that, they are not used.
    fast = (
        profile.pre_serialize.__func__ is base.pre_serialize.__func__
        and profile.post_deserialize.__func__ is base.post_deserialize.__func__
        and set(profile.deserialize_map) == {type_key}
        and type_key.startswith("__ansible_")
        and not profile.encode_strings_as_utf8
        and not {str, int, float, bool, type(None), dict, list} & set(profile.serialize_map)
        and profile.handle_key.__func__ is base._handle_key_str_fallback.__func__
    )
    return Form(
        f"s{profile.schema_id}_",
        "envelope",
        (),
        (_datatag._AnsibleTaggedStr,),
        text,
        (type_key,),
        decoder().object_hook,
        encode,
        decode,
        keeps_object=False,
        fast=fast,
    )


def _form_plain(keeps_object: bool) -> Form:
    def encode(value: object) -> bytes:
        return json.dumps(value).encode("utf-8")

    def decode(data: bytes) -> object:
        return json.loads(data.decode("utf-8"))

    return Form("", "compact", (), (), json.dumps, (), None, encode, decode, keeps_object)


def file_name(plugin: t.Any, key: str) -> str:
    """The path core's own file cache uses for `key` (2.20 and later replace names with path characters by a hash)."""
    return str(plugin._get_cache_file_name(key))


def directory(plugin: t.Any) -> str:
    """The directory core's base class resolved and checked."""
    return str(plugin._cache_dir)


def timeout_s(plugin: t.Any) -> float:
    """Seconds after which a file is too old; 0 is never."""
    return float(plugin._timeout)
