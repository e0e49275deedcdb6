# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of a file that goes to many hosts: the same as if it had been read for each of them."""

import hashlib
import os
import time

import pytest
from ansible.utils.hashing import secure_hash

from churten import waiting
from churten.compat import checksums
from churten.transport import digests

OLD = 10**9 * 3  # long enough ago


@pytest.fixture
def counted():
    """A Checksums, and what was read for it."""
    read = []

    def stock(filename, *args, **kwargs):
        read.append(filename)
        return secure_hash(filename, *args, **kwargs)

    return checksums.Checksums(stock), read


@pytest.fixture
def settled(monkeypatch):
    """Files count as old at once."""
    monkeypatch.setattr(checksums, "SETTLED_NS", -OLD)


def sha1(path):
    return hashlib.sha1(path.read_bytes()).hexdigest()


def test_a_file_that_nobody_touches_is_read_once(counted, settled, tmp_path):
    checksum, read = counted
    path = tmp_path / "file"
    path.write_bytes(os.urandom(100_000))
    (tmp_path / "link").symlink_to(path)
    assert [checksum(str(path)), checksum(os.fsencode(path)), checksum(str(tmp_path / "link"))] == [sha1(path)] * 3
    assert len(read) == 1


def test_a_file_is_read_again_when_anything_about_it_changed(counted, settled, tmp_path):
    checksum, read = counted
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    before = path.stat()
    checksum(str(path))

    def content():
        with open(path, "r+b") as file:
            file.write(b"x")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def another():
        (tmp_path / "new").write_bytes(b"y" * 100_000)
        os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
        os.rename(tmp_path / "new", path)

    def longer():
        with open(path, "ab") as file:
            file.write(b"z")

    for number, change in enumerate((content, another, longer, lambda: os.utime(path, (1, 1))), 2):
        time.sleep(0.02)  # longer than a tick of the kernel's clock for files
        change()
        assert checksum(str(path)) == sha1(path), change
        assert len(read) == number


def test_a_file_that_changed_just_now_is_read_each_time(counted, tmp_path):
    checksum, read = counted
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    assert checksum(str(path)) == checksum(str(path)) == sha1(path)
    assert len(read) == 2


def test_a_file_that_changes_while_it_is_read_is_not_known(settled, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))

    def stock(filename):
        found = secure_hash(filename)
        with open(filename, "ab") as file:
            file.write(b"more")
        return found

    checksum = checksums.Checksums(stock)
    first = checksum(str(path))
    assert checksum(str(path)) != first


def test_everything_else_is_left_to_core(counted, settled, tmp_path):
    checksum, read = counted
    small = tmp_path / "small"
    small.write_bytes(b"small")
    big = tmp_path / "big"
    big.write_bytes(bytes(100_000))
    for _ in range(2):
        assert checksum(str(small)) == sha1(small)
        assert checksum(str(tmp_path)) is None
        assert checksum(str(tmp_path / "none")) is None
        assert checksum(str(big), hashlib.md5) == hashlib.md5(big.read_bytes()).hexdigest()
    assert len(read) == 8


class Fibers:
    """A hub with one fiber, which notes what it does in a thread."""

    no_park = 0

    def __init__(self):
        self.aside = 0

    def current(self):
        return self

    def blocking(self, function):
        self.aside += 1
        return function()


@pytest.fixture
def fibers():
    hub = Fibers()
    waiting.set_hub(hub)
    yield hub
    waiting.set_hub(None)


def test_a_large_file_is_read_in_a_thread(fibers, tmp_path, monkeypatch):
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(os.urandom(2_000_000))
    small.write_bytes(b"small")
    digest = checksums.aside(secure_hash)
    assert (digest(str(large)), fibers.aside) == (sha1(large), 1)
    assert (digest(str(large), hashlib.md5), fibers.aside) == (hashlib.md5(large.read_bytes()).hexdigest(), 2)
    monkeypatch.chdir(tmp_path)  # where other fibers may change it
    assert [digest(str(small)), digest("large"), digest(str(tmp_path)), digest(str(tmp_path / "none"))] == [sha1(small), sha1(large), None, None]
    waiting.set_hub(None)
    assert (digest(str(large)), fibers.aside) == (sha1(large), 2)


def params(text):
    return b'{"ANSIBLE_MODULE_ARGS": {"src": "x", "checksum": "%s", "dest": "y"}}' % text.encode()


def test_what_goes_with_a_checksum(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_known", {})
    monkeypatch.setattr(digests, "_sent", {})
    path = tmp_path / "file"
    path.write_bytes(os.urandom(2_500_000))
    with open(path, "rb") as file:
        digests.sending(file, os.fstat(file.fileno()))
        time.sleep(0.1)
        assert digests.known("ansible.modules.copy", params(sha1(path))) == b""  # one host is no reason
        digests.sending(file, os.fstat(file.fileno()))
    until = time.monotonic() + 20
    while not digests._known and time.monotonic() < until:
        time.sleep(0.01)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    assert digests.known("ansible.modules.copy", params(sha1(path))) == f"{sha1(path)} {md5}".encode()
    assert digests.known("ansible.modules.stat", params(sha1(path))) == b""
    assert digests.known("ansible.modules.copy", params("0" * 40)) == b""
    assert digests.known("ansible.modules.copy", b"{}") == b""
