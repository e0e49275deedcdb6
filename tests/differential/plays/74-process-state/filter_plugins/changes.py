import locale
import os
import random
import signal
import socket
import sys
import tempfile
import time

COUNTED = []
calls = 0


def change(text):
    """Changes all of the process that a task can change, and says what it finds then."""
    global calls
    calls += 1
    COUNTED.append(calls)
    os.environ["LEAKED"] = text
    os.environ["GIVEN"] = "overwritten"
    os.environ.pop("LANG", None)
    os.chdir("/")
    os.umask(0o077)
    locale.setlocale(locale.LC_ALL, "C")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *a: None)
    sys.path.insert(0, "/leaked")
    random.seed(42)
    socket.setdefaulttimeout(7)
    tempfile.tempdir = "/leaked"
    return look(text)


def look(text):
    return {
        "text": text,
        "calls": calls,
        "counted": len(COUNTED),
        "environ": {k: os.environ.get(k) for k in ("LEAKED", "GIVEN", "LANG")},
        "folder": os.path.basename(os.getcwd()),
        "umask": umask(),
        "locale": locale.setlocale(locale.LC_ALL),
        "signals": [str(signal.getsignal(n)).split(" ")[0] for n in (signal.SIGUSR1, signal.SIGALRM)],
        "path": "/leaked" in sys.path,
        "random": random.random() == 0.6394267984578837,
        "timeout": socket.getdefaulttimeout(),
        "tempdir": tempfile.tempdir == "/leaked",
    }


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return oct(mask)


def wait(text):
    time.sleep(0.2)
    return text


class FilterModule:
    def filters(self):
        return {"change": change, "look": look, "wait": wait}
