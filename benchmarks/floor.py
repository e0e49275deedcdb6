"""The remote floor: what a playbook's modules cost when nothing of Ansible stands between them and the hosts.

`prepare` (not measured) builds each task's module with the installed ansible-core and writes the very frames that churten's
controller would send: same archive, same compiled code, same parameters. `run` starts one plain `ssh` process per host with
churten's agent behind it (docs/protocol.md, agent hop) and sends each host its RUN frames one after the other, at most
`forks` in flight, as strategy `free` does. No templating, no variables, no callbacks, no pool.

The play must be one play of plain modules with fixed arguments. Every result is read and judged: the recap has Ansible's form.
"""

from __future__ import annotations

import argparse
import base64
import collections
import functools
import json
import os
import selectors
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from churten.transport import bootstrap

HEADER = struct.Struct(">HBBBBHIII")
HELLO, PAYLOAD, RUN, ACCEPTED, EXIT, FAILED = 1, 6, 8, 15, 17, 18
ZLIB = 1
NONCE = "0123456789abcdef" * 2
READ = 1 << 18
PATIENCE_S = 600.0


class FloorError(Exception):
    """The floor cannot be measured; the text says why."""


def frame(kind: int, body: bytes, request: int = 0) -> bytes:
    return HEADER.pack(0x4348, 1, kind, 0, 0, 0, 0, request, len(body)) + body


def pack(items: list[str | bytes]) -> bytes:
    """A vec."""
    parts = [struct.pack(">H", len(items))]
    for item in items:
        data = item if isinstance(item, bytes) else item.encode()
        parts += [struct.pack(">I", len(data)), data]
    return b"".join(parts)


def unpack(body: bytes) -> list[bytes]:
    items, at = [], 2
    for _ in range(struct.unpack_from(">H", body)[0]):
        (size,) = struct.unpack_from(">I", body, at)
        items.append(body[at + 4 : at + 4 + size])
        at += 4 + size
    return items


# ---- before the measurement ------------------------------------------------------------------------------------------


def prepare(playbook: Path, target: Path) -> None:
    """Fills the directory `target`: tasks.json (of each task, by the agent's Python, `magic` or "" for any other: the payload's
    key and the RUN body) and the PAYLOAD bodies, KEY.payload."""
    import importlib.util

    import ansible.modules
    import yaml
    from ansible.executor import module_common
    from ansible.parsing.dataloader import DataLoader
    from ansible.plugins.loader import init_plugin_loader
    from ansible.template import Templar

    from churten.transport import payload

    plays = yaml.safe_load(playbook.read_text())
    if len(plays) != 1 or plays[0].get("gather_facts", True) or set(plays[0]) - {"name", "hosts", "gather_facts", "tasks"}:
        raise FloorError(f"{playbook.name} is not one play of tasks alone, without facts")
    init_plugin_loader()
    common = {
        "_ansible_check_mode": False,
        "_ansible_no_log": False,
        "_ansible_debug": False,
        "_ansible_diff": False,
        "_ansible_verbosity": 0,
        "_ansible_version": ansible.release.__version__,
        "_ansible_syslog_facility": "LOG_USER",
        "_ansible_selinux_special_fs": ["fuse", "nfs", "vboxsf", "ramfs", "9p", "vfat"],
        "_ansible_socket": None,
        "_ansible_shell_executable": "/bin/sh",
        "_ansible_keep_remote_files": False,
        "_ansible_tmpdir": None,
        "_ansible_remote_tmp": "~/.ansible/tmp",
        "_ansible_ignore_unknown_opts": False,
    }
    if tuple(map(int, ansible.release.__version__.split(".")[:2])) >= (2, 19):
        common |= {"_ansible_target_log_info": None, "_ansible_tracebacks_for": []}
    target.mkdir()
    tasks = []
    for task in plays[0]["tasks"]:
        actions = {key: value for key, value in task.items() if key != "name"}
        if len(actions) != 1:
            raise FloorError(f"{playbook.name}: the task {task.get('name')!r} is more than a module")
        (action, given), *_ = actions.items()
        if not action.startswith("ansible.builtin.") or "{{" in json.dumps(given):
            raise FloorError(f"{playbook.name}: {action} with {given!r} is not a module of ansible.builtin with fixed arguments")
        name = action.rpartition(".")[2]
        fixed = {"_raw_params": given} if isinstance(given, str) else given or {}
        built = module_common.modify_module(
            module_name=name,
            module_path=str(Path(ansible.modules.__file__).with_name(f"{name}.py")),
            module_args={**common, "_ansible_module_name": name, **fixed},
            templar=Templar(DataLoader(), {}),
            task_vars={"ansible_python_interpreter": "/usr/bin/python3"},
            module_compression="ZIP_DEFLATED",
        )
        module = payload.recognise(built[0] if isinstance(built, tuple) else built.b_module_data)
        if module is None:
            raise FloorError(f"{action} does not run in an agent")
        forms = {}
        for magic in ("", importlib.util.MAGIC_NUMBER.hex()):
            key, items = module.payload(magic)
            if not (target / f"{key}.payload").exists():
                (target / f"{key}.payload").write_bytes(pack(items()))
            run = [key, module.fqn, module.params, module.profile, "", str(module.rlimit_nofile), "0", module.form, module.secrets, ""]
            forms[magic] = [key, base64.b64encode(pack(run)).decode()]
        tasks.append(forms)
    (target / "tasks.json").write_text(json.dumps(tasks))


# ---- the measurement -------------------------------------------------------------------------------------------------


class Remote:
    """One host: its ssh process, the agent behind it, and how far it has come."""

    def __init__(self, index: int, name: str, argv: list[str], errors: Path) -> None:
        self.index, self.name = index, name
        self.counts: collections.Counter[str] = collections.Counter()
        self.done = 0  # requests that have ended
        self.magic: str | None = None  # None: HELLO has not come
        self.errors = errors
        self._sent: set[str] = set()
        self._marked = False
        self._in = b""
        self._out = bytearray()
        with errors.open("wb") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.stdin, False)
        self.write(bootstrap.start_input(NONCE))

    def write(self, data: bytes) -> None:
        self._out += data
        self.flush()

    def flush(self) -> bool:
        """Writes what the pipe takes; True if nothing is left."""
        try:
            while self._out:
                del self._out[: os.write(self.stdin, self._out)]
        except BlockingIOError:
            return False
        return True

    def start(self, task: dict[str, tuple[str, bytes]], payloads: Callable[[str], bytes]) -> None:
        """Sends the task's RUN, the payload before the first that needs it."""
        key, run = task.get(self.magic or "") or task[""]
        parts = [] if key in self._sent else [frame(PAYLOAD, payloads(key))]
        self._sent.add(key)
        self.write(b"".join([*parts, frame(RUN, run, self.done + 1)]))

    def read(self) -> list[tuple[int, int, bytes]]:
        """The frames that have come: (type, request, body)."""
        data = os.read(self.stdout, READ)
        if not data:
            raise FloorError(f"{self.name}: the session ended: {self.errors.read_text(errors='replace').strip()[-300:]}")
        self._in += data
        if not self._marked:
            marker = f"\nCHURTEN-{NONCE}-READY\n".encode()
            _, found, rest = (b"\n" + self._in).partition(marker)
            if not found:
                return []
            self._marked, self._in = True, rest
        frames = []
        while len(self._in) >= HEADER.size:
            head = HEADER.unpack_from(self._in)
            end = HEADER.size + head[8]
            if len(self._in) < end:
                break
            if head[:2] != (0x4348, 1) or head[3] & ZLIB:
                raise FloorError(f"{self.name}: this is no frame of an agent: {self._in[:40]!r}")
            frames.append((head[2], head[7], self._in[HEADER.size : end]))
            self._in = self._in[end:]
        return frames

    def judge(self, body: bytes) -> None:
        """Counts an EXIT as Ansible's recap would."""
        items = unpack(body)
        result = json.loads(items[3]) if items[0] == b"0" else {"failed": True}
        if result.get("failed"):
            raise FloorError(f"{self.name}: a module failed: {items[:3]} {items[3][-300:]!r} {items[4][-300:]!r}")
        self.counts["ok"] += 1
        self.counts["changed"] += bool(result.get("changed"))


class Floor:
    """All hosts of a spec: {hosts: {name: argv}, forks, warm, standing: whether a module's child may run it again, tasks: directory of `prepare`,
    errors: directory}."""

    def __init__(self, spec: dict) -> None:
        self.spec = spec
        more = ["1"] if spec["standing"] else []
        self.tasks = [
            {magic: (key, pack([*unpack(base64.b64decode(run)), *more])) for magic, (key, run) in task.items()}
            for task in json.loads(Path(spec["tasks"], "tasks.json").read_text())
        ]
        self.payloads = functools.cache(lambda key: Path(spec["tasks"], f"{key}.payload").read_bytes())
        self.remotes: list[Remote] = []
        self.deadline = time.monotonic() + PATIENCE_S

    def fan_out(self, tasks: list[dict[str, tuple[str, bytes]]]) -> None:
        """Every task on every host; hosts that are not connected yet are. A host keeps its place in the line between two tasks."""
        names = list(self.spec["hosts"])
        line = collections.deque(range(len(names)))
        known = self.remotes
        left = len(names)
        flying = 0
        with selectors.DefaultSelector() as selector:
            for remote in known:
                remote.done = 0
                selector.register(remote.stdout, selectors.EVENT_READ, remote)
            while left:
                while line and flying < self.spec["forks"]:
                    index = line.popleft()
                    flying += 1
                    if index < len(known):
                        known[index].start(tasks[known[index].done], self.payloads)
                        self._watch(selector, known[index])
                    else:
                        remote = self._connect(index, names[index])
                        known.append(remote)
                        selector.register(remote.stdout, selectors.EVENT_READ, remote)
                        self._watch(selector, remote)
                ready = selector.select(max(0.0, self.deadline - time.monotonic()))
                if not ready and time.monotonic() >= self.deadline:
                    raise FloorError(f"{left} hosts are not done after {PATIENCE_S:.0f} s")
                for key, _events in ready:
                    remote = key.data
                    if key.fd == remote.stdin:
                        self._watch(selector, remote)
                        continue
                    for kind, _request, body in remote.read():
                        if kind == HELLO:
                            hello = [item.decode() for item in unpack(body)]
                            remote.magic = dict(zip(hello[::2], hello[1::2], strict=True))["magic"]
                            remote.start(tasks[0], self.payloads)
                            self._watch(selector, remote)
                        elif kind == EXIT:
                            remote.judge(body)
                            remote.done += 1
                            flying -= 1
                            if remote.done < len(tasks):
                                line.append(remote.index)
                            else:
                                left -= 1
                        elif kind != ACCEPTED:
                            raise FloorError(f"{remote.name}: frame {kind}: {body[:300]!r}")

    def _connect(self, index: int, name: str) -> Remote:
        return Remote(index, name, self.spec["hosts"][name], Path(self.spec["errors"]) / f"floor-{name}.err")

    @staticmethod
    def _watch(selector: selectors.BaseSelector, remote: Remote) -> None:
        """Waits for room in the pipe while there is something to write."""
        flushed, watched = remote.flush(), remote.stdin in selector.get_map()
        if not flushed and not watched:
            selector.register(remote.stdin, selectors.EVENT_WRITE, remote)
        elif flushed and watched:
            selector.unregister(remote.stdin)

    def cpu(self) -> float:
        """User and system seconds of this process and its ssh processes so far."""
        own = os.times()
        ticks = sum(float(field) for remote in self.remotes for field in _times(remote.process.pid))
        return own.user + own.system + ticks / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        for remote in self.remotes:
            assert remote.process.stdin and remote.process.stdout
            remote.process.stdin.close()
        for remote in self.remotes:
            remote.process.stdout.close()
            try:
                remote.process.wait(10)
            except subprocess.TimeoutExpired:
                remote.process.kill()
                remote.process.wait()


def _times(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]


def run(spec: dict) -> None:
    floor = Floor(spec)
    try:
        if spec["warm"]:
            # Sessions, agents and payloads are there, and every module has run once: only what comes now counts.
            floor.fan_out(list({task[""][0]: task for task in floor.tasks}.values()))
            for remote in floor.remotes:
                remote.counts.clear()
        before, begin = floor.cpu(), time.monotonic()
        floor.fan_out(floor.tasks)
        measured = {"wall": time.monotonic() - begin, "controller_cpu": floor.cpu() - before}
    finally:
        floor.close()
    print("PLAY RECAP *********")
    for remote in floor.remotes:
        counts = [f"{name}={remote.counts[name]}" for name in ("ok", "changed", "unreachable", "failed", "skipped", "rescued", "ignored")]
        print(f"{remote.name} : {' '.join(f'{count:<8}' for count in counts)}")
    if spec["warm"]:
        print(f"MEASURED {json.dumps(measured)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    first = verbs.add_parser("prepare")
    first.add_argument("playbook", type=Path)
    first.add_argument("target", type=Path)
    first.set_defaults(act=lambda given: prepare(given.playbook, given.target))
    second = verbs.add_parser("run")
    second.add_argument("spec", type=Path)
    second.set_defaults(act=lambda given: run(json.loads(given.spec.read_text())))
    given = parser.parse_args()
    try:
        given.act(given)
    except FloorError as error:
        print(f"floor: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
