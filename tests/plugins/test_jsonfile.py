"""churten.core.jsonfile: the built-in's files in both directions, and what the built-in does not survive."""

import datetime
import json
import os
import random
import resource
import signal
import stat
import types

import pytest
from ansible.errors import AnsibleError
from ansible.plugins.cache import BaseFileCacheModule
from ansible.release import __version__ as core_version
from playing import command, play

from churten import _core, facts
from churten.compat import cache as compat

OURS = "churten.core.jsonfile"
BUILTIN = "ansible.builtin.jsonfile"
NEW = compat.has_interposer()  # 2.19 and later
PREFIX = "s1_" if NEW else ""

SET = """
- hosts: all
  gather_facts: false
  vars: {word: "w\\u00f6rd \\U0001f600", nested: {b: [1, 2.5, {c: null}], a: "{{ word }}"}}
  tasks:
    - set_fact:
        cacheable: true
        one: 1
        text: "{{ word }}"
        tree: "{{ nested }}"
        empty: [{}, [], ""]
        day: 2020-01-01
        control: "a\\tb\\u0001\\u007f\\"\\\\"
    - set_fact: {cacheable: true, later: "{{ tree.b + [true] }}", big: 123456789012345678901234567890}
    - set_fact: {cacheable: true, one: 2}
"""
SHOW = """
- hosts: all
  gather_facts: false
  tasks:
    - debug: {msg: "{{ [one, text, tree, empty, day|string, control, later, big, ansible_facts|dictsort] }}"}
"""


def cached(where, plugin, text, *words, **more):
    more = {"ANSIBLE_CACHE_PLUGIN_CONNECTION": where / "facts", **more}
    return play(where, text, *words, ANSIBLE_CACHE_PLUGIN=plugin, **more)


def files(where):
    return {path.name: path.read_bytes() for path in sorted((where / "facts").iterdir())}


@pytest.mark.parametrize("prefix", ["", "my_"])
def test_same_files_as_the_builtin_in_both_directions(tmp_path, prefix):
    written, shown = {}, {}
    for plugin in (BUILTIN, OURS):
        where = tmp_path / plugin
        where.mkdir()
        cached(where, plugin, SET, "-c", "local", ANSIBLE_CACHE_PLUGIN_PREFIX=prefix, hosts=("h1", "h2"))
        text = {k: v.replace(plugin.encode(), b"*") for k, v in files(where).items()}
        written[plugin] = text
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (where / "facts").iterdir()}
        assert modes == {0o644}
    assert set(written[OURS]) == {f"{prefix}{PREFIX}h1", f"{prefix}{PREFIX}h2"}
    assert written[OURS] == written[BUILTIN]
    if prefix:
        return
    for writer in (BUILTIN, OURS):
        for reader in (BUILTIN, OURS):
            done = cached(tmp_path / writer, reader, SHOW, ANSIBLE_CACHE_PLUGIN_PREFIX=prefix)
            shown[writer, reader] = done.stdout + done.stderr.replace(writer, "*")
    assert "wörd" in shown[OURS, OURS] or "w\\u00f6rd" in shown[OURS, OURS]
    assert len(set(shown.values())) == 1


def test_gathered_facts_are_read_and_written_back_equal(tmp_path):
    gather = (
        "- {hosts: all, gather_facts: true, gather_subset: [min], tasks: [{set_fact: {mine: 1, cacheable: true}}]}\n"
    )
    # Gathered by the built-in, changed by ours; then the other way round. Smart gathering finds them already there.
    for first, second in ((BUILTIN, OURS), (OURS, BUILTIN)):
        where = tmp_path / first
        where.mkdir()
        cached(where, first, gather)
        before = files(where)
        again = "- {hosts: all, tasks: [{set_fact: {mine: 1, cacheable: true}}, {debug: {var: ansible_facts.distribution}}]}\n"
        done = cached(where, second, again, ANSIBLE_GATHERING="smart")
        assert "Gathering Facts" not in done.stdout
        assert '"ansible_facts.distribution": "' in done.stdout
        after = files(where)
        assert set(after) == set(before)
        assert _values(after) == _values(before)


def _values(found):
    loaded = {name: json.loads(data) for name, data in found.items()}
    loaded = {name: json.loads(v["__payload__"]) if "__payload__" in v else v for name, v in loaded.items()}
    return {
        name: {k: v for k, v in value.items() if k != "mine"} for name, value in loaded.items()
    }  # mine has another origin


def squeezed(text):
    """Without white space: core wraps its warnings."""
    return "".join(text.split())


def test_flush_and_clear_facts(tmp_path):
    cached(tmp_path, OURS, SET, hosts=("h1", "h2"))
    show = "- {hosts: all, gather_facts: false, tasks: [{debug: {msg: '{{ one is defined }}'}}]}\n"
    done = cached(tmp_path, OURS, show, "--flush-cache", "-l", "h1", hosts=("h1", "h2"))
    assert '"msg": false' in done.stdout.lower()
    cached(tmp_path, OURS, SET, hosts=("h1", "h2"))
    clear = "- {hosts: h2, gather_facts: false, tasks: [{meta: clear_facts}, {debug: {msg: '{{ one is defined }}'}}]}\n"
    done = cached(tmp_path, OURS, clear, hosts=("h1", "h2"))
    assert '"msg": false' in done.stdout.lower()
    left = _values(files(tmp_path))
    assert "one" in left[PREFIX + "h1"]
    assert not left.get(PREFIX + "h2")  # 2.22 writes an empty file after every task


def test_timeout(tmp_path):
    cached(tmp_path, OURS, SET)
    path = tmp_path / "facts" / f"{PREFIX}h1"
    show = "- {hosts: all, gather_facts: false, tasks: [{debug: {msg: '{{ one is defined }}'}}]}\n"
    for timeout, seen in ((0, "true"), (86400, "false")):
        os.utime(path, (1, 1))
        done = cached(tmp_path, OURS, show, ANSIBLE_CACHE_PLUGIN_TIMEOUT=timeout)
        assert f'"msg": {seen}' in done.stdout.lower()


@pytest.mark.row("E7")
def test_a_full_disk_keeps_the_old_facts(tmp_path):
    cached(tmp_path, OURS, SET)
    before = files(tmp_path)
    grow = """
- hosts: all
  gather_facts: false
  tasks:
    - set_fact: {cacheable: true, large: "{{ 'x' * 30000 }}"}
    - set_fact: {cacheable: true, large: "{{ 'y' * 30000 }}"}
    - debug: {msg: "{{ large[:2] }} {{ one }}"}
"""

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

    done = cached(tmp_path, OURS, grow, preexec_fn=small_files)
    assert '"msg": "yy 2"' in done.stdout
    assert squeezed(done.stderr).count("theoldfilestaysasitwas") == 1
    assert files(tmp_path) == before


@pytest.mark.row("E8")
def test_a_corrupt_file_is_a_miss(tmp_path):
    cached(tmp_path, OURS, SET)
    path = tmp_path / "facts" / f"{PREFIX}h1"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    show = "- {hosts: all, gather_facts: false, tasks: [{debug: {msg: '{{ one is defined }}'}}, {debug: }]}\n"
    done = cached(tmp_path, OURS, show)
    assert '"msg": false' in done.stdout.lower()
    assert squeezed(done.stderr).count("isnotused:notavalidcachefile") == 1
    # 2.22 writes what it knows of a host after every task.
    assert path.read_bytes() in (good[: len(good) // 2], b'{"__payload__": "{}"}')


def test_ansible_doc_lists_the_builtins_options(tmp_path):
    shown = {}
    for plugin in (BUILTIN, OURS):
        done = command("doc", tmp_path, "-t", "cache", "--json", plugin)
        assert done.returncode == 0, done.stderr
        options = json.loads(done.stdout)[plugin]["doc"]["options"]
        shown[plugin] = {
            name: {k: v for k, v in o.items() if k != "description" and not k.startswith("version_added")}
            for name, o in options.items()
        }
    if not compat.has_persist_metadata():
        shown[OURS].pop("persist_metadata")
    assert _sources(shown[OURS]) == _sources(shown[BUILTIN])


def _sources(options):
    def bare(entries):
        return [{k: v for k, v in entry.items() if not k.startswith("version_added")} for entry in entries]

    return {n: {k: bare(v) if k in ("env", "ini") else v for k, v in o.items()} for n, o in options.items()}


@pytest.mark.skipif(not compat.has_persist_metadata(), reason="this core has no persist_metadata")
def test_without_metadata(tmp_path):
    text = SET.replace("        day: 2020-01-01\n", "")  # the built-in cannot write a date in this form
    for plugin in (BUILTIN, OURS):
        (tmp_path / plugin).mkdir()
        cached(tmp_path / plugin, plugin, text, ANSIBLE_CACHE_JSONFILE_PERSIST_METADATA="0")
    assert list(files(tmp_path / OURS)) == ["h1"]
    assert files(tmp_path / OURS) == files(tmp_path / BUILTIN)


def test_as_inventory_cache(tmp_path):
    plugin = """
DOCUMENTATION = '''
name: counting
short_description: counts how often it is asked
description: [x]
extends_documentation_fragment: [inventory_cache]
options: {plugin: {required: true}}
'''
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable
class InventoryModule(BaseInventoryPlugin, Cacheable):
    NAME = 'counting'
    def verify_file(self, path):
        return path.endswith('counting.yml')
    def parse(self, inventory, loader, path, cache=True):
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        key = self.get_cache_key(path)
        try:
            names = self._cache[key]
        except KeyError:
            names = self._cache[key] = ['asked']
            self.display.display('ASKED')
        for name in names:
            inventory.add_host(name)
"""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "counting.py").write_text(plugin)
    (tmp_path / "counting.yml").write_text("plugin: counting\ncache: true\n")
    seen = []
    for cache in (OURS, OURS, BUILTIN):
        done = command(
            "inventory", tmp_path, "-i", "counting.yml", "--list",
            ANSIBLE_INVENTORY_PLUGINS=tmp_path / "plugins", ANSIBLE_INVENTORY_ENABLED="counting",
            ANSIBLE_INVENTORY_CACHE_PLUGIN=cache, ANSIBLE_INVENTORY_CACHE_CONNECTION=tmp_path / "cache",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "asked" in done.stdout
        seen.append("ASKED" in done.stdout)
    assert seen == [True, False, False]


# The rest is about churten.facts alone.


class Plugin(BaseFileCacheModule):
    """As core makes it, without its loader and options."""

    def __init__(self, where, timeout=0.0, **options):
        self._cache_dir, self._timeout = str(where), timeout
        self._cache, self._sanitized, self._files = {}, {}, {}
        self.plugin_name = "test"
        self._options = options

    def get_option(self, name, hostvars=None):
        return self._options.get(name, {"persist_metadata": True}.get(name))

    def _load(self, filepath): ...

    def _dump(self, value, filepath): ...


class Cache(facts.Store):
    """A store with its plugin and its warnings."""

    def __init__(self, where, wrapped=False, **options):
        self.said = []
        self.where = where
        made = facts.open_store(Plugin(where, **options), wrapped, self.said.append)
        self.__dict__.update(made.__dict__)


@pytest.fixture
def store(tmp_path):
    return Cache(tmp_path)


def fresh(store):
    """What the next process sees."""
    return Cache(store.where)


def test_values_are_decoded_once(store):
    value = {"a": [1, {"b": "c"}]}
    store.set("h", value)
    assert store.get("h") == value
    other = fresh(store)
    assert other.contains("h")
    first = other.get("h")
    assert first == value
    assert other.get("h") is first


@pytest.mark.skipif(not NEW, reason="up to 2.18 core keeps the object itself")
def test_what_was_set_is_read_as_from_the_file(store):
    value = {"t": (1, 2), 3: "x", "list": [1]}
    store.set("h", value)
    assert store.get("h") == {"t": [1, 2], "3": "x", "list": [1]}
    value["list"].append(2)
    assert store.get("h")["list"] == [1]


@pytest.mark.skipif(not NEW, reason="up to 2.18 core keeps the object itself")
def test_a_value_that_cannot_be_encoded_changes_nothing(store):
    store.set("h", {"a": 1})
    held = store.get("h")
    held["bad"] = object()
    with pytest.raises(TypeError):
        store.set("h", held)
    assert store.get("h") == {"a": 1} == fresh(store).get("h")


@pytest.mark.parametrize("name", ["fifo", "directory", "link", "large", "list", "text", "empty", "foreign"])
@pytest.mark.row("E8")
def test_files_that_are_not_used(store, name, monkeypatch):
    path = store.where / (PREFIX + "h")
    if name == "fifo":
        os.mkfifo(path)
    elif name == "directory":
        path.mkdir()
    elif name == "link":
        fresh(store).set("other", {"a": 1})
        path.symlink_to(PREFIX + "other")
    elif name == "large":
        monkeypatch.setattr(facts, "LIMIT", 100)
        path.write_bytes(b"[" + b" " * 100 + b"]")
    else:
        data = {"list": b"[1]", "text": b"hello", "empty": b"", "foreign": b'{"__payload__": 3}'}[name]
        if name == "list" and NEW:
            data = json.dumps({"__payload__": "[1]"}).encode()
        if name == "foreign" and not NEW:
            data = b'{"__payload__": "{"'
        path.write_bytes(data)
    for _ in range(2):
        assert not store.contains("h")
        with pytest.raises(KeyError):
            store.get("h")
    assert len(store.said) == 1 and "is not used" in store.said[0]
    assert path.is_symlink() == (name == "link") and (path.exists() or path.is_fifo())
    store.set("h", {"a": 1})
    if name == "directory":
        assert "was not written" in store.said[1]
    else:
        assert len(store.said) == 1
        assert fresh(store).get("h") == {"a": 1}


def test_unchanged_values_only_refresh_their_file(store):
    path = store.where / (PREFIX + "h")
    store.set("h", {"a": [1]})
    held = store.get("h")
    before = path.stat()
    os.utime(path, (1, 1))
    store.set("h", held)  # not the file we wrote any more: written anew
    assert path.stat().st_ino != before.st_ino
    before = path.stat()
    store.set("h", held)
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns >= before.st_mtime_ns
    assert store.get("h") is held
    held["a"].append(2)
    store.set("h", held)
    assert fresh(store).get("h") == {"a": [1, 2]} == store.get("h")
    path.unlink()
    store.set("h", store.get("h"))
    assert fresh(store).get("h") == {"a": [1, 2]}


def test_missing_is_silent(store):
    assert not store.contains("h")
    store.delete("h")
    assert store.said == [] and store.keys() == []


@pytest.mark.row("E7")
def test_an_error_while_writing_is_said_once(store):
    for host in ("a", "b"):
        store.set(host, {"n": 1})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        for host in ("a", "b"):
            store.set(host, {"n": "2" * 3000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert len(store.said) == 1
    assert store.get("a") == {"n": "2" * 3000}  # this run goes on with what it has
    assert fresh(store).get("a") == fresh(store).get("b") == {"n": 1}
    assert sorted(os.listdir(store.where)) == [PREFIX + "a", PREFIX + "b"]


@pytest.mark.parametrize("host", ["../out", "a/../../out", "/out", "..", ".", "a/b", "x\0y", "h" * 300])
@pytest.mark.row("E14")
def test_names_never_lead_out_of_the_directory(tmp_path, host):
    inside = tmp_path / "in"
    inside.mkdir()
    store = Cache(inside)
    outside = tmp_path / "out"
    outside.write_text('{"secret": 1}')
    assert not store.contains(host)
    store.set(host, {"a": 1})
    assert store.get(host) == {"a": 1}
    store.delete(host)
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]
    assert outside.read_text() == '{"secret": 1}'


def test_a_name_with_a_slash_is_kept_as_core_does(tmp_path):
    store = Cache(tmp_path)
    (tmp_path / (PREFIX + "a")).mkdir()
    expected = Plugin(tmp_path)._get_cache_file_name(PREFIX + "a/b")
    store.set("a/b", {"n": 1})
    assert store.said == []
    assert os.path.isfile(expected)
    assert Cache(tmp_path).get("a/b") == {"n": 1}


def test_a_directory_that_is_a_link_leads_out(tmp_path):
    if hasattr(BaseFileCacheModule, "_sanitize_key"):
        pytest.skip("this core has no subdirectories")
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / (PREFIX + "a")).symlink_to(outside)
    store = Cache(inside)
    store.set("a/b", {"n": 1})
    assert os.listdir(outside) == [] and "leads out" in store.said[0]


def test_keys_and_flush(tmp_path):
    store = Cache(tmp_path, _prefix="p_", timeout=100.0)
    for host in ("a", "b", "old"):
        store.set(host, {"n": 1})
    (tmp_path / "other").write_text("{}")
    (tmp_path / ".hidden").write_text("{}")
    os.utime(tmp_path / f"p_{PREFIX}old", (1, 1))
    store = Cache(tmp_path, _prefix="p_", timeout=100.0)
    assert sorted(store.keys()) == ["a", "b"]
    assert not store.contains("old")
    store.flush()
    assert sorted(os.listdir(tmp_path)) == [".hidden", "other", f"p_{PREFIX}old"]


def test_an_unknown_format_is_refused(monkeypatch):
    if not NEW:
        pytest.skip("only 2.19 and later hide their encoder")
    monkeypatch.setattr(compat, "_form_219", lambda: (_ for _ in ()).throw(ImportError("gone")))
    with pytest.raises(AnsibleError, match=r"does not know the cache format of ansible-core " + core_version):
        compat.form_for(True, False)


FORMS = {"own": compat.form_for(True, False), "plain": compat._form_plain(True), "218": None}
if not NEW:
    FORMS["218"] = FORMS.pop("own")
FORMS = {name: form for name, form in FORMS.items() if form is not None}


def fast_encode(form, value):
    data, plain = _core.facts_encode(value, form.style, form.str_types, form.key_types, form.leaf)
    if plain and form.style != "indent":  # which sorts
        assert dump(form.decode(data)) == dump(value)
    return data


def fast_decode(form, data):
    return _core.facts_decode(data, form.style == "envelope", form.hook_keys, form.hook)


def outcome(function, *arguments):
    try:
        return "value", function(*arguments)
    except Exception as ex:
        return "error", type(ex)


def dump(value):
    """A text that differs when two values differ in type, order, sign of zero or tags."""
    if isinstance(value, dict):
        inner = [(dump(k), dump(v)) for k, v in value.items()]
    elif isinstance(value, list | tuple):
        inner = [dump(v) for v in value]
    else:
        inner = repr(value)
    tags = getattr(value, "_ansible_tags_mapping", None)
    return f"{type(value).__name__}:{inner}:{sorted(map(repr, tags.values())) if tags else ''}"


def check(form, value, plain):
    expected = outcome(form.encode, value)
    got = outcome(fast_encode, form, value)
    if got[0] == "error":
        assert not plain or expected[0] == "error", value
    else:
        assert got == expected
    if expected[0] == "value":
        check_decode(form, expected[1])


def check_decode(form, data):
    expected = outcome(form.decode, data)
    got = outcome(fast_decode, form, data)
    if got[0] == "value":
        assert expected[0] == "value"
        assert dump(got[1]) == dump(expected[1])


def tagged():
    if not NEW:
        from ansible.parsing.vault import VaultLib  # noqa: F401
        from ansible.parsing.yaml.objects import AnsibleUnicode
        from ansible.utils.unsafe_proxy import wrap_var

        return [wrap_var("unsafe"), wrap_var({"k\u00e9y": ["x"]}), AnsibleUnicode("y\u2028"), wrap_var((1, "z"))]
    from ansible._internal._datatag._tags import Origin, TrustedAsTemplate
    from ansible.module_utils._internal._datatag import AnsibleTagHelper

    tags = [Origin(path="/x", line_num=3), TrustedAsTemplate()]
    plain = ["text\u00e9", 5, 1.5, [1, "a"], {"k": [1]}, (1, 2), datetime.date(2020, 1, 2)]
    both = [AnsibleTagHelper.tag(value, tags) for value in plain]
    return [*both, {both[0]: both[1]}, [both[4], [both[3]]], {"in": {"deep": both[0]}}]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_encoding_equals_cores(form):
    cycle = []
    cycle.append(cycle)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    plain = [
        None, True, False, 0, -1, 2**63 - 1, 2**63, -(2**200), 0.0, -0.0, 1e16, 1e-7, 1.1, 5e-324, float("inf"),
        float("-inf"), float("nan"), "", "\0\x1f\x7f\x80\u2028\ud800\udfff\U0001f600\"\\/\b\f\n\r\t", [], {}, [[]],
        [{}], {"": {}}, {"b": 1, "a": [1, 2, {"c": None}]}, {"\U0001f600": 1, "\uffff": 2, "a": 3}, {"__ansible_type": 1},
        {"__ansible_vault": "x"}, {"__payload__": "x"}, ["x" * 5000 + "\u00e9" * 5000],
    ]  # fmt: skip
    odd = [
        (1, (2,)), {1: 2}, {None: 1, 1.5: 2}, {"a": 1, 2: 3}, {1, 2}, datetime.datetime(2020, 1, 2, 3, 4), object(), b"x",
        types.SimpleNamespace(), range(3), cycle, {"a": cycle}, deep, True, {True: 1}, {"a": object()},
    ]  # fmt: skip
    for value in plain:
        check(form, value, plain=True)
        check(form, {"k": [value, {"m": value}]}, plain=True)
    for value in [*odd, *tagged()]:
        check(form, value, plain=False)
        check(form, {"k": [value]}, plain=False)
    while deep:
        deep = deep[0]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.row("F9")
def test_decoding_equals_cores(form):
    texts = [
        "null", "[]", '{"a": 1, "b": 2, "a": 3}', "12345678901234567890", "-0", "-0.0", "1E400", "1e-400", "0.1", "1e5", "NaN",
        "[Infinity, -Infinity]", '"\\ud83d\\ude00"', '"\\ud800"', '"\\u0000"', '{"\\u0000": 1}', "{", "[1,]", '"\t"', "01",
        "\ufeff[]", " [1] ", '{"__ansible_unsafe": "x"}', '{"a": {"__ansible_vault": "x"}}', '{"__ansible_type": "Origin"}',
        '{"__ansible_type": "nope"}', '{"__ansible_type": "_AnsibleTaggedStr", "value": "v", "tags": []}', '{"__ansible_x": 1}',
        '{"__ansible_type": "AnsibleSerializableDate", "iso8601": "2020-01-02"}', "[" * 3000 + "]" * 3000, "1 2", "",
    ]  # fmt: skip
    for text in texts:
        if form.style == "envelope":
            for outer in ({"__payload__": text}, {"__payload__": text, "x": 1}):
                check_decode(form, json.dumps(outer).encode())
        check_decode(form, text.encode())
    for data in (
        b"\xff",
        b'"\xc3"',
        b'{"__payload__": null}',
        b'{"__payload__": {}}',
        b"[]",
        b'{"__payload__": "\xff"}',
    ):
        check_decode(form, data)


def random_value(rnd, depth, leaves):
    kind = rnd.random()
    if depth == 0 or kind < 0.4:
        choices = [
            lambda: rnd.choice(leaves),
            lambda: rnd.randrange(-(2**70), 2**70) >> rnd.randrange(70),
            lambda: rnd.uniform(-1, 1) * 10.0 ** rnd.randrange(-300, 300),
            lambda: "".join(chr(rnd.choice((rnd.randrange(128), rnd.randrange(0x3000), rnd.randrange(0x110000)))) for _ in range(rnd.randrange(6))),
            lambda: rnd.choice((None, True, False, "", 0, -0.0)),
        ]  # fmt: skip
        return rnd.choice(choices)()
    size = rnd.randrange(4)
    if kind < 0.7:
        return [random_value(rnd, depth - 1, leaves) for _ in range(size)]
    return {str(random_value(rnd, 0, ["k"])): random_value(rnd, depth - 1, leaves) for _ in range(size)}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_random_values_encode_and_decode_as_cores(form):
    rnd = random.Random(20261121)
    leaves = tagged()
    for turn in range(600):
        check(form, random_value(rnd, 4, leaves if turn % 2 else ["leaf"]), plain=turn % 2 == 0)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.row("E8")
def test_damaged_files_decode_as_cores_or_not_at_all(form):
    rnd = random.Random(7)
    good = form.encode({"a": [1, 2.5, {"b": "c\u00e9\U0001f600"}], "d": {"__ansible_x": None, "e": '\\"'}})
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(rnd.randrange(1, 4)):
            data[rnd.randrange(len(data))] = rnd.choice(b'"\\{}[]:,0129.eE+-nut\x00\x1f\x7f\x80\xff ')
        check_decode(form, bytes(data))


def test_property_any_json(request):
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    values = st.recursive(scalars, lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=30)

    @hypothesis.settings(max_examples=300, deadline=None, database=None)
    @hypothesis.given(values, st.text(), st.binary())
    def equal(value, text, data):
        for form in FORMS.values():
            check(form, value, plain=True)
            check_decode(form, text.encode("utf-8", "surrogatepass"))
            check_decode(form, data)

    equal()


def test_no_references_are_kept():
    import gc
    import sys

    form = next(iter(FORMS.values()))
    value = {"a": ["text", 5.5, {"b": None}], "c": object}
    for work in (
        lambda: outcome(fast_encode, form, value),
        lambda: fast_encode(form, {"a": value["a"]}),
        lambda: outcome(fast_decode, form, b"[1, {"),
        lambda: fast_decode(form, form.encode({"a": [1, "x" * 100]})),
        lambda: outcome(_core.facts_decode, b'{"__ansible_x": [1, 2]}', False, ("__ansible_x",), lambda d: 1 / 0),
    ):
        work()
        gc.collect()
        before = sys.getrefcount(value["a"]), len(gc.get_objects())
        for _ in range(50):
            work()
        gc.collect()
        assert sys.getrefcount(value["a"]) - before[0] < 10
        assert abs(len(gc.get_objects()) - before[1]) < 10
