"""Layers of the Python side, and what must not stand in any file."""

import ast
import re
import sys
from pathlib import Path

from churten import agent

ROOT = Path(__file__).resolve().parents[2]
AGENT = ROOT / "churten" / "agent"
# Written so that no pattern matches its own text.
PRIVATE = {
    "a path of one machine": r"/roo[t]/|/home/(?!\{)\w+/|/tmp/w[t]\b|/tmp/[v]/|(?<![\w.}])/wor[k]/|\.pyen[v]|/opt/(?:pyp[i]|wheel[s])",
    "a package registry": r"pypi\.or[g]|pythonhosted\.or[g]|npmjs\.or[g]|golang\.or[g]|deb\.debian\.or[g]|index-ur[l]\s*=",
    "a private key": r"BEGIN [A-Z ]*PRIVATE KE[Y]-----\s*\n[A-Za-z0-9+/]{40}",
}


def python_files(files, *folders):
    return [p for p in files if p.suffix == ".py" and any(p.is_relative_to(ROOT / folder) for folder in folders)]


def imports(tree):
    """(line, module, imported name or None) of every import in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, node.module or "", alias.name) for alias in node.names)


def private(module, name):
    parts = [*module.split("."), *([name] if name else [])]
    return parts[0] == "ansible" and any(part.startswith("_") and not part.startswith("__") for part in parts)


def test_the_checks_see_what_they_should():
    text = "from ansible._internal import a\nfrom ansible.b import _c\nimport ansible.x._y\nfrom ansible import __version__\n"
    found = [line for line, module, name in imports(ast.parse(text)) if private(module, name)]
    assert found == [1, 2, 3]
    assert re.search(PRIVATE["a path of one machine"], "see " + "/root" + "/x")
    assert re.search(PRIVATE["a package registry"], "https://pypi." + "org/simple")


def test_private_names_of_ansible_core_live_in_compat(files):
    wrong = []
    for path in python_files(files, "churten", "plugins", "benchmarks", "examples"):
        # The agent does on the target what core's own module wrapper does there; the forms it knows stand in the protocol.
        if path.is_relative_to(ROOT / "churten" / "compat") or path.is_relative_to(AGENT):
            continue
        for line, module, name in imports(ast.parse(path.read_text())):
            if private(module, name):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {module} {name or ''}")
    assert wrong == []


def own_names(tree):
    """Underscored names that the code itself gives to something: attributes, methods, module and class variables, slots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            yield node.attr
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            yield from (target.id for target in (node.targets if isinstance(node, ast.Assign) else [node.target]) if isinstance(target, ast.Name))


def foreign_attributes(tree, names):
    """(line, attribute) of underscored attributes that are not among `names`, the own ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr) and node.attr not in {*names, "_replace"}:
            yield from [(node.lineno, node.attr)] if ast.unparse(node.value) not in PYTHON else []


PYTHON = ("os", "sys", "os.environ")  # os._exit, sys._getframe; _replace is that of named tuples


def test_the_check_of_attributes_sees_what_it_should():
    text = "class A:\n    _a: int\n    def _b(self):\n        self._c = host._d\n        task._uuid = self._a + x._b + x._c + self._tqm\n        os._exit(1)\n"
    tree = ast.parse(text)
    assert sorted(foreign_attributes(tree, set(own_names(tree)))) == [(4, "_d"), (5, "_tqm"), (5, "_uuid")]


def test_private_attributes_of_ansible_core_live_in_compat(files):
    """Everybody asks compat for what objects of core keep to themselves; what the executor has of core's strategy by inheritance is declared there."""
    compat = ROOT / "churten" / "compat"
    trees = {path: ast.parse(path.read_text()) for path in python_files(files, "churten") if not path.is_relative_to(AGENT)}
    names = set(own_names(trees[compat / "strategy.py"]))
    others = {path: tree for path, tree in trees.items() if not path.is_relative_to(compat)}
    names.update(name for tree in others.values() for name in own_names(tree))
    assert [f"{path.relative_to(ROOT)}:{line}: {name}" for path, tree in others.items() for line, name in foreign_attributes(tree, names)] == []


def test_plugin_files_are_doors(files):
    wrong = []
    for path in python_files(files, "plugins"):
        tree = ast.parse(path.read_text())
        wrong += [f"{path}:{n}: imports {m}" for n, m, _ in imports(tree) if m.startswith("ansible_collections")]
        body = [node for node in tree.body if not isinstance(node, (ast.Assign, ast.Expr))]
        used = {number for node in body for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
        lines = [text for number, text in enumerate(path.read_text().splitlines(), 1) if number in used and text.strip()]
        if len(lines) > 60:
            wrong.append(f"{path.relative_to(ROOT)}: {len(lines)} lines of code, more than a door needs")
    assert wrong == []


def test_collection_has_no_init_above_plugins(files):
    assert [p for p in files if p.name == "__init__.py" and "ansible_collections" in p.parts] == []


def test_the_agent_runs_on_old_targets(files):
    for path in (p for p in files if p.is_relative_to(AGENT)):
        tree = ast.parse(path.read_text(), feature_version=(3, 6))
        foreign = [m for _, m, _ in imports(tree) if m.split(".")[0] not in {*sys.stdlib_module_names, "ansible", "imp"}]
        assert [m for m in foreign if not m.startswith("churten.agent.")] == [], "the agent has only the standard library (and what the payload brings)"


def test_the_parts_of_the_agent_make_one_program(files):
    """Each is joined, in an order in which it imports from earlier ones only; no two give the same name, and none is rebound from outside."""
    assert {p.stem for p in files if p.parent == AGENT} == {"__init__", *agent.PARTS}
    given, wrong = {}, []
    for path in (AGENT / f"{part}.py" for part in agent.PARTS):
        text = path.read_text()
        wrong += [f"{path.stem}: {text.count(chr(10))} lines"] if text.count("\n") > 700 else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("churten"):
                part = (node.module or "").rpartition(".")[2]
                wrong += [f"{path.stem}: {a.name} of {part}" for a in node.names if a.asname or given.get(a.name) != part or node.col_offset]
            wrong += [f"{path.stem}: global {node.names}"] if isinstance(node, ast.Global) else []
        for name in names_of(ast.parse(text)):
            wrong += [f"{path.stem}: {name} is of {given[name]} too"] if name in given else []
            given[name] = path.stem
    assert wrong == []


def names_of(tree):
    """What a module gives at its top level."""
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            names |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
    return names


def test_no_private_text(files):
    wrong = []
    for path in files:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for what, pattern in PRIVATE.items():
            for match in re.finditer(pattern, text):
                number = text.count("\n", 0, match.start()) + 1
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {what}: {match[0]}")
    assert wrong == []


def test_executables_are_marked(files):
    wrong = [str(p.relative_to(ROOT)) for p in files if p.read_bytes()[:2] == b"#!" and not p.stat().st_mode & 0o100]
    assert wrong == []
