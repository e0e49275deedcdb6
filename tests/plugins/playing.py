"""Runs ansible-playbook of this interpreter with the plugins of this checkout, over local hosts."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAIN = "import sys; from ansible.cli.{} import main; sys.argv[0] = 'ansible-{}'; sys.exit(main())"


def collections(where):
    """A directory for PYTHONPATH or ANSIBLE_COLLECTIONS_PATH that holds churten.core."""
    core = where / "ansible_collections" / "churten" / "core"
    if not core.exists():
        core.mkdir(parents=True)
        (core / "plugins").symlink_to(ROOT / "plugins")
    return where


def environment(where, **more):
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "CHURTEN_", "PYTHON"))}
    return {
        **keep,
        "PYTHONPATH": f"{ROOT}:{collections(where / 'collections')}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(where),
        "ANSIBLE_NOCOWS": "1",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
        **{k: str(v) for k, v in more.items()},
    }


def command(name, where, *words, preexec_fn=None, **more):
    """Runs ansible-<name>; returns the completed process, whatever its code."""
    code = MAIN.format("adhoc" if name == "ansible" else name, name)
    return subprocess.run(
        [sys.executable, "-c", code, *(str(word) for word in words)],
        cwd=where,
        env=environment(where, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=preexec_fn,
    )


def play(where, text, *words, hosts=("h1",), code=0, name="site.yml", **more):
    """Writes the playbook and runs it on local hosts; fails the test unless it ends with `code`."""
    (where / name).write_text(text)
    inventory = ",".join(hosts) + ","
    variables = ("-e", "ansible_connection=local", "-e", f"ansible_python_interpreter={sys.executable}")
    done = command("playbook", where, "-i", inventory, *variables, where / name, *words, **more)
    assert done.returncode == code, done.stdout + done.stderr
    return done
