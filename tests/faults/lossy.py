# SPDX-License-Identifier: GPL-3.0-or-later
"""A line that loses packets: a TUN device whose other end is this process, so that TCP itself has to send again (a proxy could only delay)."""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


class Lossy:
    """Who connects to `far` reaches this machine's own listeners on 0.0.0.0, over the line. OSError or CalledProcessError where there are no TUN devices.

    A packet to `far` comes back with its addresses exchanged, which leaves its checksums right.
    """

    def __init__(self, loss: float, delay_s: float, seed: int = 1):
        self.loss, self.delay_s, self.rng = loss, delay_s, random.Random(seed)
        self.carried = self.dropped = 0
        net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self.far = f"{net}.2"
        self._stop_r, self._stop_w = os.pipe()
        self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        name = f"chl{os.getpid()}"
        try:
            fcntl.ioctl(self._fd, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
            for words in (f"addr add {net}.1/24 dev {name}", f"link set {name} up"):
                subprocess.run(["ip", *words.split()], check=True, capture_output=True)
        except BaseException:
            os.close(self._fd)
            raise
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        waiting: list[tuple[float, int, bytes]] = []
        while True:
            pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            ready = select.select([self._fd, self._stop_r], [], [], pause)[0]
            if self._stop_r in ready:
                return
            if ready:
                packet = os.read(self._fd, 65536)
                if packet[0] >> 4 == 4 and packet[16:20] == bytes(map(int, self.far.split("."))):
                    self.carried += 1
                    if self.rng.random() < self.loss:
                        self.dropped += 1
                    else:
                        back = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
                        heapq.heappush(waiting, (time.monotonic() + self.delay_s, self.carried, back))
            while waiting and waiting[0][0] <= time.monotonic():
                with contextlib.suppress(OSError):
                    os.write(self._fd, heapq.heappop(waiting)[2])

    def close(self) -> None:
        os.write(self._stop_w, b"x")
        self._thread.join()
        for fd in (self._fd, self._stop_r, self._stop_w):
            os.close(fd)

    def __enter__(self) -> Lossy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
