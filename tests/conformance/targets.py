# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of ansible-core's integration targets are run, how, and which are not, with the reason."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Target:
    """How one target is run."""

    seconds: int = 900  # of one run
    free: bool = True  # whether the free modes are tried
    env: tuple[tuple[str, str], ...] = ()  # more environment
    local: bool = False  # its own inventory stays local: its tasks use the folder it is started in
    pip: tuple[str, ...] = ()  # Python packages that the target's script imports


_TARGETS: dict[str, Target] = {}


def _plain(words: str, **settings: object) -> None:
    for word in words.split():
        _TARGETS[word] = Target(**settings)  # type: ignore[arg-type]


# Races and strategies: what REPEAT is for.
RACES = "handler_race includes_race strategy_free strategy_linear strategy_host_pinned".split()
SMOKE = "loop_control any_errors_fatal ignore_unreachable raw slurp".split()

# Thirty hosts that sleep: with five forks that takes minutes.
_plain(" ".join(RACES), env=(("ANSIBLE_FORKS", "30"),))
# The order of play.
_plain("loops loop_control blocks meta_tasks includes roles register set_fact throttle")
_plain("any_errors_fatal ignore_unreachable group_by add_host check_mode tags no_log var_precedence special_vars")
_plain("environment module_defaults gathering gathering_facts facts_d debugger")
_plain("handlers include_import callback_default", seconds=1800)  # some eighty runs of ansible-playbook
_plain("async", env=(("HOME", "{home}"),))  # a play of its own on localhost finds its job there
_plain("async_fail")
_plain("changed_when failed_when conditionals omit loop-until ignore_errors keyword_inheritance until task_ordering tempfile ping task-timeout")
# Connects to 127.0.0.3 and others by their address, as ansible-test's containers allow.
OTHER_ADDRESSES = (
    ("ANSIBLE_REMOTE_PORT", "{ansible_port}"),
    ("ANSIBLE_PRIVATE_KEY_FILE", "{ansible_ssh_private_key_file}"),
)
_plain("delegate_to", env=OTHER_ADDRESSES, local=True)
_plain("become_unprivileged", env=OTHER_ADDRESSES)
_plain("order", local=True)
# Modules and the way to the host.
_plain("command_shell raw script copy template fetch file lineinfile blockinfile replace stat find assemble slurp")
_plain("module_utils want_json_modules_posix old_style_modules_posix interpreter_discovery_python")
_plain("become become_su connection_churten wait_for_connection remote_tmp fork_safe_stdio")
_plain("result_pickle_error unexpected_executor_exception")

TARGETS = _TARGETS

# Not run at all: target -> reason.
NOT_RUN: dict[str, str] = {
    "binary_modules_posix": "downloads its modules from ansible's own servers",
    "unarchive": "downloads archives from ansible's own servers",
}
