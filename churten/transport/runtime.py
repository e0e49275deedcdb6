"""Where the pool lives: its private directory, the little cache in it, and starting `churten-pool`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import socket
import stat
import sys
import time

from churten import __version__

START_TIMEOUT_S = 5.0
_NAMESPACES = ("mnt", "net", "user", "uts")
_CACHE_FILES = 512
_CACHE_FILE_MAX = 8 << 20
_CACHE_BYTES = 64 << 20
_SOCKET_PATH_MAX = 100


class RuntimeProblem(Exception):
    """The pool cannot be used here; the text says why in one sentence."""


def _place_tag() -> str:
    """Eight hex digits for this host and the namespaces we run in: a host or container that shares our home directory must not use our pool,
    it sees another network. A digest, because the path of a socket must be short."""
    names = [socket.gethostname()]
    for name in _NAMESPACES:
        try:
            names.append(os.readlink(f"/proc/self/ns/{name}"))
        except OSError:
            names.append("")
    return hashlib.sha256("\0".join(names).encode()).hexdigest()[:8]


def _is_private(path: str) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _make_private(path: str) -> None:
    """Create `path` as 0700, or check that it is; RuntimeProblem if it is anybody else's or a link."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    except OSError as ex:
        raise RuntimeProblem(f"cannot create {path}: {ex.strerror}") from ex
    if not _is_private(path):
        raise RuntimeProblem(f"{path} is not a directory that only this user can enter (mode 0700)")


def pool_dir(create: bool = True) -> str:
    """The directory of this user's pool (docs/protocol.md, "Client hop security"), checked; RuntimeProblem if there is none to be had."""
    override = os.environ.get("CHURTEN_POOL_DIR")
    if override:
        path = os.path.abspath(override)
    else:
        base = os.environ.get("XDG_RUNTIME_DIR", "")
        if base and os.path.isabs(base) and _is_private(base):
            base = os.path.join(base, "churten")
        else:
            base = os.path.join(os.path.expanduser("~"), ".ansible", "churten")
        if create:
            _make_private(base)
        path = os.path.join(base, _place_tag())
    if create or os.path.lexists(path):
        _make_private(path)
    if len(os.fsencode(socket_path(path))) > _SOCKET_PATH_MAX:
        raise RuntimeProblem(f"{path} is too long for a socket; set CHURTEN_POOL_DIR to a shorter one")
    return path


def socket_path(directory: str) -> str:
    return os.path.join(directory, f"pool-{__version__}.sock")


def pool_executable() -> str:
    return os.environ.get("CHURTEN_POOL_EXECUTABLE") or os.path.join(
        os.path.dirname(os.path.dirname(__file__)), "churten-pool"
    )


def start_pool(directory: str) -> None:
    """Start `churten-pool` for `directory` and wait until it accepts clients; harmless if one runs. RuntimeProblem if it does not come up."""
    executable = pool_executable()
    if not os.access(executable, os.X_OK):
        raise RuntimeProblem(f"{executable} is missing: churten is not installed completely")
    ready_r, ready_w = os.pipe()
    error_r, error_w = os.pipe()
    child_fd = 3
    try:
        env = {
            k: v
            for k, v in os.environ.items()
            if k in ("HOME", "PATH", "USER", "LOGNAME", "SHELL", "LANG", "TZ") or k.startswith("LC_")
        }
        env.update({k: v for k, v in os.environ.items() if k.startswith(("CHURTEN_", "ASAN_", "UBSAN_", "LSAN_"))})
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, error_w, 2),
            (os.POSIX_SPAWN_DUP2, ready_w, child_fd),
        ]
        # dup2 onto itself would leave close-on-exec set: move our ends above the ones the child gets.
        if ready_w == child_fd or error_w == child_fd:
            ready_w, error_w = _above(ready_w, 10), _above(error_w, 10)
            actions[2:] = [(os.POSIX_SPAWN_DUP2, error_w, 2), (os.POSIX_SPAWN_DUP2, ready_w, child_fd)]
        argv = [executable, "--dir", directory, "--ready-fd", str(child_fd)]
        if log := os.environ.get("CHURTEN_POOL_LOG"):
            argv += ["--log", os.path.abspath(log)]
        if level := os.environ.get("CHURTEN_POOL_LOG_LEVEL"):
            argv += ["--log-level", level]
        pid = os.posix_spawn(executable, argv, env, file_actions=actions, setsigmask=(), setsid=True)
    except OSError as ex:
        os.close(ready_r)
        os.close(error_r)
        raise RuntimeProblem(f"cannot start {executable}: {ex.strerror}") from ex
    finally:
        os.close(ready_w)
        os.close(error_w)
    try:
        ready = _read(ready_r, 1, START_TIMEOUT_S)
        if not ready:
            why = _read(error_r, 2000, 0.2).decode(errors="replace").strip()
            raise RuntimeProblem(f"churten-pool did not start: {why or f'no answer within {START_TIMEOUT_S:.0f} s'}")
    finally:
        os.close(ready_r)
        os.close(error_r)
        _reap(pid)


def _above(fd: int, least: int) -> int:
    import fcntl

    new = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
    os.close(fd)
    return new


def _read(fd: int, count: int, timeout_s: float) -> bytes:
    """Up to `count` bytes; what there is when the other end closes or the time is over."""
    data = b""
    deadline = time.monotonic() + timeout_s
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while len(data) < count:
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            break
        chunk = os.read(fd, count - len(data))
        if not chunk:
            break
        data += chunk
    return data


def _reap(pid: int) -> None:
    """Collect the started process if it has ended (it has when another pool was there, or when it put itself into the background)."""
    deadline = time.monotonic() + 0.05
    while time.monotonic() < deadline:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
        except OSError:
            return
        time.sleep(0.005)


# --- a cache that is shared by the processes of a user -----------------------------------------------------------------------------------


def secret() -> bytes:
    """32 random bytes of this pool directory: digests of passwords made with it mean nothing to anybody who cannot read it."""
    path = os.path.join(pool_dir(), "secret")
    for _ in range(3):
        with contextlib.suppress(FileNotFoundError):
            data = _read_private(path)
            if len(data) == 32:
                return data
            os.unlink(path)
        with contextlib.suppress(FileExistsError):
            _write_private(path, os.urandom(32), replace=False)
    raise RuntimeProblem(f"cannot use {path}")


def cache_get(name: str) -> bytes | None:
    """What is stored under `name` (a hex digest), as it was stored, or None."""
    try:
        data = _read_private(os.path.join(pool_dir(), "cache-" + name))
    except (OSError, RuntimeProblem):
        return None
    check, data = data[:32], data[32:]
    return data if check == hashlib.sha256(data).digest() else None


def cache_put(name: str, data: bytes) -> None:
    """Store `data`; failing to is harmless. All that was stored goes when it has become too much."""
    if len(data) > _CACHE_FILE_MAX - 32:
        return
    with contextlib.suppress(OSError, RuntimeProblem):
        directory = pool_dir()
        with os.scandir(directory) as entries:
            kept = [(entry.path, entry.stat(follow_symlinks=False).st_size) for entry in entries if entry.name.startswith("cache-")]
        if len(kept) >= _CACHE_FILES or sum(size for _path, size in kept) + len(data) > _CACHE_BYTES:
            for path, _size in kept:
                with contextlib.suppress(OSError):
                    os.unlink(path)
        _write_private(os.path.join(directory, "cache-" + name), hashlib.sha256(data).digest() + data, replace=True)


def _read_private(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return file.read(_CACHE_FILE_MAX)


def _write_private(path: str, data: bytes, replace: bool) -> None:
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


if __name__ == "__main__":  # what is where, for people
    sys.stdout.write(socket_path(pool_dir(create=False)) + "\n")
