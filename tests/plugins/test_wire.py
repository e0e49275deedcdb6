"""Results on their way from a fiber to the strategy: a copy of plain data is what pickle would have made, and what is not plain goes through pickle."""

import datetime
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest

from churten import _core, compat

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError:  # the environments of `make test-matrix` have not got it
    st = None

pytestmark = pytest.mark.skipif(compat.core_version() < (2, 19), reason="earlier lines send their results through pickle alone")

if compat.core_version() >= (2, 19):
    from ansible._internal._datatag import _tags
    from ansible.module_utils._internal._datatag import AnsibleTagHelper

    from churten.compat import line_219

    ORIGIN = _tags.Origin(path="/a/play.yml", line_num=3, col_num=4)

if compat.core_version() >= (2, 19) and st:
    TAGS = st.sampled_from(
        [[], [ORIGIN], [ORIGIN, _tags.TrustedAsTemplate()], [_tags.SourceWasEncrypted()], [_tags.VaultedValue(ciphertext="$ANSIBLE_VAULT")]]
    )

    def tagged(values):
        return st.builds(lambda value, tags: AnsibleTagHelper.tag(value, tags) if tags else value, values, TAGS)

    LEAVES = tagged(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3) | st.binary(max_size=3))
    KEYS = tagged(st.text(max_size=3) | st.integers())
    VALUES = st.recursive(
        LEAVES,
        lambda inner: (
            tagged(st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))
            | st.lists(inner, max_size=2).map(tuple)
            | inner.map(lambda one: [one, one])
        ),
        max_leaves=10,
    )


def by_pickle(message):
    return pickle.loads(ForkingPickler.dumps(message))


def plain(message):
    return _core.plain_copy(message, line_219._LEAVES, compat.adapter().boxes, line_219._TAGS)


def messages(value):
    """The value inside everything a worker of this line sends."""
    adapter = compat.adapter()
    yield value
    for record in adapter.records:
        names = adapter.boxes[record]
        message = object.__new__(record)
        for name in names:
            object.__setattr__(message, name, {"v": value, name: value})
        yield message


def same(one, two, source):
    """Equal values, types and tags; no container shared with the source."""
    assert type(one) is type(two)
    assert getattr(one, "_ansible_tags_mapping", None) == getattr(two, "_ansible_tags_mapping", None)
    if isinstance(one, dict):
        assert one is not source and list(one) == list(two)
        for a, b in zip(one, two, strict=True):
            same(a, b, None)
        for a, b, c in zip(one.values(), two.values(), source.values(), strict=True):
            same(a, b, c)
    elif isinstance(one, (list, tuple)):
        assert one is not source or type(one) is tuple
        for a, b, c in zip(one, two, source, strict=True):
            same(a, b, c)
    elif type(one) in compat.adapter().boxes:
        assert one is not source
        for name in compat.adapter().boxes[type(one)]:
            same(getattr(one, name), getattr(two, name), getattr(source, name))
    else:
        assert one == two


def test_all_records_are_known():
    adapter = compat.adapter()
    assert adapter.records and all(adapter.boxes.get(record) for record in adapter.records)


if compat.core_version() >= (2, 19) and st:

    @settings(max_examples=300, deadline=None)
    @given(VALUES)
    def test_the_same_as_pickle(value):
        for message in messages(value):
            copy = plain(message)
            assert copy is not NotImplemented or b"TaggedBytes" in pickle.dumps(message)
            same(compat.adapter().through_pickle(message), by_pickle(message), message)


def test_a_result():
    """As a command gives it, with the task's keywords."""
    told = {"changed": True, "rc": 0, "stdout": "x", "stdout_lines": ["x"], "invocation": {"module_args": {"argv": None, "chdir": None}}, "delta": 0.5}
    text = AnsibleTagHelper.tag("echo", [ORIGIN, _tags.TrustedAsTemplate()])
    fields = AnsibleTagHelper.tag({"args": {"_raw_params": text}, "when": AnsibleTagHelper.tag([text], [ORIGIN]), "name": text, "loop": None}, [ORIGIN])
    for message in messages({"return_data": told, "task_fields": fields}):
        assert plain(message) is not NotImplemented
        same(compat.adapter().through_pickle(message), by_pickle(message), message)


def test_one_container_twice_and_inside_itself():
    inner = ["x"]
    loop = {"a": inner, "b": [inner]}
    loop["self"] = loop
    copy = plain(loop)
    assert copy["a"] is copy["b"][0] and copy["a"] is not inner and copy["self"] is copy and copy is not loop


class Text(str):
    pass


class Box(dict):
    pass


@pytest.mark.parametrize(
    "odd", [Text("x"), Box(), {1}, frozenset(), bytearray(), datetime.datetime(2026, 1, 1), ValueError("x"), object, 1j, {(1, 2): 3}, {Text("x"): 1}], ids=repr
)
def test_what_is_not_plain(odd):
    for message in messages([{"deep": (odd,)}]):
        assert plain(message) is NotImplemented
    assert repr(compat.adapter().through_pickle([odd])) == repr(by_pickle([odd]))


def test_what_cannot_be_sent_is_refused_as_before():
    with pytest.raises(Exception) as stock:
        by_pickle([lambda: 0])
    with pytest.raises(Exception) as ours:
        compat.adapter().through_pickle([lambda: 0])
    assert type(ours.value) is type(stock.value)


def test_a_tag_that_is_not_known():
    from ansible.module_utils._internal._datatag._tags import Deprecated
    from ansible.module_utils.datatag import deprecate_value

    value = deprecate_value("x", "old", version="9.9")
    assert Deprecated.is_tagged_on(value)
    assert plain([value]) is NotImplemented
    assert Deprecated.is_tagged_on(compat.adapter().through_pickle([value])[0])


def test_records_that_are_more_than_their_slots():
    import dataclasses

    @dataclasses.dataclass(slots=True)
    class Plain:
        a: int

    @dataclasses.dataclass
    class WithDict:
        a: int

    class Own(Plain):
        pass

    @dataclasses.dataclass(slots=True)
    class Reduces:
        a: int

        def __reduce__(self):
            return Plain, (1,)

    assert line_219._slots(Plain) == ("a",)
    assert [line_219._slots(cls) for cls in (WithDict, Own, Reduces, int)] == [None] * 4
