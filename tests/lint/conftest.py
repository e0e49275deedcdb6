"""Shared by the lints: which files are the project's."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT = {".git", ".venv", "build", "dist", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "results", "bin"}


def project_files():
    """Tracked files and new ones that git would not ignore; without git, everything that is not built."""
    words = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(words, capture_output=True, check=True).stdout.decode().split("\0")
        paths = [ROOT / name for name in names if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [path for path in ROOT.rglob("*") if not BUILT & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


@pytest.fixture(scope="session")
def files():
    found = project_files()
    assert len(found) > 20
    return found


@pytest.fixture(scope="session")
def c_files(files):
    found = [path for path in files if path.suffix in (".c", ".h") and path.is_relative_to(ROOT / "csrc")]
    assert found
    return found
