# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's side of RUN, EXEC and PUT."""

import os
import stat
import struct
import sys
import time

from churten.agent.account import START_VARIABLES, locale_of
from churten.agent.child import do_in_child, exec_child, login_child
from churten.agent.files import Put
from churten.agent.folders import SWEEP_AFTER, lock_folder, make_folder
from churten.agent.frames import (
    STDERR,
    T_ACCEPTED,
    T_EXIT,
    T_FAILED,
    Failure,
    ProtocolError,
    number,
    pack,
    text,
    unpack,
)
from churten.agent.jobs import WRAPPER, job_child
from churten.agent.library import Library, make_importer
from churten.agent.process import Probe, Process
from churten.agent.run import environment, fresh_script
from churten.agent.shell import shell_act
from churten.agent.standing import ACT, STANDING_BODY, Standing, has_memory, module_child


class Requests:
    """What an Agent does with RUN, EXEC and PUT."""

    # RUN

    def on_run(self, request, run):
        if self.executable_state() != self.executable:
            self.stale = True
            raise Failure("agent", "agent", "interpreter changed")
        payload = self.payloads.get(run.key)
        if payload is None:
            raise Failure("agent", "agent", "no such payload")
        if run.form not in (b"218", b"219"):
            raise Failure("unsupported", "agent", "unknown form of payload")
        self.prepare(payload, run)
        library = payload.library
        job = Process(self, request, run.timeout_ms)
        self.jobs[request] = job
        fresh = self.needs_fresh(run.env) or library.other_core(self.ahead.library)
        if run.job is not None and (fresh or library.lock is None):
            raise Failure("unsupported", "agent", "a job for another interpreter")
        if fresh:
            env = dict(self.environ, **run.env)
            argv = [sys.executable]
            job.stdin_end = True
            job.start(
                lambda: exec_child(self, argv, env, argv[0]), fresh_script(library, run)
            )
            return
        learn = None
        if payload.ahead and payload.runs == 1 and library is self.ahead.library:
            import mmap

            learn = job.learn = mmap.mmap(-1, 65536)
            job.payload = payload
        if run.job is not None:
            self.start_job(job, library, run, learn)
            return
        if learn is None and run.stays and library is self.ahead.library and self.may_stand:
            key = self.ahead.age, run.key, run.module, run.form, run.env, run.rlimit_nofile

            def begin():
                self.take_picture()
                stays = self.may_stand and has_memory()
                standing = Standing(self, key) if stays else None
                job.start(
                    lambda: module_child(self, library, run, None, standing), None, standing
                )

            if self.given(job, key, run.body, begin):
                job.accepted()
            else:
                begin()
            return
        job.start(lambda: module_child(self, library, run, learn))

    def start_job(self, job, library, run, learn):
        import mmap

        job.flag = mmap.mmap(-1, 1)
        job.on_end, job.is_late = self.job_started, True
        job.start(lambda: job_child(self, library, run, learn, job.flag))

    def job_started(self, job):
        """The child that started it has ended; it may have found that it cannot."""
        if job.flagged or job.cancelled:
            job.accepted()
            job.say_exit()
            return
        said = text(bytes(job.buffers[STDERR]).strip()) or "cannot start a job"
        self.send(T_FAILED, pack(Failure("unsupported", "agent", said).items), job.request)

    def take_picture(self):
        try:
            self.picture.refresh()
        except Exception:  # an object that cannot be looked at
            self.may_stand = False

    def given(self, job, key, message, otherwise):
        """Whether an idle child of that key (None: any in the agent's environment) has
        taken it. otherwise: called if the child turns out not to have begun."""
        if len(message) > STANDING_BODY:
            return False
        for standing in self.idle[::-1]:
            if standing.key == key or (key is None and not standing.key[4]):
                if job.take(standing, message):
                    job.otherwise = otherwise
                    return True
                return False
        return False

    def prepare(self, payload, run):
        """Before the fork: the zip file, compiled code, imports done ahead."""
        self.ahead.refresh()
        if payload.library is None:
            for library in self.libraries:
                if library.agrees(payload):
                    break
            else:
                library = self.new_library(run)
            library.add(payload)
        library = payload.library
        library.check()
        payload.runs += 1
        modules = [run.module] if run.job is None else [run.module, WRAPPER]
        for module in modules:
            path = module.replace(".", "/") + ".py"
            if path in library.crcs:
                library.know_folder(os.path.dirname(path))
                try:
                    library.code(path)
                except (SyntaxError, ValueError):
                    pass  # the child will say so
        self.ahead.prepare(payload, modules, run.form)
        # The next of its kind may stand: time for it when nobody waits.
        self.is_picture_due = run.stays and payload.runs == 1 and self.may_stand

    def new_library(self, run):
        name = "ansible_%s_payload" % run.module.rpartition(".")[2]
        folder = make_folder(run.temp, name + "_")
        lock = lock_folder(folder)
        if lock is not None:
            self.own_fds.add(lock)
        self.sweep_at = time.monotonic() + SWEEP_AFTER
        self.sweep_where.add(os.path.dirname(folder))
        library = Library(os.path.join(folder, name + ".zip"))
        library.lock = lock
        self.libraries.append(library)
        library.importer = make_importer(library)
        sys.path_hooks.insert(0, library.importer)
        return library

    def learned(self, job):
        size = struct.unpack(">I", job.learn[:4])[0]
        if 0 < size <= len(job.learn) - 4:
            names = job.learn[4 : 4 + size].decode("utf-8", "replace").split("\n")
            self.ahead.run(job.payload, names)
        job.learn.close()
        job.learn = None

    def needs_fresh(self, env):
        for name in env:
            if name.startswith(START_VARIABLES):
                return True
        if not any(name == "LANG" or name.startswith("LC_") for name in env):
            return False
        return locale_of(dict(self.environ, **env)) != self.locale

    # EXEC and PUT

    def on_exec(self, request, items):
        command, env, timeout_ms, stdin, shell = items[:5]
        if stdin not in (b"null", b"data") or shell not in (b"login", b"sh"):
            raise ProtocolError("bad EXEC")
        env = dict(self.environ, **environment(env))
        job = Process(self, request, number(timeout_ms))
        self.jobs[request] = job

        job.begun = time.monotonic()
        act = plain = None
        if shell == b"login" and stdin == b"null" and not items[1]:
            act = shell_act(command)
        if act is not None:
            plain = self.plain_shell()
        if plain is not None and self.do_here(act, plain):
            self.send(T_ACCEPTED, b"", request)
            self.exit_zero(job)
            return
        if plain is not None:
            job.makes = act.makes()

        def begin():
            self.start_exec(job, items, env, act, plain)

        if plain is not None and self.idle:
            words = [ACT, command, plain.marks, plain.path, plain.home]
            job.is_act = self.given(job, None, pack(words + list(plain.programs)), begin)
        if not job.is_act:
            begin()

    def start_exec(self, job, items, env, act, plain):
        command, stdin, shell = items[0], items[3], items[4]
        if job.makes:
            import mmap

            job.flag = mmap.mmap(-1, 1)

        def child():
            if plain is not None:
                do_in_child(act, plain, env, job.flag)
            if shell == b"login":
                login_child(self, os.fsdecode(command), env)
            exec_child(self, ["sh", "-c", os.fsdecode(command)], env, "/bin/sh")

        job.start(child, b"" if stdin == b"data" else None)

    def plain_shell(self):
        """What is known of the account's shells; None until a probe has said it."""
        if time.monotonic() - self.probed > Probe.AGE and Probe.NUMBER not in self.jobs:
            self.plain, self.probed = None, time.monotonic()
            probe = self.jobs[Probe.NUMBER] = Probe(self)
            try:
                probe.start(probe.child)
            except Failure:
                del self.jobs[Probe.NUMBER]
        return self.plain

    MADE_FOR = 10.0  # seconds

    def made_folder(self, path):
        """A child has looked at the account's shells, and made a folder itself: what
        comes for that folder within seconds needs no second look."""
        now = time.monotonic()
        self.made = {p: t for p, t in self.made.items() if now - t < self.MADE_FOR}
        self.made[path] = now

    def do_here(self, act, plain):
        """Does what is quick without a child. It may wait for a file server, but no
        longer than the PUT before it, which writes into that folder from here."""
        now = time.monotonic()
        made = [p for p, t in self.made.items() if now - t < self.MADE_FOR]
        try:
            if not made or not act.is_quick(made):
                return False
            act.do(plain)
        except (OSError, ValueError):
            return False
        return True

    def on_put(self, request, body):
        path, mode, _ = unpack(body, 3)[:3]
        try:
            special = not stat.S_ISREG(os.stat(path).st_mode)
        except OSError:
            special = False
        if not special:
            if mode:
                try:
                    int(mode[1:] if mode[:1] == b"~" else mode, 8)
                except ValueError:
                    raise ProtocolError("bad mode")
            self.jobs[request] = Put(self, request, body)
            return
        job = Process(self, request, 0)
        self.jobs[request] = job
        argv = ["sh", "-c", 'exec cat > "$1"', "sh", os.fsdecode(path)]
        job.on_end = self.put_ended
        job.start(lambda: exec_child(self, argv, self.environ, "/bin/sh"), b"")

    def put_ended(self, job):
        if job.status == (0, 0):
            self.send(T_EXIT, pack([0, 0, job.elapsed, b"", b"", 0]), job.request)
            return
        said = text(bytes(job.buffers[STDERR]).strip()) or "cat failed"
        failure = Failure("file", "file", said, 1)
        self.send(T_FAILED, pack(failure.items), job.request)
