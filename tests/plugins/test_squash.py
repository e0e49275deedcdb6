"""What a task inherits from blocks, roles and the play, in one go and as core finds it."""

import contextlib
import copy

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.attribute import FieldAttribute
from ansible.playbook.base import FieldAttributeBase
from ansible.playbook.block import Block
from ansible.playbook.handler import Handler
from ansible.playbook.play import Play
from ansible.playbook.task import Task
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.loader import init_plugin_loader
from ansible.utils.sentinel import Sentinel
from ansible.vars.manager import VariableManager
from test_keywords import PLAY, state

from churten import _core
from churten.compat import squash

ROLES = {
    "base/tasks": "- {name: b, command: /bin/true}",
    "base/meta": "dependencies: []",
    "outer/meta": "dependencies: [{role: base, become: true, tags: [dep], vars: {v: 1}}]",
    "outer/tasks": """
- {command: /bin/true}
- {block: [{command: /bin/true, tags: [own], when: a}], when: b, delegate_to: d}
- {import_tasks: more.yml, tags: more}""",
    "outer/handlers": "- {name: h, command: /bin/true, listen: x}",
}
MORE = "- {command: /bin/true, ignore_errors: true, environment: {A: 1}}\n- include_tasks: last.yml\n"


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """Compiled blocks of a play with roles, and of the play of the tests of keywords."""
    with contextlib.suppress(Exception):  # once per process
        init_plugin_loader()
    top = tmp_path_factory.mktemp("roles")
    for place, text in ROLES.items():
        (top / "roles" / place).mkdir(parents=True)
        (top / "roles" / place / "main.yml").write_text(text + "\n")
    (top / "roles/outer/tasks/more.yml").write_text(MORE)
    loader = DataLoader()
    loader.set_basedir(str(top))
    manager = VariableManager(loader=loader)
    roles = {
        "hosts": "localhost",
        "become_user": "someone",
        "environment": {"P": "1"},
        "vars": {"pv": 1},
        "tags": "play",
        "ignore_unreachable": True,
        "no_log": True,
        "collections": ["a.b"],
        "module_defaults": {"command": {"chdir": "/"}},
        "roles": [{"role": "outer", "tags": ["role"], "when": "r", "throttle": 3}],
        "tasks": [{"import_role": {"name": "outer"}, "become": True}, {"command": "x", "async": 5, "name": "own"}],
    }
    plays = [Play.load(copy.deepcopy(data), variable_manager=manager, loader=loader) for data in (roles, PLAY)]
    return [block for play in plays for block in [*play.compile(), *play.handlers]]


def tasks(blocks):
    found, stack = [], list(blocks)
    while stack:
        one = stack.pop()
        if isinstance(one, Block):
            stack += [*one.block, *one.rescue, *one.always]
        else:
            found.append(one)
    return found


def squashed(task, quick):
    """What squashing a copy gives; as the executor does it, with a parent of its own."""
    mine = task.copy(exclude_tasks=True)
    with squash.quick_squashes() if quick else contextlib.nullcontext():
        mine.squash()
    values = {key: value for key, value in state(mine).items() if key not in ("_role",)}
    return values, {name: repr(getattr(mine, name)) for name in mine.fattributes if name != "loop_control"}


def test_core_is_known():
    """On every supported line it is in use."""
    assert squash.is_known()
    stock = FieldAttributeBase.squash
    with squash.quick_squashes():
        assert FieldAttributeBase.squash is not stock
        for cls in (Task, Handler, TaskInclude):
            assert sum(flags & _core.KEYWORD_QUICK > 0 for _, _, _, flags, _, _ in squash._rows(cls)) > 25, cls
    assert FieldAttributeBase.squash is stock


def test_the_same_as_core(blocks, monkeypatch):
    found = tasks(blocks)
    assert len(found) > 12 and any(task.get_dep_chain() for task in found) and any(isinstance(task, Handler) for task in found)
    asked = []
    stock_get = FieldAttribute.__get__
    for task in found:
        stock = squashed(task, False)
        assert squashed(task, True) == stock, task
    monkeypatch.setattr(FieldAttribute, "__get__", lambda self, obj, cls=None: asked.append(self.name) or stock_get(self, obj, cls))
    for task in found:
        with squash.quick_squashes():
            task.copy(exclude_tasks=True).squash()
    assert asked


def test_what_is_said_anywhere_around_is_seen(blocks):
    """Each keyword, said by each thing around a task in turn."""
    task = next(task for task in tasks(blocks) if task.get_dep_chain())
    block = task._parent
    for thing in (block, block._role, block._play, *block.get_dep_chain(), *filter(None, [block._parent])):
        for name in Task.fattributes:
            key, missing = f"_{name}", object()
            before = thing.__dict__.get(key, missing)
            thing.__dict__[key] = ["said"] if name in ("tags", "collections", "environment", "module_defaults", "when") else "said"
            try:
                assert squashed(task, True) == squashed(task, False), (thing, name)
            finally:
                if before is missing:
                    del thing.__dict__[key]
                else:
                    thing.__dict__[key] = before


def test_defaults_are_not_shared(blocks):
    task = next(task for task in tasks(blocks) if task.__dict__.get("_changed_when", Sentinel) is Sentinel)
    with squash.quick_squashes():
        one, two = task.copy(), task.copy()
        one.squash()
        two.squash()
    assert one.changed_when == [] and one.changed_when is not two.changed_when


def test_a_class_that_inherits_in_its_own_way_is_left_to_core(blocks):
    class Own(Task):
        def _get_parent_attribute(self, attr, omit=False):
            return "own"

    with squash.quick_squashes():
        assert squash._keywords(Own) is None
        own = Own()
        own.squash()
    assert own.delegate_to == "own"
