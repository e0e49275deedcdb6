"""What a file in scenarios/ may say, and what it is judged by."""

from __future__ import annotations

import dataclasses
import typing as t
from pathlib import Path

import yaml
from contenders import USUAL, all_contenders

HERE = Path(__file__).resolve().parent
SECOND = ("", "warm", "files")
OURS = "churten free"


class ScenarioError(Exception):
    """A scenario file says something that cannot be; the text names it."""


@dataclasses.dataclass
class Target:
    """What is wanted: a figure of one contender, by itself or against another's."""

    at_least: float | None = None
    at_most: float | None = None
    figure: str = "wall"
    of: str = OURS
    vs: str = ""  # `at_least`: how many times the own figure goes into the other's; `at_most`: the own figure divided by the other's
    minus: str = ""  # the other's figure is subtracted
    unit: str = ""  # for `minus`, and for figures by themselves

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ScenarioError("a target says either at_least or at_most")
        known = {contender.name for contender in all_contenders()}
        for name in (self.of, self.vs or self.of, self.minus or self.of):
            if name not in known:
                raise ScenarioError(f"a target speaks of {name!r}; there are: {', '.join(sorted(known))}")

    def measured(self, value: t.Callable[[str, str], float | None]) -> float | None:
        """The number to compare; `value(contender, figure)` is None for what was not measured."""
        own, other = value(self.of, self.figure), value(self.vs or self.minus or self.of, self.figure)
        if own is None or other is None:
            return None
        if self.minus:
            return own - other
        if not self.vs:
            return own
        top, bottom = (other, own) if self.at_least is not None else (own, other)
        return top / bottom if bottom else None

    def met(self, found: float) -> bool:
        return found >= self.at_least if self.at_least is not None else found <= t.cast(float, self.at_most)

    def shown(self, found: float) -> str:
        """A measured number, in this target's own terms."""
        if self.vs:
            return f"{found:.2f}x" if found < 10 else f"{found:.1f}x"
        number = f"{found:.0f}" if found >= 1000 else f"{found:.3g}"
        return f"{number} {self.unit}".rstrip()

    def wanted(self, title: str) -> str:
        """In words; `title` is the figure's."""
        sign = ">=" if self.at_least is not None else "<="
        number = self.at_least if self.at_least is not None else self.at_most
        what = "" if self.figure == "wall" and self.vs else f"{title} "
        whose = "" if self.of == OURS else f"{self.of}: "
        if self.vs:
            return f"{whose}{what}{sign} {number:g}x {self.vs}"
        return f"{whose}{what}{f'more than {self.minus} ' if self.minus else ''}{sign} {number:g}{' ' + self.unit if self.unit else ''}"

    def verdict(self, found: float | None) -> str:
        if found is None:
            return "not measured"
        return f"met ({self.shown(found)})" if self.met(found) else f"missed ({self.shown(found)})"


@dataclasses.dataclass
class World:
    """What the hosts are like."""

    discover: bool = False  # no ansible_python_interpreter
    logs: bool = False  # sshd logs: logins are counted
    one_sshd: bool = False  # for hundreds of hosts
    rtt_ms: float = 0  # a delay proxy before each host


@dataclasses.dataclass
class Part:
    """A further run of each contender, for a figure that compares; not in the table itself."""

    playbook: str = ""  # empty: the scenario's
    limit: int = 0  # the first so many hosts; 0: all


@dataclasses.dataclass
class Whole:
    """Its share of `make bench` without SCENARIO."""

    order: int  # 1 is first; the time may not last for the last
    repeat: int = 3
    only: list[str] = dataclasses.field(default_factory=list)  # contenders; empty: all that usually take part
    once: list[str] = dataclasses.field(default_factory=list)  # contenders that run once, whatever `repeat` says


@dataclasses.dataclass
class Scenario:
    """scenarios/NAME.yml."""

    name: str
    title: str
    hosts: int
    forks: int
    playbook: str  # path relative to benchmarks/
    tasks: int = 0  # host-tasks per host: what a cost per host-task is divided by
    unit: str = "task"  # what is counted there
    state: str = ""  # directory below lab_dir that the play fills: emptied before, compared after each run
    file_mb: int = 0  # the size of a file of random bytes that the play finds at $BENCH_FILE
    settings: dict[str, str] = dataclasses.field(default_factory=dict)  # further environment for everybody; {own} is a directory of the run's own
    per: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)  # the same for one family (stock, mitogen, churten)
    contenders: list[str] = dataclasses.field(default_factory=lambda: list(USUAL))
    on_request: list[str] = dataclasses.field(default_factory=list)  # take part only with --everybody or --only
    second: str = ""  # measured is a second run: `warm` everything kept, `files` what the first left on disk but no process
    world: World = dataclasses.field(default_factory=World)
    parts: dict[str, Part] = dataclasses.field(default_factory=dict)
    figures: list[str] = dataclasses.field(default_factory=list)  # further columns; figures.py
    idle: list[float] = dataclasses.field(default_factory=list)  # [from, to]: seconds of the run in which all hosts work
    targets: list[Target] = dataclasses.field(default_factory=list)
    whole: Whole | None = None  # None: not in `make bench` without SCENARIO
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # what one run of a contender takes, roughly, on two cores

    def estimate(self, names: list[str], repeats: t.Callable[[str], int]) -> float:
        """Seconds that these contenders take, the lab included."""
        lab = 3 + (0.005 if self.world.one_sshd else 0.06) * self.hosts
        return lab + sum(self.seconds.get(name, 10.0) * repeats(name) for name in names)


def _made(kind: type[t.Any], given: dict[str, t.Any], where: str) -> t.Any:
    names = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(given) - names):
        raise ScenarioError(f"{where}: {', '.join(unknown)} is unknown; there are: {', '.join(sorted(names))}")
    try:
        return kind(**given)
    except (TypeError, ScenarioError) as error:
        raise ScenarioError(f"{where}: {error}") from error


def parse(name: str, given: dict[str, t.Any]) -> Scenario:
    """A scenario from what its file says; raises ScenarioError."""
    import figures

    given = dict(given)
    for key, kind in (("world", World), ("whole", Whole)):
        if key in given:
            given[key] = _made(kind, given[key], f"{name}: {key}")
    given["targets"] = [_made(Target, one, f"{name}: targets") for one in given.get("targets", [])]
    given["parts"] = {key: _made(Part, one, f"{name}: parts") for key, one in given.get("parts", {}).items()}
    made: Scenario = _made(Scenario, {"name": name, **given}, name)
    if made.second not in SECOND:
        raise ScenarioError(f"{name}: second is {made.second!r}; it can be warm or files")
    known = {contender.name for contender in all_contenders()}
    asked = [*made.contenders, *made.on_request, *(made.whole.only + made.whole.once if made.whole else []), *made.seconds]
    for one in asked:
        if one not in known:
            raise ScenarioError(f"{name}: there is no contender {one!r}; there are: {', '.join(sorted(known))}")
    for one in [*made.figures, *(target.figure for target in made.targets)]:
        if one not in figures.FIGURES:
            raise ScenarioError(f"{name}: there is no figure {one!r}; there are: {', '.join(figures.FIGURES)}")
    for one in [made.playbook, *(part.playbook for part in made.parts.values() if part.playbook)]:
        if not (HERE / one).exists():
            raise ScenarioError(f"{name}: there is no playbook {one}")
    return made


def load(name: str) -> Scenario:
    path = HERE / "scenarios" / f"{name}.yml"
    if not path.exists():
        raise ScenarioError(f"no scenario {name}; there are: {', '.join(names())}")
    return parse(name, yaml.safe_load(path.read_text()))


def names() -> list[str]:
    """All scenarios there are."""
    return sorted(path.stem for path in (HERE / "scenarios").glob("*.yml"))


def everything() -> list[Scenario]:
    """All scenarios: those of the whole in its order, then the others."""
    found = [load(name) for name in names()]
    return sorted(found, key=lambda scenario: (scenario.whole.order if scenario.whole else 1000, scenario.name))
