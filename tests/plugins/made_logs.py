"""Timing logs made for tests: runs whose figures are known."""

import json
import random

STARTED = "2026-11-21T10:00:{:02}.000Z"


def run_line(run, playbook="site.yml", forks=5, started=None):
    facts = {"started": started or STARTED.format(0), "playbook": playbook, "ansible": "2.19.0", "churten": "0.1.0", "forks": forks}
    return {"v": 1, "ev": "run", "run": run} | facts


def result_line(run, host, task, at, seconds, **more):
    fixed = {
        "play": "p", "play_uuid": "play-1", "task": task, "uuid": f"u-{task}", "action": "command", "role": None, "path": f"/p/site.yml:{len(task)}",
        "host": host, "status": "ok", "items": None, "started": STARTED.format(int(at) % 60), "at": at, "seconds": seconds, "queue": None,
        "connect": None, "remote": None, "controller": None, "engine": None, "worker": None,
    }  # fmt: skip
    return {"v": 1, "ev": "result", "run": run} | fixed | more


def end_line(run, seconds, results):
    return {"v": 1, "ev": "end", "run": run, "seconds": seconds, "results": results}


def text(lines):
    return "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)


def big(run, hosts, tasks, strategy="linear", slots=50, seed=1, playbook="site.yml", started=None, slow=None):
    """The lines of a run as churten would write them: `hosts` x `tasks` results in `slots` slots. Yields dicts."""
    chance = random.Random(seed)
    names = [f"web-{number:03}" for number in range(hosts)]
    yield run_line(run, playbook, slots, started)
    free = [0.0] * min(slots, hosts)  # when each slot becomes free
    ready = dict.fromkeys(names, 0.0)
    written, made = [], 0
    factor = {name: 1.0 + (0.8 if number % 37 == 5 else 0.0) + chance.random() * 0.2 for number, name in enumerate(names)}
    base = [0.05 + 0.5 * chance.random() ** 3 for _ in range(tasks)]
    for number in range(tasks):
        barrier = max(ready.values())
        order = sorted(names, key=ready.get) if strategy == "free" else names
        for name in order:
            eligible = ready[name] + 0.001 if strategy == "free" else barrier + 0.002
            worker = min(range(len(free)), key=free.__getitem__)
            at = max(eligible, free[worker])
            connect = 0.15 * factor[name] if number == 0 else 0.0
            remote = base[number] * factor[name] * (0.9 + 0.2 * chance.random()) * (slow or {}).get(number, 1.0)
            controller = 0.003 + 0.004 * chance.random()
            seconds = connect + remote + controller
            free[worker] = at + seconds
            ready[name] = at + seconds + 0.001
            role = f"role{number // 10}"
            more = {
                "play": "the play", "role": role, "uuid": f"uuid-{number}",
                "path": f"/srv/roles/{role}/tasks/main.yml:{3 * (number % 10) + 2}", "queue": round(at - eligible, 6), "connect": round(connect, 6),
                "remote": round(remote, 6), "controller": round(controller, 6), "engine": "fiber", "worker": worker,
                "status": "changed" if chance.random() < 0.2 else "failed" if chance.random() < 0.001 else "ok",
            }  # fmt: skip
            written.append(result_line(run, name, f"{role} : task {number}", round(at, 6), round(seconds, 6), **more))
        if strategy != "free":
            written.sort(key=lambda line: line["at"] + line["seconds"])
            made += len(written)
            yield from written
            written = []
    written.sort(key=lambda line: line["at"] + line["seconds"])
    yield from written
    yield end_line(run, round(max(ready.values()) + 0.1, 6), made + len(written))
