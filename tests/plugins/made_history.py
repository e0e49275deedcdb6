"""A history without a play."""

import json
import os

from churten.history import ingest
from churten.history.place import Place

EVIL = "<script>alert(1)</script>"


def lines(run="00000000000000aa", hosts=3, tasks=4, started="2026-11-21T10:11:12.345Z", content=None):
    """What a run says."""
    base = {"v": 1, "run": run}
    yield base | {
        "ev": "run", "started": started, "playbook": "made.yml", "path": "/srv/made.yml", "ansible": "2.19.1", "churten": "0", "python": "3.11.2",
        "controller": "here", "user": "me", "forks": 5, "arguments": {"check": True}, "labels": ["nightly"],
    }  # fmt: skip
    yield base | {"ev": "play", "play": "the play", "play_uuid": "0242ac11-0002-1a2b-3c4d-000000000006", "at": 0.0, "strategy": "free", "slots": 5}
    yield base | {"ev": "facts", "host": "h0", "facts": {"os": EVIL}}
    yield base | {"ev": "file", "path": "/srv/made.yml", "content": f"# {EVIL}\n"}
    statuses = ("ok", "changed", "failed", "ignored", "skipped", "unreachable")
    for task in range(tasks):
        for host in range(hosts):
            line = base | {
                "ev": "result", "play": "the play", "play_uuid": "0242ac11-0002-1a2b-3c4d-000000000006", "task": f"task {task} {EVIL}",
                "uuid": f"0242ac11-0002-1a2b-3c4d-{task:012x}", "action": "command", "role": None, "path": f"/srv/tasks{task % 2}.yml:{task + 1}",
                "host": f"h{host}", "status": statuses[task % 6], "items": None, "started": f"2026-11-21T10:11:{13 + task}.{100 + host}Z",
                "at": task + host / 1000, "seconds": 2.0 if host == 1 else 0.25, "queue": 0.1, "connect": 0.05, "remote": 0.1, "controller": 0.1,
                "engine": "fiber", "worker": host, "delegated": "other" if task == 1 else None,
            }  # fmt: skip
            if host == 0:
                line |= {"content": content or {"stdout": f"=1+1 {EVIL}\0\ud800", "rc": task}, "tags": ["a", "b"], "handler": task == 3}
            yield line
    counts = {"ok": 2, "changed": 1, "failures": 1, "unreachable": 0, "skipped": 0, "rescued": 0, "ignored": 1}
    yield base | {"ev": "stats", "hosts": {f"h{host}": counts for host in range(hosts)}}
    yield base | {"ev": "end", "seconds": 9.0, "results": hosts * tasks}


def history(where, *runs):
    """A history of `runs`: keywords for `lines`, by default one run."""
    place = Place(where)
    place.make()
    for number, run in enumerate(runs or ({},)):
        with open(os.path.join(place.runs, f"{number}.jsonl"), "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines(**run))
    done = ingest.runs(place)
    assert not done.bad, done.first_bad
    return place
