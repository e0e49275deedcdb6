"""churten.transport.payload: what ansible-core of this environment writes is recognised; what is even slightly different is not."""

import base64
import dataclasses
import importlib.util
import inspect
import io
import json
import marshal
import shlex
import zipfile
import zlib

import pytest
from ansible.executor import module_common
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader, module_loader
from ansible.template import Templar

from churten.transport import payload


@pytest.fixture(scope="module", autouse=True)
def _loader():
    try:
        init_plugin_loader()
    except AttributeError:
        pass


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Builds a module's wrapper with ansible-core's own code."""
    monkeypatch.setattr("ansible.constants.DEFAULT_LOCAL_TMP", str(tmp_path))

    def build(args=None, name="ping", **task_vars):
        found = module_loader.find_plugin_with_context(name)
        words = {
            "module_name": found.plugin_resolved_name,
            "module_path": found.plugin_resolved_path,
            "module_args": {
                "_ansible_version": "0",
                "_ansible_remote_tmp": "~/.ansible/tmp",
                "_ansible_keep_remote_files": False,
                **(args or {}),
            },
            "templar": Templar(loader=DataLoader(), variables={}),
            "task_vars": {"ansible_python_interpreter": "/usr/bin/python3", **task_vars},
            "module_compression": "ZIP_DEFLATED",
        }
        accepted = inspect.signature(module_common.modify_module).parameters
        if "shell_plugin" in accepted:
            from ansible.plugins.loader import get_shell_plugin

            words["shell_plugin"] = get_shell_plugin(shell_type="sh", executable="/bin/sh")
        built = module_common.modify_module(**words)
        return built[0] if isinstance(built, tuple) else built.b_module_data

    return build


NASTY = (
    "a'b\"c\\d\n'''\"\"\" {} %s \u00e4\u2028 zip_data='x',\n)\n\nif __name__ == \"__main__\":\n    _ansiballz_main(\n"
)


def test_the_wrapper_of_this_core(build):
    wrapper = build({"data": NASTY})
    call = payload.ModuleCall.from_wrapper(wrapper)
    assert call == wrapper and isinstance(call, bytes)
    module = call.module
    assert module.fqn == "ansible.modules.ping"
    assert json.loads(module.params)["ANSIBLE_MODULE_ARGS"]["data"] == NASTY
    assert (module.form, module.profile) in {("219", "legacy"), ("218", "")}
    assert module.rlimit_nofile == 0 and module.secrets == ""
    names = zipfile.ZipFile(io.BytesIO(module.archive.data)).namelist()
    assert "ansible/modules/ping.py" in names and "ansible/module_utils/basic.py" in names


def test_rlimit(build):
    assert payload.recognise(build(ansible_python_module_rlimit_nofile=4711)).rlimit_nofile == 4711


def test_the_archive_is_decoded_once(build, monkeypatch):
    first = payload.recognise(build({"data": "one"}))

    def fail(*args, **kwargs):
        raise AssertionError("decoded again")

    monkeypatch.setattr(base64, "b64decode", fail)
    second = payload.recognise(build({"data": "two"}))
    assert second.key == first.key and second.params != first.params and second.archive is first.archive


def _zip_text(content, date, name="ansible/modules/m.py"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name, date), content)
    return base64.b64encode(out.getvalue())


def _key(text, fqn="ansible.modules.m"):
    return payload._zip(text).key(fqn)


def test_the_key_is_of_the_contents():
    early, late = (2026, 1, 1, 0, 0, 0), (2026, 2, 2, 2, 2, 2)
    assert _zip_text("a", early) != _zip_text("a", late)
    assert _key(_zip_text("a", early)) == _key(_zip_text("a", late))
    others = {
        _key(_zip_text("b", early)),
        _key(_zip_text("a", early, "ansible/modules/n.py")),
        _key(_zip_text("a", early), "ansible.modules.n"),
    }
    assert len(others | {_key(_zip_text("a", early))}) == 4


def test_compiled_code_goes_only_to_the_same_python(build):
    module = payload.recognise(build())
    key, items = module.payload(importlib.util.MAGIC_NUMBER.hex())
    name, archive, code, magic = items()
    assert name == key != module.key and bytes.fromhex(magic) == importlib.util.MAGIC_NUMBER
    assert unpacked(archive) == module.archive.data
    assert "ansible.modules.ping" in marshal.loads(unpacked(code))
    key, items = module.payload("00000000")
    name, archive, *rest = items()
    assert name == key == module.key and unpacked(archive) == module.archive.data and rest == [b"", ""]


def test_compiled_code_is_kept_for_later_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("CHURTEN_POOL_DIR", str(tmp_path / "pool"))
    early, late = (2026, 1, 1, 0, 0, 0), (2026, 2, 2, 2, 2, 2)
    made = []
    marshalled = payload.bootstrap.marshal_payload
    monkeypatch.setattr(payload.bootstrap, "marshal_payload", lambda data: made.append(data) or marshalled(data))

    def code(*args):
        return marshal.loads(unpacked(payload._Zip(base64.b64decode(_zip_text(*args))).packed(True)[1]))

    first = code("a = 1", early)
    assert list(first) == ["ansible.modules.m"] and len(made) == 1
    assert code("a = 1", late) == first and len(made) == 1
    assert code("a = 2", early) != first and len(made) == 2
    assert list(code("a = 1", early, "ansible/modules/n.py")) == ["ansible.modules.n"] and len(made) == 3
    for kept in (tmp_path / "pool").iterdir():
        kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    assert code("a = 1", early) == first and len(made) == 4
    monkeypatch.setenv("CHURTEN_POOL_DIR", "/dev/null/x")  # nowhere to keep anything
    assert code("a = 1", early) == first and len(made) == 5


def unpacked(part):
    data = zlib.decompress(part[4:])
    assert len(data) == int.from_bytes(part[:4], "big")
    return data


def test_an_object_that_is_recognised_already_is_not_parsed_again(build, monkeypatch):
    call = payload.ModuleCall.from_wrapper(build())
    monkeypatch.setattr(payload.ModuleCall, "from_wrapper", None)
    assert payload.recognise(call) is call.module


def wrapper_219(**changes):
    """A wrapper in the form of core 2.19 and later."""
    values = {
        "ansible_module": "'m'",
        "module_fqn": "'ansible.modules.m'",
        "profile": "'legacy'",
        "date_time": "datetime.datetime(2026, 11, 21, 3, 0, tzinfo=datetime.timezone.utc)",
        "rlimit_nofile": "0",
        "params": repr('{"ANSIBLE_MODULE_ARGS": {"a": 1}}'),
        "extensions": "{}",
        "zip_data": repr(_zip_text("x = 1\n", (2026, 1, 1, 0, 0, 0)).decode()),
    }
    values.update({k: v for k, v in changes.items() if v is not None})
    for name in [k for k, v in changes.items() if v is None]:
        del values[name]
    lines = "\n".join(f"{k}={v}," for k, v in values.items())
    code = "#!/usr/bin/python3\n\nimport datetime\n_ANSIBALLZ_WRAPPER = True\n"
    return f'{code}\n\nif __name__ == "__main__":\n    _ansiballz_main(\n{lines}\n)\n'.encode()


def test_form_of_2_19():
    module = payload.recognise(wrapper_219())
    assert (module.fqn, module.form, module.profile, module.secrets) == ("ansible.modules.m", "219", "legacy", "")
    assert payload.recognise(wrapper_219(secrets="frozenset()")).secrets == ""
    assert json.loads(payload.recognise(wrapper_219(secrets="frozenset({'b', 'a'})")).secrets) == ["a", "b"]


@pytest.mark.parametrize(
    "changes",
    [
        {"extensions": "{'coverage': {}}"},
        {"something": "1"},
        {"params": None},
        {"params": "open('/etc/passwd').read()"},
        {"params": "'{}'"},
        {"module_fqn": "'a b'"},
        {"module_fqn": "__import__('os').name"},
        {"rlimit_nofile": "True"},
        {"rlimit_nofile": "-1"},
        {"date_time": "datetime.datetime(2026, 1, 1) or print(1)"},
        {"secrets": "frozenset({1})"},
        {"secrets": "frozenset(open('x'))"},
        {"zip_data": "'not base64!'"},
        {"zip_data": "'QUJD'"},
        {"zip_data": "b'QUJD'"},
    ],
)
def test_another_form_is_not_touched(changes):
    assert payload.recognise(wrapper_219(**changes)) is None


def test_other_programs_are_not_touched():
    good = wrapper_219()
    for bad in (
        b"",
        None,
        b"#!/bin/sh\necho\n",
        good + b"\n",
        good.replace(b"_ANSIBALLZ_WRAPPER", b"WRAPPER"),
        good[:-1],
        b"x" + good,
    ):
        assert payload.recognise(bad) is None


# --- the command


def sh(inner, shell="/bin/sh"):
    return f"{shell} -c {shlex.quote(inner)}"


@pytest.mark.parametrize("end", ["", " && sleep 0"])
def test_plain_command(end):
    found = payload.unwrap_command(sh("/usr/bin/python3.11" + end))
    assert (found.interpreter, found.env, found.become) == ("/usr/bin/python3.11", (), None)


def test_environment():
    env = {"A": "1", "B_2": "x y", "C": "it's $HOME", "LANG": "de_DE.UTF-8", "E": ""}
    text = " ".join(f"{k}={shlex.quote(v)}" for k, v in env.items())
    found = payload.unwrap_command(sh(f"{text} /usr/bin/python3 && sleep 0"))
    assert found.env == tuple(f"{k}={v}" for k, v in env.items())


@pytest.mark.parametrize(
    "inner",
    [
        "A=$HOME /usr/bin/python3",
        "A=`id` /usr/bin/python3",
        "PYTHONPATH=/x /usr/bin/python3",
        "LD_PRELOAD=/x /usr/bin/python3",
        "MALLOC_ARENA_MAX=1 /usr/bin/python3",
        "GLIBC_TUNABLES=x /usr/bin/python3",
        "LANG=de_DE.ISO-8859-1 /usr/bin/python3",
        "PATH=/x python3",
        "/usr/bin/env python3",
        "/usr/bin/python3 -s",
        "cd /x && /usr/bin/python3",
        "/usr/bin/python3 ; id",
        "/usr/bin/python3 && sleep 1",
        "/usr/bin/python3 /tmp/module.py",
        "~/python3",
        "-c",
        "",
    ],
)
def test_other_commands_are_not_touched(inner):
    assert payload.unwrap_command(sh(inner)) is None


def test_other_shells():
    assert payload.unwrap_command(sh("/usr/bin/python3", "/bin/bash")).shell == "/bin/bash"
    for bad in (
        sh("/usr/bin/python3", "/bin/zsh"),
        "/usr/bin/python3",
        "/bin/sh -x -c /usr/bin/python3",
        "/bin/sh -c '/usr/bin/python3'",
    ):
        assert payload.unwrap_command(bad) is None


ID = "abcdefghijklmnopqrstuvwxyzabcdef"


def become(flags, inner, shell="/bin/sh"):
    return sh(f"{flags} {sh(f'echo BECOME-SUCCESS-{ID} ; {inner}', shell)} && sleep 0")


def test_become():
    found = payload.unwrap_command(become("sudo -H -S -n  -u root", "A=1 /usr/bin/python3"), ID)
    assert (found.interpreter, found.env, found.become) == ("/usr/bin/python3", ("A=1",), "sudo -H -S -n  -u root")
    with_prompt = become(f'sudo -H -S  -p "[sudo via ansible, key={ID}] password:" -u root', "/usr/bin/python3")
    one = payload.unwrap_command(with_prompt, ID)
    assert ID not in one.become and one.interpreter == "/usr/bin/python3"
    assert payload.unwrap_command(with_prompt.replace(ID, ID[::-1]), ID[::-1]) == one


def test_become_that_is_not_what_it_says():
    good = become("sudo -H", "/usr/bin/python3")
    assert payload.unwrap_command(good) is None
    assert payload.unwrap_command(good, "x" * 32) is None
    assert payload.unwrap_command(good.replace("echo", "printf"), ID) is None
    assert payload.unwrap_command(become("sudo -H", "/usr/bin/python3 -x"), ID) is None
    assert payload.unwrap_command(sh(f"/usr/bin/python3 # {ID}"), ID) is None


# ---- jobs

WORDS = "/tmp/a-tmp-1/async_wrapper.py j123 60 /tmp/a-tmp-1/AnsiballZ_ping.py _"
NEW = "/tmp/a-tmp-1/async_wrapper.py j123 60 false /tmp/a-tmp-1/AnsiballZ_ping.py /usr/bin/python3 /tmp/a-tmp-1/AnsiballZ_ping.py"  # 2.22


@pytest.mark.parametrize("end", ["", " && sleep 0"])
def test_the_start_of_a_job(end):
    command, words = payload.unwrap_job(sh(f"ANSIBLE_ASYNC_DIR='~/.ansible_async' /usr/bin/python3 {WORDS}{end}"))
    assert command == payload.Command("/usr/bin/python3", ("ANSIBLE_ASYNC_DIR=~/.ansible_async",), None, "/bin/sh")
    assert words == WORDS.split()
    assert payload.unwrap_job(sh(f"/usr/bin/python3 {NEW}{end}"))[1] == NEW.split()
    command, words = payload.unwrap_job(become("sudo -H -S -n  -u root", f"A=1 /usr/bin/python3 {WORDS}"), ID)
    assert (command.become, command.env, words) == ("sudo -H -S -n  -u root", ("A=1",), WORDS.split())


@pytest.mark.parametrize(
    "inner",
    [
        f"/usr/bin/python3 {WORDS} -preserve_tmp",
        f"/usr/bin/python3 {WORDS[:-1]}/tmp/a-tmp-1/args",
        f"/usr/bin/python3 {WORDS[:-2]}",
        f"/usr/bin/python3 {NEW.replace('false', 'true')}",
        f"/usr/bin/python3.9 {NEW}",
        f"/usr/bin/python3 {NEW} /tmp/a-tmp-1/args",
        f"/usr/bin/python3 {NEW[:-1]}",
        "/usr/bin/python3 x",
        f"/usr/bin/python3 {WORDS.replace('j123', '123')}",
        f"/usr/bin/python3 {WORDS.replace('60', '6O')}",
        f"/usr/bin/python3 {WORDS}; true",
        f"/usr/bin/python3 {WORDS.replace('AnsiballZ', '$A')}",
        f"/usr/bin/python3 {WORDS.replace('tmp-1/Ans', 'tmp 1/Ans')}",
        f"'/usr/bin/env python3' {WORDS}",
        f"PYTHONPATH=/x /usr/bin/python3 {WORDS}",
        "/usr/bin/python3",
    ],
)
def test_what_starts_no_job(inner):
    assert payload.unwrap_job(sh(inner)) is None


def test_a_command_is_no_job_and_a_job_no_command():
    assert payload.unwrap_command(sh(f"/usr/bin/python3 {WORDS}")) is None
    assert payload.unwrap_job(sh(f"/usr/bin/python3 {WORDS} {ID}").replace(ID, "@CHURTEN-ID@")) is None


def test_async_wrapper_joins_a_module(build):
    module, wrapper = (payload.recognise(build(name=name)) for name in ("ping", "async_wrapper"))
    job = payload.with_wrapper(module, wrapper)
    assert (job.fqn, job.params, job.form) == (module.fqn, module.params, module.form) and job.key != module.key
    names = zipfile.ZipFile(io.BytesIO(job.archive.data)).namelist()
    assert len(names) == len(set(names)) and set(names) == {name for one in (module, wrapper) for name, *_ in one.archive.entries}
    assert "ansible.modules.async_wrapper" in marshal.loads(unpacked(job.archive.packed(True)[1]))
    assert payload.with_wrapper(module, wrapper).archive is job.archive, "made once"


def test_another_async_wrapper_joins_none(build):
    """Only core's own is known to start its job as agents have it; and files of the same name must be the same."""
    module, wrapper = (payload.recognise(build(name=name)) for name in ("ping", "async_wrapper"))
    assert payload.with_wrapper(module, module) is None

    def changed(one, name):
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(one.archive.data)) as old, zipfile.ZipFile(out, "w") as new:
            for info in old.infolist():
                new.writestr(info, old.read(info) + (b"\n# changed" if info.filename == name else b""))
        archive = payload._Zip(out.getvalue())
        return dataclasses.replace(one, archive=archive, key=archive.key(one.fqn))

    assert payload.with_wrapper(changed(module, "ansible/modules/ping.py"), wrapper) is not None
    assert payload.with_wrapper(module, changed(wrapper, "ansible/modules/async_wrapper.py")) is None
    assert payload.with_wrapper(changed(module, "ansible/module_utils/common/text/converters.py"), wrapper) is None
