"""Plugins, their folders, variables that are not there and parameters of modules: remembered or made in C, and as core gives them."""

import contextlib
import hashlib
import io
import json
import os

import pytest
from ansible import constants as C
from ansible.inventory.group import Group
from ansible.inventory.host import Host
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import (
    PluginLoader,
    action_loader,
    get_shell_plugin,
    init_plugin_loader,
    shell_loader,
    vars_loader,
)
from ansible.plugins.shell import ShellBase
from ansible.vars import manager
from ansible.vars import plugins as vars_plugins

from churten import _core, compat
from churten.compat import memo, vars_memo

SINCE_219 = pytest.mark.skipif(compat.core_version() < (2, 19), reason="earlier lines are left alone here")


@pytest.fixture(scope="module", autouse=True)
def loaders():
    with contextlib.suppress(Exception):  # once per process
        init_plugin_loader()


def shown(plugin):
    if plugin is None:
        return None
    if not isinstance(plugin, type):
        return type(plugin), shown(type(plugin)), {key: value for key, value in plugin.__dict__.items() if not callable(value)}
    return plugin, [plugin.__dict__.get(name) for name in ("ansible_name", "ansible_aliases", "_load_name", "_original_path", "_redirected_names")]


@SINCE_219
def test_plugins_are_those_of_core():
    def all_of_them():
        found = []
        for loader, name, kwargs in (
            (action_loader, "command", {"class_only": True}),
            (action_loader, "ansible.builtin.command", {"class_only": True}),
            (action_loader, "ansible.legacy.command", {"class_only": True, "collection_list": ["ansible.builtin"]}),
            (action_loader, "copy", dict.fromkeys(("task", "connection", "play_context", "loader", "templar", "shared_loader_obj"))),
            (action_loader, "no.such.action", {"class_only": True}),
            (action_loader, "normal", {"class_only": True}),
            (shell_loader, "sh", {}),
            (shell_loader, "bash", {}),
        ):
            result = loader.get_with_context(name, **kwargs)
            found.append((result._fields, shown(result.object), result.plugin_load_context.resolved, result.plugin_load_context.resolved_fqcn))
        found.append(shown(get_shell_plugin(shell_type=None, executable="/bin/sh")))
        found.append([shown(one) for one in (vars_loader.get("host_group_vars"), vars_loader.get("no_such"))])
        return found

    stock = PluginLoader.get_with_context
    was = all_of_them()
    with memo.remembered_plugins():
        assert PluginLoader.get_with_context is not stock
        assert [all_of_them() for _ in range(3)] == [was, was, was]
        assert shell_loader.get("sh") is not shell_loader.get("sh")
        with pytest.raises(TypeError):
            action_loader.get("copy", nonsense=1)
        with pytest.raises(ValueError):
            action_loader.get("")
    assert PluginLoader.get_with_context is stock


@SINCE_219
def test_another_module_of_the_same_plugin_is_seen():
    with memo.remembered_plugins():
        first = shell_loader.get("sh")
        shell_loader._module_cache.pop(first._original_path)
        again = shell_loader.get("sh")
        assert type(again) is shell_loader._module_cache[first._original_path].ShellModule


@SINCE_219
def test_folders_of_a_shell_are_looked_at_once(monkeypatch):
    def normalized(given):
        shell = shell_loader.get("sh")
        shell.set_options(var_options={} if given is None else {"ansible_system_tmpdirs": given})
        return shell._options, shell._origins

    texts = ["/a/", "/b", "/a", "/c//"]
    givens = [None, texts[:2], texts[2:0:-1], texts[3:], None]
    was = [normalized(given) for given in givens]
    stock, asked, setter = ShellBase._normalize_system_tmpdirs, [], C.config.get_config_value
    monkeypatch.setattr(C.config, "get_config_value", lambda *args, **kwargs: (asked.append(args), setter(*args, **kwargs))[1])
    with memo.remembered_folders():
        assert ShellBase._normalize_system_tmpdirs is not stock
        for _ in range(2):
            now = [normalized(given) for given in givens]
            assert now == was and [type(options["system_tmpdirs"]) for options, _ in now] == [type(options["system_tmpdirs"]) for options, _ in was]
        assert 3 <= len(asked) < 8  # the texts of a default are the same objects each time
        kept = now[0][0]["system_tmpdirs"]
        kept.append("mine")
        assert normalized(None) == was[0]
        with pytest.raises(Exception, match="relative path"):
            normalized(["relative"])
    assert ShellBase._normalize_system_tmpdirs is stock


def test_variables_that_are_not_there(tmp_path, monkeypatch):
    """Only folders that core's plugin remembers as missing are left out, and only while it is the only plugin."""
    if "host_group_vars" not in str(C.VARIABLE_PLUGINS_ENABLED):
        pytest.skip("other vars plugins")
    vars_plugins._prime_vars_loader()
    loader = DataLoader()
    there, missing = tmp_path / "there", tmp_path / "missing"
    for folder in (there / "host_vars", there / "group_vars", missing):
        folder.mkdir(parents=True)
    (there / "host_vars" / "h").write_text("a: 1\n")
    (there / "group_vars" / "g").write_text("b: 2\n")
    host, group, other = Host("h"), Group("g"), Host("/chroot")
    asked = [
        (str(path), entities, stage)
        for path in (there, missing)
        for entities in ([host], [group], [host, group], [other], [], [Host("x")])
        for stage in ("task", "inventory")
    ]
    was = [vars_plugins.get_vars_from_path(loader, *one) for one in asked]
    stock = vars_plugins.get_vars_from_path
    with vars_memo.remembered_absence():
        ours = vars_plugins.get_vars_from_path
        assert ours is manager.get_vars_from_path and ours is not stock
        assert [ours(loader, *one) for one in asked] == was
        assert ours._has_nothing(str(missing), [host]) and not ours._has_nothing(str(there), [host])
        assert not ours._has_nothing(str(tmp_path), [host])  # never looked at
        assert not ours._has_nothing(str(missing), ["h"]) and not ours._has_nothing(str(missing), (host,))
        monkeypatch.setitem(vars_loader._plugin_instance_cache, "some.other.plugin", (None, None))
        assert not ours._has_nothing(str(missing), [host])
    assert vars_plugins.get_vars_from_path is stock and manager.get_vars_from_path is stock


@SINCE_219
def test_parameters_of_modules_are_printed_as_core_prints_them():
    import datetime

    from ansible._internal._datatag import _tags
    from ansible.module_utils._internal import _datatag
    from ansible.module_utils._internal._json._profiles import _module_legacy_c2m, _module_modern_c2m

    from churten.compat import modules_219

    tag = _tags.Origin(description="x").tag
    builder = modules_219.Builder(None)
    assert modules_219._is_known(_module_legacy_c2m.Encoder) and not modules_219._is_known(_module_modern_c2m.Encoder)
    plain = [
        {"a": "b", "c": None, "d": [1, -2, 3.5, 1e300, True, "é\ud800\U0001f600\n"], "e": {"": [], "x": {}}},
        tag({tag("k"): tag([tag(1), tag(1.5), tag("t"), tag({})]), "n": float("inf"), "big": 10**30, "t": (1, 2)}),
    ]
    others = [{"s": {1}, "d": datetime.date(2020, 1, 2)}, {1: "number", None: 2}, tag(datetime.datetime(2020, 1, 2)), {"t": tag((1,))}]
    for value in [*plain, *others]:
        for profile, encoder in (("legacy", _module_legacy_c2m.Encoder), ("modern", _module_modern_c2m.Encoder)):
            try:
                stock = json.dumps({"A": value}, cls=encoder)
            except TypeError as ex:
                with pytest.raises(TypeError) as ours:
                    builder._printed({"A": value}, profile)
                assert str(ours.value) == str(ex)
                continue
            assert builder._printed({"A": value}, profile) == stock
    for value in plain:
        assert modules_219._print(value) == json.dumps(value, cls=_module_legacy_c2m.Encoder)

    class Odd(int):
        def __repr__(self):
            return "odd"

    assert _core.facts_encode(Odd(7), "compact", (Odd,), (), None)[0] == b"7"
    for wrong in (object(), {1: 2}):
        with pytest.raises(_core.Error):
            _core.facts_encode(wrong, "compact", (_datatag._AnsibleTaggedStr, object), (), None)


def test_the_same_items():
    one = {"a": object(), "b": os}
    assert _core.same_items(one, dict(one)) and _core.same_items({}, {})
    assert not _core.same_items(one, {"b": os, "a": one["a"]}) and not _core.same_items(one, {**one, "b": sum}) and not _core.same_items(one, {"a": one["a"]})
    for wrong in ((one,), (one, []), (1, one)):
        with pytest.raises(TypeError):
            _core.same_items(*wrong)


@SINCE_219
def test_what_module_utils_import_is_looked_at_once(monkeypatch, tmp_path):
    """The archive of a module holds the same files, whatever this run or an earlier one has built; and a file that has changed is looked at again."""
    import datetime
    import zipfile

    from ansible._internal._ansiballz import _builder
    from ansible.executor import module_common
    from ansible.modules import __file__ as modules

    from churten.compat import imports

    def archive(name):
        buffer = io.BytesIO()
        path = os.path.join(os.path.dirname(modules), f"{name}.py")
        with zipfile.ZipFile(buffer, "w") as file, open(path, "rb") as source:
            module_common.recursive_finder(
                name, f"ansible.modules.{name}", source.read(), file, datetime.datetime(2020, 1, 1), _builder.ExtensionManager.create(task_vars={})
            )
        return buffer.getvalue()

    names = ("command", "stat", "copy", "uri", "command")
    was = [archive(name) for name in names]
    compiled, parsed = module_common._compile_module_ast, []

    finder = module_common.ModuleDepFinder
    visit = finder.__init__

    def init(self, name, *args, **kwargs):
        parsed.append(name)
        visit(self, name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setenv("CHURTEN_POOL_DIR", str(tmp_path / "pool"))
        patch.setattr(finder, "__init__", init)
        with imports.remembered_imports():
            assert module_common.ModuleDepFinder is not finder
            assert [archive(name) for name in names] == was
            assert parsed.count("ansible.module_utils.basic") == 1 and len(parsed) == len(set(parsed)) + 1  # one module was built twice
            name = "ansible.module_utils.something"
            ask = module_common.ModuleDepFinder
            make = module_common._compile_module_ast
            for source, expected in ((b"import ansible.module_utils.a", "a"), (b"import ansible.module_utils.b", "b"), (b"import ansible.module_utils.a", "a")):
                tree = make(name, source) if make is not compiled else source
                assert ask(name, tree, False).submodules == {("ansible", "module_utils", expected)}
                ask(name, tree, False).submodules.add("mine")
            with pytest.raises(Exception, match="Unable to compile"):
                ask(name, make(name, b"import") if make is not compiled else b"import", False)
        assert module_common.ModuleDepFinder is finder and module_common._compile_module_ast is compiled

        def again():
            """The files that are parsed in another run."""
            parsed.clear()
            with imports.remembered_imports():
                assert [archive(name) for name in names] == was
                name = "ansible.module_utils.something"
                make = module_common._compile_module_ast
                module_common.ModuleDepFinder(name, make(name, source) if make is not compiled else source, False)
            return {name for name in parsed if name.startswith("ansible.module_utils.")}

        assert again() == {"ansible.module_utils.something"}  # not core's own: looked at in each run
        (kept,) = (path for path in (tmp_path / "pool").iterdir() if path.name.startswith("cache-"))
        whole = kept.read_bytes()
        for damaged in (b"", whole[:-1], whole[:40] + b"x" + whole[41:], *(hashlib.sha256(text).digest() + text for text in (b"[1]", b"{"))):
            kept.write_bytes(damaged)
            assert "ansible.module_utils.basic" in again()
            assert kept.read_bytes() == whole
        merged = json.loads(whole[32:])
        text = json.dumps(dict(list(merged.items())[::2]) | {"other": [[], [], False]}).encode()
        kept.write_bytes(hashlib.sha256(text).digest() + text)  # another run has kept something meanwhile
        assert len(again()) > 1 and json.loads(kept.read_bytes()[32:]) == merged | {"other": [[], [], False]}
