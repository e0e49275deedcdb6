# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent: one warm Python per account on a target.

It is sent over the wire by churten/transport/bootstrap.py, speaks the frames of
docs/protocol.md on the stdin and stdout it was started with, and ends when its
stdin does. It needs only the standard library, runs on Python 3.6 and later, has
one thread and never waits for one child: everything goes through Agent.loop().

What happens to a module (RUN). Its AnsiballZ payload came once (PAYLOAD). All
payloads whose files agree are merged into one zip file, the Library, because
modules that respawn read it, and because the modules of ansible.module_utils that
the agent has imported ahead then carry the paths the module itself sees. For each
run the agent forks; the child makes itself look like the interpreter the stock
wrapper would have started, calls the payload's own loader, and ends as an
interpreter ends. What cannot be made equal after the start (PYTHON* variables,
another locale) runs in a fresh interpreter on the same zip file.

Always true: fds 0, 1 and 2 are /dev/null in the agent; its own descriptors are
close-on-exec; a request is answered by exactly one EXIT or FAILED; ACCEPTED is
queued only after the fork; nothing of a request is written to disk but files the
request names and the zip file, which has no arguments in it.

The program on a target is one module, `churten_agent`: its PARTS, joined in this
order by bootstrap. A part imports names of earlier ones only, and every name of a
module is given once in all parts. A line of a target's traceback is one of the joined
program: `bootstrap.place(LINE)` says which line of which part that was. (Compiled code
has for each line of a function that of its `def`.)
"""

PARTS = (
    "frames account library ahead child run shell state standing chains process files "
    "folders jobs subagent requests agent"
).split()
