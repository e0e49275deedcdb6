"""churten.core.live on a real pseudo-terminal: the view is there while tasks run and gone afterwards; the output is that of default."""

import json
import os
import re
import signal
import sys
import termios
import time

import pytest
from playing import command, environment, play

from churten.live import asking
from churten.live.progress import Progress
from churten.live.view import View

pytest.importorskip("rich")
pytest.importorskip("pyte")
pytestmark = pytest.mark.usefixtures("pool_dir")

LIVE = {"ANSIBLE_STDOUT_CALLBACK": "churten.core.live", "ANSIBLE_DEPRECATION_WARNINGS": "0"}
HEAD = re.compile(r"(\d+)/(\d+) active  (\d+)/(\d+) tasks  [\d.]+/s  \d+:\d\d:\d\d")
VIEW = re.compile(rb"(?:(?:\r\x1b\[J)?(?:\d+/\d+ active [^\r]*\r\n(?:  [^\r]*\r\n)*  [^\r]*\r\x1b\[\d+A|\d+/\d+ active [^\r]*\r))+\r\x1b\[J")
SLEEPS = """
- name: the play
  hosts: all
  gather_facts: false
  strategy: STRATEGY
  tasks:
    - {name: sleeps, command: "sleep {{ 1.5 if inventory_hostname == 'long' else 0.1 }}"}
    - {name: skipped, debug: , when: false}
    - {name: looped, debug: {msg: "{{ item }}"}, loop: [a, b]}
    - {name: fails, command: /bin/false, ignore_errors: true}
    - {name: tags, debug: {msg: x}, tags: [never]}
    - block: [{name: in a block, debug: {msg: x}}]
"""


def shown(where, text, *words, hosts="a,long,z,", **more):
    (where / "site.yml").write_text(text)
    variables = ("-e", "ansible_connection=local", "-e", f"ansible_python_interpreter={sys.executable}")
    react = more.pop("react", None)
    more.setdefault("CHURTEN_POOL_DIR", os.environ.get("CHURTEN_POOL_DIR", ""))
    from terminal import Terminal

    return Terminal().play(where, "-i", hosts, *variables, where / "site.yml", *words, react=react, **(LIVE | more))


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


def heads(lines):
    return [match for line in lines if (match := HEAD.fullmatch(line))]


@pytest.mark.parametrize("strategy", ["linear", slow("free"), slow("churten.core.linear"), "churten.core.free"])
def test_there_while_running_and_gone_afterwards(tmp_path, strategy):
    terminal = shown(tmp_path, SLEEPS.replace("STRATEGY", strategy))
    assert terminal.code == 0, terminal.lines()
    # At most one view is on the screen, at its end, and the host that sleeps is named with its age.
    found = [shot for shot in terminal.shots if heads(shot)]
    assert found and all(len(heads(shot)) == 1 for shot in found)
    assert any(re.fullmatch(r"  long +1s  sleeps", line) for shot in found for line in shot)
    assert {int(head[4]) for shot in found for head in heads(shot)} == {15}
    assert all(int(head[1]) <= int(head[2]) and int(head[3]) <= 15 for shot in found for head in heads(shot))
    assert not heads(terminal.lines())
    assert "PLAY RECAP" in "\n".join(terminal.lines()) and b"active" not in VIEW.sub(b"", terminal.text)


def test_without_the_view_the_bytes_are_those_of_default(tmp_path):
    text = SLEEPS.replace("STRATEGY", "linear")
    ours = shown(tmp_path, text, hosts="long,")
    theirs = shown(tmp_path, text, hosts="long,", ANSIBLE_STDOUT_CALLBACK="default")
    assert any(heads(shot) for shot in ours.shots) and not any(heads(shot) for shot in theirs.shots)
    assert varying(VIEW.sub(b"", ours.text).decode()) == varying(theirs.text.decode())
    assert varying("".join(ours.lines())) == varying("".join(theirs.lines()))


def varying(text):
    return re.sub(r"\d\d\d\d-\d\d-\d\d |\d?\d:\d\d:\d\d\.\d+", "<time>", text)


@pytest.mark.parametrize("options", [{}, slow({"ANSIBLE_DISPLAY_SKIPPED_HOSTS": "0", "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml"})])
def test_no_terminal_means_default(tmp_path, options):
    text = SLEEPS.replace("STRATEGY", "linear").replace("1.5", "0")
    runs = [
        play(tmp_path, text, hosts=("long",), ANSIBLE_STDOUT_CALLBACK=name, **options) for name in ("default", "churten.core.live")
    ]
    assert varying(runs[0].stdout) == varying(runs[1].stdout) and runs[0].stderr == runs[1].stderr
    assert "yaml" not in str(options) or "skipping" not in runs[1].stdout


@pytest.mark.parametrize("case", ["-v", slow("CI"), slow("TERM"), "rich"])
def test_no_view_where_nobody_watches(tmp_path, case):
    more = {"CI": {"CI": "true"}, "TERM": {"TERM": "dumb"}}.get(case, {})
    if case == "rich":
        (tmp_path / "without" / "rich").mkdir(parents=True)
        (tmp_path / "without" / "rich" / "__init__.py").write_text("raise ImportError('no rich here')\n")
        more = {"PYTHONPATH": f"{tmp_path / 'without'}:{environment(tmp_path)['PYTHONPATH']}"}
    terminal = shown(tmp_path, SLEEPS.replace("STRATEGY", "linear"), *(["-v"] if case == "-v" else []), hosts="long,", **more)
    assert terminal.code == 0 and b"\x1b[J" not in terminal.text and b" active" not in terminal.text
    assert terminal.text.count(b"churten.core.live shows no live view") == (case == "rich")


ASKS = {
    "pause": ("{name: asks, pause: {prompt: say it}}", "say it:", b"yes\r"),
    "vars_prompt": ("", "say it:", b"yes\r"),
    "debugger": ("{name: asks, command: /bin/false, debugger: on_failed}", "(debug)>", b"c\r"),
}


@pytest.mark.parametrize(
    ("case", "strategy"),
    [("pause", "churten.core.linear"), slow("pause", "linear"), ("debugger", "linear"), slow("debugger", "churten.core.free"), slow("vars_prompt", "linear")],
)
def test_nothing_is_drawn_while_somebody_is_asked(tmp_path, case, strategy):
    task, question, answer = ASKS[case]
    first = "{name: sleeps, command: 'sleep 1'}"
    prompts = "  vars_prompt: [{name: said, prompt: say it, private: false}]\n" if case == "vars_prompt" else ""
    text = f"- hosts: all\n  gather_facts: false\n  strategy: {strategy}\n  tasks:\n    - {first}\n"
    text += f"- hosts: all\n  gather_facts: false\n  strategy: {strategy}\n{prompts}  tasks:\n    - {task or first}\n    - {first}\n"
    quiet, answered = [], []

    def react(terminal):
        bottom = terminal.lines()[-1:]
        if bottom and question in bottom[0] and not answered:
            answered.append(len(terminal.shots))
            quiet.append(not heads(terminal.lines()))
            return answer
        return None

    terminal = shown(tmp_path, text, hosts="a,", react=react)
    assert quiet == [True], terminal.lines()
    assert terminal.code == (2 if case == "debugger" else 0)
    assert any(heads(shot) for shot in terminal.shots[: answered[0]])
    if case != "debugger":
        assert any(heads(shot) for shot in terminal.shots[answered[0] :])
    assert not heads(terminal.lines())


@pytest.mark.slow
def test_nothing_is_drawn_over_the_question_of_another_program(tmp_path):
    # What an OpenSSH client does about a host key: it asks on the terminal itself, while other hosts run.
    script = tmp_path / "ask"
    script.write_text("#!/bin/sh\nexec 3<>/dev/tty\nprintf 'really sure? ' >&3\nread x <&3\necho $x\n")
    script.chmod(0o755)
    text = f'''
- hosts: all
  gather_facts: false
  strategy: churten.core.free
  tasks:
    - {{name: sleeps, command: "sleep {{{{ 4 if inventory_hostname == 'long' else 0.7 }}}}"}}
    - {{name: asks, debug: {{msg: "said {{{{ lookup('pipe', '{script}') }}}}"}}, when: inventory_hostname == 'a'}}
'''
    answered = []

    def react(terminal):
        if answered or not any("really sure?" in line for line in terminal.lines()):
            return None
        answered.append(True)
        time.sleep(1.2)  # some draws of the view
        return b"yes\r"

    terminal = shown(tmp_path, text, hosts="a,long,", react=react)
    assert terminal.code == 0 and answered
    before, _, after = terminal.text.partition(b"really sure? ")
    assert b" active" in before and b'"msg": "said yes"' in after
    assert after.partition(b"yes\r\n")[0].replace(b"\x1b[J", b"") == b"", after[:500]
    assert b" active" in after, "it comes back"
    assert not heads(terminal.lines())


def test_who_asks_is_noticed(monkeypatch):
    monkeypatch.setattr(asking, "_FRESH_S", 0)
    master, slave = os.openpty()
    try:
        is_asked = asking.Asking(slave)
        assert not is_asked()
        quiet = termios.tcgetattr(slave)
        quiet[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, quiet)
        assert is_asked() and not asking.Asking(slave)(), "off from the beginning is nobody who asks"
    finally:
        os.close(master)
        os.close(slave)


def test_gone_after_ctrl_c(tmp_path):
    def react(terminal):
        return signal.SIGINT if any("1s  sleeps" in line for line in terminal.lines()) and not sent.append(1) and len(sent) == 1 else None

    sent = []
    terminal = shown(tmp_path, SLEEPS.replace("STRATEGY", "linear").replace("1.5", "30"), hosts="long,", react=react)
    assert terminal.code == 99 and "User interrupted execution" in "\n".join(terminal.lines())
    assert not heads(terminal.lines())


def test_documentation(tmp_path):
    done = command("doc", tmp_path, "-t", "callback", "--json", "churten.core.live", "ansible.builtin.default")
    docs = {name: found["doc"]["options"] for name, found in json.loads(done.stdout).items()}
    assert set(docs["churten.core.live"]) - set(docs["ansible.builtin.default"]) == {"live_hosts"}
    assert set(docs["ansible.builtin.default"]) < set(docs["churten.core.live"])


# Without Ansible.


def test_progress():
    progress = Progress()
    progress.play({"u1": True, "u2": True, "u3": False}, 3, 5, 100.0)
    assert progress.total == 7
    for number, host in enumerate("abc"):
        progress.start(host, "u1", "one", 100.0 + number)
    assert [one.host for one in progress.longest(2)] == ["a", "b"]
    progress.end("a", "u1", 104.0)
    progress.end("b", "u1", 104.0, lost=True)  # it does not do u2 either
    progress.end("b", "u1", 104.0)
    assert (progress.done, progress.total, progress.rate(105.0)) == (2, 6, 2 / 5)
    progress.start("a", "included", "x", 105.0)
    assert progress.total == 7 and progress.rate(200.0) == 0.0


class Display:
    def __init__(self, fd):
        self.fd = fd

    def display(self, text, newline=True):
        os.write(self.fd, text.encode() + (b"\n" if newline else b""))


def test_output_takes_the_lines_away_and_back(monkeypatch):
    master, slave = os.openpty()
    try:
        display = Display(slave)
        view = View(display, slave, lambda columns: ["the view"])
        monkeypatch.setattr(view, "_run", lambda: None)
        view.show()
        view._lines = view._compose() if os.get_terminal_size(slave).columns else b"the view\r"
        display.display("one")
        display.display("two ", newline=False)
        display.display("three")
        child = os.fork()
        if child == 0:
            display.display("child")
            os._exit(0)
        os.waitpid(child, 0)
        view.hide()
        display.display("last")
        assert "display" not in vars(display)
        came = b""
        while not came.endswith(b"last\r\n"):
            came += os.read(master, 4096)
        assert came == b"one\r\nthe view\r\r\x1b[Jtwo three\r\nthe view\r" + b"child\r\n" + b"\r\x1b[Jlast\r\n"
    finally:
        os.close(master)
        os.close(slave)
