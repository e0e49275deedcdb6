"""Who takes part, with which settings, and how to see whether it is installed."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYINFRA = ROOT / "build" / "pyinfra" / "bin" / "pyinfra"  # `make bench` installs it there


@dataclasses.dataclass
class Contender:
    """A way to do the same work."""

    name: str
    settings: dict[str, str] = dataclasses.field(default_factory=dict)  # environment on top of what all share
    variables: dict[str, str] = dataclasses.field(default_factory=dict)  # extra variables
    missing: Callable[[], str] = lambda: ""  # why it cannot take part; empty if it can
    kind: str = "ansible"  # or "floor", "pyinfra": what runs it; run.py
    keeps: bool = True  # it leaves something running that a second run finds

    @property
    def family(self) -> str:
        """stock, mitogen, churten, remote or pyinfra."""
        return self.name.split(" ")[0]


def _mitogen() -> Path | None:
    spec = importlib.util.find_spec("ansible_mitogen")
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) / "plugins" / "strategy" if places else None


def _without_mitogen() -> str:
    return "" if _mitogen() else "mitogen is not installed (pip install mitogen)"


def _without_pyinfra() -> str:
    return "" if PYINFRA.exists() else "pyinfra is not installed (make build/pyinfra/bin/pyinfra)"


def _without(plugin: str) -> Callable[[], str]:
    """Is the plugin of churten there? `plugin` is type/name."""
    return lambda: "" if (ROOT / "plugins" / f"{plugin}.py").exists() else f"plugins/{plugin}.py does not exist"


def all_contenders() -> list[Contender]:
    """In the order of the table."""
    mitogen = {"ANSIBLE_STRATEGY_PLUGINS": str(_mitogen())}
    plain = {"mitogen_ssh_compression": "false"}  # stock runs without compression, too
    return [
        Contender("stock linear", {"ANSIBLE_STRATEGY": "linear"}),
        Contender("stock free", {"ANSIBLE_STRATEGY": "free"}),
        Contender("mitogen linear", {**mitogen, "ANSIBLE_STRATEGY": "mitogen_linear"}, plain, _without_mitogen, keeps=False),
        Contender("mitogen free", {**mitogen, "ANSIBLE_STRATEGY": "mitogen_free"}, plain, _without_mitogen, keeps=False),
        Contender("pyinfra", missing=_without_pyinfra, kind="pyinfra", keeps=False),
        Contender(
            "churten connection",
            {"ANSIBLE_STRATEGY": "free", "ANSIBLE_TRANSPORT": "churten.core.ssh"},
            missing=_without("connection/ssh"),
        ),
        Contender("churten linear", {"ANSIBLE_STRATEGY": "churten.core.linear"}, missing=_without("strategy/linear")),
        Contender("churten free", {"ANSIBLE_STRATEGY": "churten.core.free"}, missing=_without("strategy/free")),
        Contender("remote floor", kind="floor"),
        Contender("remote floor standing", kind="floor"),
    ]


# What takes part where a scenario does not say: everybody who runs the playbook itself.
USUAL = [contender.name for contender in all_contenders() if contender.kind == "ansible"]
