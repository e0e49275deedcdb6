"""Work that is done a moment later, and processes that are forked meanwhile."""

import os
import threading
import time

from churten.timings.later import Later


def test_nobody_forks_in_the_middle_of_work():
    """The thread may hold a lock then, which nobody would release in the child."""
    begun, ended = threading.Event(), threading.Event()

    def work(thing):
        begun.set()
        time.sleep(0.3)
        ended.set()

    later = Later(work, print)
    later.put("thing")
    assert begun.wait(30)
    child = os.fork()
    if child == 0:
        os._exit(0 if ended.is_set() else 1)
    assert os.waitpid(child, 0)[1] == 0
    later.flush()


def test_a_forked_child_neither_keeps_nor_works():
    done = []
    later = Later(done.append, print)
    later.put(1)
    child = os.fork()
    if child == 0:
        before = list(done)
        later.put(2)
        later.flush()
        os._exit(0 if done == before else 1)
    assert os.waitpid(child, 0)[1] == 0
    later.flush()
    assert done == [1]
