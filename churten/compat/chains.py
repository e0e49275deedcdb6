"""Core's own actions that make a temporary folder, put files into it and run a module there, with as few round trips as can be: see transport/chain.py.

While one of `ACTIONS` runs in a fiber over a warm agent, a chain is open on its connection. If the chain breaks, the action is done again from its start
without one. For that it must not have done anything yet that shows. What these plugins do on the controller before the module that matters: they read
files, render templates (lookups wait for all that was answered ahead, see lookups.py, so none of them runs twice or in vain), make local temporary files
that they or core clean up, and change their arguments and the template search path, which are put back.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import typing as t

import ansible.plugins.action
from ansible import constants as C
from ansible.plugins.action import ActionBase

from churten import waiting
from churten.transport import chain as chains

from . import connection as core
from .checksums import Checksums, aside

_FILES = frozenset({"ansible.modules.copy", "ansible.modules.file"})
# The action, and after which modules it has nothing left to do but to remove its folder.
ACTIONS: dict[str, frozenset[str]] = {
    "copy": _FILES,
    "template": _FILES,
    "assemble": _FILES | {"ansible.modules.assemble"},
    "unarchive": frozenset({"ansible.modules.unarchive"}),
    "uri": frozenset({"ansible.modules.uri"}),
    "script": frozenset(),
}
_PEEK = b'"_diff_peek": true'
_PAUSES = "sleep 0" in ActionBase._low_level_execute_command.__code__.co_consts  # behind each command
_CORE = os.path.realpath(os.path.dirname(ansible.plugins.action.__file__))


@contextlib.contextmanager
def chained_actions() -> t.Iterator[None]:
    """While active, these actions send ahead what they can. Their classes are met when the first of their objects is made: importing them takes long."""
    stock = ActionBase.__init__
    met: dict[type, t.Callable[[], None]] = {}  # each class of an action, and how to undo what was done to it

    @functools.wraps(stock)
    def init(self: t.Any, *args: t.Any, **kwargs: t.Any) -> None:
        stock(self, *args, **kwargs)
        if type(self) not in met:
            met[type(self)] = _meet(type(self))

    ActionBase.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        ActionBase.__init__ = stock  # type: ignore[method-assign]
        for undo in met.values():
            undo()


def _meet(action: t.Any) -> t.Callable[[], None]:
    """Lets `action` send ahead what it can, if it is one of these. Returns what undoes that."""
    name, run = _core_name(action), action.__dict__.get("run")
    if name == "fetch":
        return _digests_aside(run.__globals__)
    if name not in ACTIONS:
        return lambda: None
    names = run.__globals__
    walk, copy_file, checksum = names.get("_walk_dirs"), action.__dict__.get("_copy_file"), names.get("checksum")
    if name == "copy":
        if walk is None or copy_file is None:
            return lambda: None
        names["_walk_dirs"] = _noted(walk)
        action._copy_file = _file_by_file(action, copy_file)
        if checksum is not None:
            names["checksum"] = Checksums(checksum)
    action.run = _chained(action, name, run)

    def undo() -> None:
        action.run = run
        if name == "copy":
            names["_walk_dirs"] = walk
            names.update({} if checksum is None else {"checksum": checksum})
            action._copy_file = copy_file

    return undo


def _digests_aside(names: dict[str, t.Any]) -> t.Callable[[], None]:
    stock: dict[str, t.Any] = {name: names[name] for name in ("checksum", "md5", "secure_hash") if name in names}
    names.update({name: aside(function) for name, function in stock.items()})
    return lambda: names.update(stock)


def _core_name(action: t.Any) -> str:
    """Which of core's actions it is, by the file of its `run`: core loads a plugin's file once for each way to name it. Empty for any other class."""
    code = getattr(action.__dict__.get("run"), "__code__", None)
    folder, file = os.path.split(code.co_filename if code is not None else "")
    return file.removesuffix(".py") if os.path.realpath(folder) == _CORE and action.__name__ == "ActionModule" else ""


def _chained(action: t.Any, name: str, stock: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    @functools.wraps(stock)
    def run(self: t.Any, tmp: t.Any = None, task_vars: t.Any = None) -> t.Any:
        if type(self) is not action or tmp is not None:
            return stock(self, tmp, task_vars)
        outer = chains.current()
        if outer is not None:
            return _inside(outer, self, stock, task_vars)
        if not _may_chain(self, name):
            return stock(self, tmp, task_vars)
        with thin_copies(self._task) if name == "template" else contextlib.nullcontext():
            return _alone(self, name, stock, task_vars)

    return run


@contextlib.contextmanager
def thin_copies(task: t.Any) -> t.Iterator[None]:
    """While active, copies of `task` share the tasks around it: template makes one for copy, which does not look at them, and a block may have many."""
    task.copy = functools.partial(type(task).copy, task, exclude_tasks=True)
    try:
        yield
    finally:
        vars(task).pop("copy", None)


def _may_chain(action: t.Any, name: str) -> bool:
    connection = action._connection
    return (
        waiting.current() is not None
        and getattr(connection, "takes_chains", False)
        and not action._task.async_val
        and not C.DEFAULT_KEEP_REMOTE_FILES
        and core.is_posix_shell(connection)
        and action._is_pipelining_enabled("new", wrap_async=False)
        # Its parameters of a form would be changed inside.
        and (name != "uri" or bool(action._task.args.get("src")))
    )


def _alone(action: t.Any, name: str, stock: t.Callable[..., t.Any], task_vars: t.Any) -> t.Any:
    """The whole action with a chain; without one if that broke."""
    connection = action._connection
    args = action._task.args.copy()
    path: t.Any = task_vars.get("ansible_search_path") if task_vars else None
    kept_path = list(path) if isinstance(path, list) else None
    lost: Exception | None = None
    chain = chains.open_chain(connection, connection._shell.tmpdir is not None, functools.partial(_removal, action, ACTIONS[name]))
    try:
        try:
            result = stock(action, None, task_vars)
        except Exception:
            chain.settle()  # what went wrong here came later than what may have gone wrong there
            raise
        chain.settle()
        return result
    except chains.Broken:
        pass
    except chains.Lost as ex:
        lost = ex.error
    finally:
        chains.close_chain(connection)
    if lost is not None:
        raise lost
    if not chain.made:
        _forget_folder(action, chain.nothing_made)
    action._task.args.clear()
    action._task.args.update(args)
    if kept_path is not None:
        path[:] = kept_path
    return stock(action, None, task_vars)


def _inside(chain: chains.Chain, action: t.Any, stock: t.Callable[..., t.Any], task_vars: t.Any) -> t.Any:
    """Copy on behalf of template: with the folder made it can be done again by itself, so that nothing is rendered twice."""
    args = action._task.args.copy()
    try:
        try:
            result = stock(action, None, task_vars)
        except Exception:
            chain.settle()
            raise
        chain.settle()
        return result
    except chains.Broken:
        if not chain.made:
            raise
    action._task.args.clear()
    action._task.args.update(args)
    return stock(action, None, task_vars)


def _forget_folder(action: t.Any, nothing_made: bool) -> None:
    """Whatever there is of it goes; the second try makes its own."""
    shell = action._connection._shell
    if not nothing_made:
        action._remove_tmp_path(shell.tmpdir)
    shell.tmpdir = None
    action._cleanup_remote_tmp = False


def _noted(walk: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    """A folder is copied file by file: none of the modules is known to be the last."""

    @functools.wraps(walk)
    def noted(*args: t.Any, **kwargs: t.Any) -> t.Any:
        if (chain := chains.current()) is not None:
            chain.removal = lambda fqn, params: None
            chain.in_parts = True
        return walk(*args, **kwargs)

    return noted


def _file_by_file(action: t.Any, stock: t.Callable[..., t.Any]) -> t.Callable[..., t.Any]:
    """Each file of a folder has links of its own: if one breaks, that file is done again, for what was copied before it has its results. Until a file was
    copied, it is the whole action that is done again."""

    @functools.wraps(stock)
    def copy_file(self: t.Any, *args: t.Any, **kwargs: t.Any) -> t.Any:
        chain = chains.current()
        if type(self) is not action or chain is None or not chain.in_parts or chain.certain:
            return stock(self, *args, **kwargs)
        with contextlib.suppress(chains.Broken), chain.part():
            try:
                result = stock(self, *args, **kwargs)
            except Exception:
                chain.settle()
                raise
            chain.settle()
            return result
        return stock(self, *args, **kwargs)

    return copy_file


def _removal(action: t.Any, last: frozenset[str], fqn: str, params: bytes) -> str | None:
    """The command with which core will remove the folder after this module; None if it may do something else before."""
    shell = action._connection._shell
    if fqn not in last or _PEEK in params or not action._should_remove_tmp_path(shell.tmpdir):
        return None
    executable = action._play_context.executable
    if not action._connection.allow_executable or not executable:
        return None
    command = shell.remove(shell.tmpdir, recurse=True)
    if _PAUSES:
        command = shell.append_command(command, "sleep 0")
    return f"{executable} -c {shlex.quote(command)}"
