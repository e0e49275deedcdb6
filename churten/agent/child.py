# SPDX-License-Identifier: GPL-3.0-or-later
"""In the forked child: its first steps, and an end as an interpreter ends."""

import _signal as signal  # type: ignore[import-not-found]  # `signal` itself would import enum at every start
import gc
import os
import struct
import sys

from churten.agent.account import account_shell


def become_child(agent, stdin, stdout, stderr, standing=None):
    """First steps of every child: own session, three descriptors, nothing of
    the agent's left open, signals as the agent found them."""
    if standing is None:
        os.setsid()
    else:
        os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for signum, handler in agent.signals_at_start.items():
        signal.signal(signum, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, agent.mask_at_start)
    if stdin is not None:
        os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for fd in agent.own_fds:
        try:
            os.close(fd)
        except OSError:
            pass


def in_working_directory(agent):
    """A fresh login stands in its home. The agent's own directory is that one,
    unless it was removed in the meantime."""
    try:
        os.getcwd()
        return
    except OSError:
        pass
    for path in (agent.cwd, os.path.expanduser("~"), "/"):
        try:
            os.chdir(path)
            return
        except (OSError, TypeError):
            pass


def exec_child(agent, argv, env, path):
    """Becomes another program, with the signals a program expects."""
    for signum in (signal.SIGPIPE, getattr(signal, "SIGXFSZ", None)):
        if signum:
            signal.signal(signum, signal.SIG_DFL)
    in_working_directory(agent)
    try:
        os.execve(path, argv, env)
    except OSError as error:
        os.write(2, ("%s: %s\n" % (path, error.strerror)).encode())
    os._exit(127)


def login_child(agent, command, environ):
    """Becomes the account's shell with `command`, as a login by sshd does."""
    path = account_shell()
    env = dict(environ)
    for name in ("SHLVL", "PWD", "OLDPWD", "_"):
        env.pop(name, None)
    argv = [os.path.basename(path), "-c", command]
    exec_child(agent, argv, env, path)


def do_in_child(act, plain, environ, flag=None):
    """Ends the child if that could do it without a shell, and says so in `flag`."""
    try:
        if not plain.holds(environ):
            return
        said = act.do(plain)
    except (OSError, ValueError, KeyError):
        return
    while said:
        said = said[os.write(1, said) :]
    if flag is not None:
        flag[0] = 1
    os._exit(0)


def interpreter_exit(main, learn=None, known=0):
    """Calls main and ends as an interpreter ends; returns the exit status."""
    status = call_main(main)
    if learn is not None:
        teach(learn, known)
    return leave(status)


def leave(status):
    """The rest of an interpreter's end; returns the exit status."""
    if "threading" in sys.modules:
        try:
            sys.modules["threading"]._shutdown()
        except BaseException as error:
            print_exception(error)
    status = wind_up(status)
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return status & 0xFF


def call_main(main):
    """Calls main; returns the exit status an interpreter would have after it."""
    try:
        main()
        return 0
    except SystemExit as error:
        code = error.code
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 0xFF if -(2**63) <= code < 2**63 else 255
        print(code, file=sys.stderr)
        return 1
    except BaseException as error:
        return print_exception(error)


def wind_up(status):
    """What finalization does that can be seen; returns the status, or another."""
    try:
        import atexit

        atexit._run_exitfuncs()
    except BaseException:
        pass  # it has printed it
    # What finalization would still flush or delete: files left open, cycles that
    # hold temporary files. (The agent's own objects are frozen, not walked.)
    for left in gc.get_objects():
        if type(left).__name__ in ("TextIOWrapper", "BufferedWriter"):
            try:
                left.flush()
            except Exception:
                pass
    left = None
    gc.collect()
    for stream in (sys.__stdout__, sys.stderr, sys.stdout):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except Exception:
            if stream is sys.stdout:
                status = 120
    return status


def print_exception(error):
    """As the interpreter does, without the agent's frames."""
    trace = error.__traceback__
    mine = interpreter_exit.__code__.co_filename
    while trace is not None and trace.tb_frame.f_code.co_filename == mine:
        trace = trace.tb_next
    try:
        sys.excepthook(type(error), error.with_traceback(trace), trace)
    except BaseException:
        pass
    if isinstance(error, KeyboardInterrupt) and sys.version_info >= (3, 8):
        return -signal.SIGINT
    return 1


def teach(learn, known):
    """Leaves the names of modules imported since the fork for the agent."""
    names = "\n".join(list(sys.modules)[known:]).encode("utf-8", "replace")
    if 0 < len(names) <= len(learn) - 4:
        learn[4 : 4 + len(names)] = names
        learn[:4] = struct.pack(">I", len(names))
