"""What the history says of a run over sshd hosts is what its standard output said: names, results, items, the recap, and times that can be true."""

import json
import re
import time

import pytest

from churten.cli.main import main
from churten.history import ingest
from churten.history.place import Place

PLAY = """
- name: first
  hosts: all
  gather_facts: false
  strategy: STRATEGY
  tasks:
    - {name: reach, ping: }
    - {name: sleeps, command: sleep 0.4}
    - {name: becomes, command: id -un, become: true, notify: told}
    - {name: looks, command: "true", loop: [1, 2, 3], changed_when: item == 2}
    - {name: fails in a loop, command: "test {{ item }} = a", loop: [a, b], ignore_errors: true}
    - {name: skips, command: "true", when: false}
    - {name: skips all items, command: "true", loop: [1, 2], when: false}
    - {name: hides, command: echo canary-one, no_log: true}
    - {name: hides items, command: "echo {{ item }}", loop: [canary-two, canary-three], no_log: true}
    - {name: fails alone, command: "false", when: "inventory_hostname == groups['all'] | difference(['gone']) | first"}
    - name: around
      block:
        - {name: is rescued, command: "false"}
      rescue:
        - {name: rescues, debug: {msg: x}}
      always:
        - {name: always, debug: {msg: x}}
    - {name: tries, command: "false", register: tried, until: tried is success, retries: 2, delay: 0, ignore_errors: true}
    - {name: elsewhere, command: "true", delegate_to: "{{ groups['all'] | difference(['gone']) | last }}"}
    - {name: "names {{ inventory_hostname }}", debug: {msg: x}}
  handlers:
    - {name: told, command: "true"}
- name: second
  hosts: all
  gather_facts: false
  tasks:
    - {name: once, debug: {msg: x}, run_once: true}
"""
HEAD = re.compile(r"(?:TASK|RUNNING HANDLER) \[(.*)\] \**$")
LINE = re.compile(r"(ok|changed|skipping|fatal|failed): \[([^] ]+)(?: -> [^]]+)?\](?:: (FAILED|UNREACHABLE)!)?( (?:=> )?\(item=)?")
WORDS = {"ok": "ok", "changed": "changed", "skipping": "skipped", "fatal": "failed", "failed": "failed"}
RECAP = re.compile(r"(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)\s+skipped=(\d+)\s+rescued=(\d+)\s+ignored=(\d+)")


def shown(text):
    """By task and host what the default callback printed: [status, items]. And the numbers of the recap by host.

    A loop with failed items has no line of its own: "...ignoring" stands below its task's banner, whatever host's line is above. Whose loop it was cannot
    be told, so it is counted: as many as there are loops with failed items, and all of them are ignored.
    """
    found, task, alone, recap, ignored = {}, "", None, {}, {}
    for line in text.splitlines():
        if match := HEAD.match(line):
            task, alone = match[1], None
        elif match := LINE.match(line):
            status = "unreachable" if match[3] == "UNREACHABLE" else WORDS[match[1]]
            last = found.setdefault((task, match[2]), [[], 0])
            alone = last if match[1] == "fatal" and not match[4] else None
            if match[4]:
                last[0].append(status)
                last[1] += 1
            elif not last[1]:  # a loop's own line says nothing new
                last[0] = [status]
        elif line.startswith("...ignoring"):
            if alone is None:
                ignored[task] = ignored.get(task, 0) + 1
            else:
                alone[0] = ["ignored"]
            alone = None
        elif match := RECAP.match(line):
            recap[match[1]] = [int(number) for number in match.groups()[1:]]
    for looped, times in ignored.items():
        failed = [one for (task, _), one in found.items() if task == looped and one[1] and "failed" in one[0]]
        assert len(failed) == times, (looped, text)
        for one in failed:
            one[0] = ["ignored"]
    ranks = ["skipped", "ok", "changed", "ignored", "failed", "unreachable"]
    return {key: (max(statuses, key=ranks.index), items or None) for key, (statuses, items) in found.items()}, recap


@pytest.mark.parametrize("strategy", ["churten.core.linear", "churten.core.free"])
def test_the_history_of_a_run_is_what_it_printed(play, tmp_path, capsys, strategy):
    gone = tmp_path / "gone"
    gone.write_text("gone ansible_host=127.0.0.1 ansible_port=1 ansible_ssh_common_args='-o ConnectTimeout=5'\n")
    env = {"ANSIBLE_CALLBACKS_ENABLED": "churten.core.history,churten.core.timings", "CHURTEN_HISTORY_DIR": str(tmp_path / "h"), "CHURTEN_TIMINGS_RECAP": "0"}
    began = time.monotonic()
    done = play(PLAY.replace("STRATEGY", strategy), "churten.core.ssh", "-i", str(gone), env=env)
    took = time.monotonic() - began
    assert "PLAY RECAP" in done.text, done.text
    for _ in range(100):
        if not ingest.runs(Place(tmp_path / "h"), wait_s=60.0).busy and not ingest.pending(Place(tmp_path / "h")):
            break
        time.sleep(0.1)
    assert main(["history", "export", "--dir", str(tmp_path / "h"), "json", "last"]) == 0
    exported = capsys.readouterr().out
    (run,) = json.loads(exported)
    wanted, recap = shown(done.text)
    assert len(recap) == 3 and len(wanted) > 25, done.text

    results = {(row["task"], row["host"]): row for row in run["results"]}
    assert len(results) == len(run["results"])
    got = {key: (row["status"], row["items"]) for key, row in results.items()}
    templated = {key: value for key, value in wanted.items() if not key[0].startswith("names ")}
    assert {key: value for key, value in got.items() if not key[0].startswith("names ")} == templated
    assert sum(task.startswith("names ") for task, _ in got) == sum(task.startswith("names ") for task, _ in wanted)
    assert {host: [json_stats[name] for name in "ok changed unreachable failures skipped rescued ignored".split()] for host, json_stats in
            ((host["name"], host["stats"]) for host in run["hosts"])} == recap  # fmt: skip
    assert [one["name"] for one in run["plays"]] == ["first", "second"]
    assert "canary" not in exported

    assert 0 < run["seconds"] < took
    for (task, host), row in results.items():
        assert 0 <= row["at"] <= row["at"] + row["seconds"] < run["seconds"] + 0.01, row
        if task == "sleeps" and host != "gone":
            assert row["remote"] >= 0.4 and row["connect"] + row["remote"] + row["controller"] == pytest.approx(row["seconds"], abs=1e-4)
    assert {row["attempts"] for (task, _), row in results.items() if task == "tries"} == {3}
