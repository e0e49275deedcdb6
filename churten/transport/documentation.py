"""Documentation that is computed: our connection plugins accept whatever the built-in ones of the installed ansible-core accept."""

from __future__ import annotations

import copy
import json
import typing as t

import yaml
from ansible.plugins.loader import fragment_loader


def connection_fragment(document: str, pipelining: bool) -> str:
    """The options of a built-in plugin's DOCUMENTATION, its fragments merged, as the text of a documentation fragment.

    `pipelining`: its default here. It stays an option: switched off, modules travel as files, as in the built-in plugin.
    """
    whole = _load(document)
    options: dict[str, t.Any] = {}
    fragments = whole.get("extends_documentation_fragment") or []
    for name in [fragments] if isinstance(fragments, str) else fragments:
        options.update(_fragment(name))
    for name, option in (whole.get("options") or {}).items():
        options[name] = {**options.get(name, {}), **copy.deepcopy(option)}
    if "pipelining" in options:
        options["pipelining"]["default"] = pipelining
    for option in options.values():
        option.pop("version_added", None)
        for kind in ("vars", "env", "ini", "cli", "keyword"):
            for entry in option.get(kind) or []:
                entry.pop("version_added", None)
    # JSON is YAML, and much faster to write; this runs at the start of each ansible-playbook.
    return json.dumps({"options": options, "notes": whole.get("notes") or []})


def _load(document: str) -> dict[str, t.Any]:
    return t.cast(dict[str, t.Any], yaml.load(document, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def _fragment(name: str) -> dict[str, t.Any]:
    found = fragment_loader.get(name.strip())
    if found is None:
        return {}
    return t.cast(dict[str, t.Any], _load(found.DOCUMENTATION).get("options") or {})
