# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-playbook without its start: a process that has imported core and forks for every run.

`Oven` is the side of the harness; `serve` is the process. One line of JSON asks for a run: words, folder, environment
that is not core's configuration, where output goes; the answer is the exit code. Core's configuration is read when it
is imported, so there is one oven per environment.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

END_SECONDS = 5


class Oven:
    """One warm ansible-playbook; env is fixed."""

    def __init__(self, words: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def run(self, words: list[str], cwd: Path, env: dict[str, str], out: Path, seconds: float) -> int:
        """The exit code; -1000 for a run that was ended at its deadline."""
        request = {"words": words, "cwd": str(cwd), "env": env, "out": str(out), "seconds": seconds}
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        ready, _, _ = select.select([self.process.stdout], [], [], seconds + 3 * END_SECONDS)
        if not ready:
            raise TimeoutError("the oven does not answer")
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=30)


def serve() -> None:
    """Reads requests from stdin until its end."""
    import ansible.plugins.strategy.free
    import ansible.plugins.strategy.linear  # noqa: F401
    from ansible.cli.playbook import main

    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for line in requests:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            os._exit(_child(request, main))
        answers.write(f"{_wait(pid, request['seconds'])}\n")
        answers.flush()


def _child(request: dict[str, Any], main: Any) -> int:
    from ansible import constants as C

    os.setsid()
    for name, number in (("/dev/null", 0), (request["out"] + "/stdout", 1), (request["out"] + "/stderr", 2)):
        opened = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    os.closerange(3, 64)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    os.makedirs(C.DEFAULT_LOCAL_TMP, mode=0o700, exist_ok=True)  # the run before removed it at its end
    sys.argv = request["words"]
    code: Any = 1
    try:
        main()
        code = 0
    except SystemExit as ex:
        code = ex.code if isinstance(ex.code, int) else 0 if ex.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code)


def _wait(pid: int, seconds: float) -> int:
    """Waits for the run; one past its deadline is aborted with a traceback in stderr."""
    ended = os.pidfd_open(pid)
    code = None
    for limit, number in ((seconds, signal.SIGABRT), (END_SECONDS, signal.SIGKILL), (END_SECONDS, signal.SIGKILL)):
        if select.select([ended], [], [], limit)[0]:
            status = os.waitpid(pid, 0)[1]
            code = os.waitstatus_to_exitcode(status) if code is None else code
            break
        code = -1000
        os.kill(pid, number)
    os.close(ended)
    try:
        os.killpg(pid, signal.SIGKILL)
        time.sleep(0.05)
    except ProcessLookupError:
        pass
    return -1000 if code is None else code


if __name__ == "__main__":
    serve()
