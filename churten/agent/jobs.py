# SPDX-License-Identifier: GPL-3.0-or-later
"""Asynchronous jobs: RUN with an item `job`.

Core starts a job by a program of its own, the module async_wrapper: it becomes a daemon,
keeps the job's file, starts the module as another program and ends it after a time limit.
Here the forked child runs that very module as it runs any other, with the words core gave
it, and where async_wrapper starts the module's program, with a pipe for each of its
descriptors, the process that subprocess forked for that runs the module instead of
becoming an interpreter that does. So there is nothing of the agent in a job but the
interpreter's memory, and no process of a job is a child that could stand.

    child -> (daemon's first fork) -> (second fork) -> watcher -> async_wrapper's own
                                                              child -> the module
       ends when the job's file says `started`

In place of the program that core would have put into the job's folder there is a file
that starts nothing: async_wrapper reads its first line to know the interpreter (up to
ansible-core 2.21).

A job may outlive its agent and needs the zip file of its library. So its processes, but
not the module's, hold the lock of the library's folder, too, and the last of all that
hold it removes the folder.
"""

import _signal as signal  # type: ignore[import-not-found]  # `signal` itself would import enum at every start
import gc
import os
import sys
import time

from churten.agent.account import START_VARIABLES, locale_of
from churten.agent.child import call_main, interpreter_exit, leave, teach
from churten.agent.folders import leave_library, lock_folder
from churten.agent.run import like_a_start, run_module

WRAPPER = "ansible.modules.async_wrapper"
NO_INTERPRETER = "churten-job"  # a name that no program has
PROGRAM = "#!%s\nraise SystemExit('an agent runs what should be here')\n" % NO_INTERPRETER


class Wrapper:
    """The RUN of async_wrapper itself; see Run."""

    def __init__(self, run):
        self.module, self.form, self.profile = WRAPPER, run.form, run.job.profile
        self.params, self.secrets = b'{"ANSIBLE_MODULE_ARGS": {}}', []
        self.rlimit_nofile, self.known = run.rlimit_nofile, []


def job_child(agent, library, run, learn, begun):
    """Starts the job and ends; `begun`: set to 1 when it is certain that it will be tried."""
    job, first = run.job, os.getpid()
    reason = in_surroundings(agent, job)
    lock = None
    if reason is None:
        lock = lock_folder(os.path.dirname(library.path))
        reason = "no lock" if lock is None else write_program(job.program)
    if reason is not None:
        os.write(2, reason.encode("utf-8", "surrogateescape"))
        os._exit(0)
    known = like_a_start(agent, library, run)
    library.lock = lock
    before = sys.path, sys.modules["__main__"]
    command = job.command or [NO_INTERPRETER, job.program]
    catch_program(library, command, lambda: job_module(library, run, before))
    look_like_program(job.words[0], job.words[1:])
    begun[0] = 1
    status = call_main(lambda: run_module(library, Wrapper(run)))
    if learn is not None and os.getpid() == first:
        teach(learn, known)
    status = leave(status)
    leave_library(library)
    os._exit(status)


def in_surroundings(agent, job):
    """Makes this process what core's command would have found, as seen by the client on
    a terminal; or says why it cannot."""
    if job.umask:
        os.umask(int(job.umask, 8))
    if job.limits:
        try:
            with open("/proc/self/limits", "rb") as file:
                if file.read().strip() != job.limits.strip():
                    return "other limits on a terminal"
        except OSError:
            return "no limits to compare"
    if job.environ is None:
        return None
    wanted, mine = job.environ, agent.environ
    if "_" in wanted:
        wanted["_"] = mine.get("_", sys.executable)  # a shell's note of what it started
    if locale_of(wanted) != agent.locale:
        return "another locale on a terminal"
    changed = [n for n in set(wanted) | set(mine) if wanted.get(n) != mine.get(n)]
    for name in changed:
        if name.startswith(START_VARIABLES):
            return "%s on a terminal" % name
    for name in changed:
        if name in wanted:
            os.environ[name] = wanted[name]
        else:
            os.environ.pop(name, None)
    if "TZ" in changed:
        time.tzset()
    return None


def write_program(path):
    """The file in place of the job's program; or why there is none."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        fd = os.open(path, flags, 0o700)
        os.write(fd, PROGRAM.encode())
        os.close(fd)
    except OSError as error:
        return "%s: %s" % (path, error.strerror)
    return None


def catch_program(library, command, module):
    """When async_wrapper starts `command`, calls `module` in the forked process instead.
    What it hands to subprocess stays as it is, so whatever it waits for happens."""
    import subprocess

    command = [os.fsencode(word) for word in command]

    class Popen(subprocess.Popen):
        def __init__(self, args, *more, **others):
            subprocess.Popen = real
            # Its first process that ended has removed its files: a trace has no source.
            library.is_closed = True
            if args == command:
                others["preexec_fn"] = module
            real.__init__(self, args, *more, **others)

    real = subprocess.Popen
    subprocess.Popen = Popen


def job_module(library, run, before):
    """In the process that would become the module's interpreter: makes this one look as
    one that has just begun, runs the module and ends."""
    status = 255
    try:
        close_all_but_streams()
        library.is_closed = False
        for name in ("SIGPIPE", "SIGXFSZ"):  # subprocess has put back what an interpreter changes
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        import atexit
        import syslog

        gc.enable()  # which subprocess had switched off for this
        atexit._clear()
        syslog.closelog()
        sys.path, sys.modules["__main__"] = before
        look_like_program(run.job.program, [])
        if sys.version_info < (3, 7) and "random" in sys.modules:
            sys.modules["random"].seed()
        status = interpreter_exit(lambda: run_module(library, run))
    finally:
        os._exit(status)


def look_like_program(path, arguments):
    sys.argv = [path] + arguments
    if hasattr(sys, "orig_argv"):
        sys.orig_argv = sys.orig_argv[:1] + sys.argv
    sys.modules["__main__"].__file__ = path


def close_all_but_streams():
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:  # the one that listed them
                pass
