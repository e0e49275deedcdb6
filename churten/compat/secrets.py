"""Which texts of a play are secret: what vaults held, and the passwords of connections and become. Under every supported core line."""

from __future__ import annotations

import typing as t

try:  # 2.19 and later
    from ansible.parsing.vault import VaultHelper

    def encrypted(value: t.Any) -> bool:
        """Whether the value is an encrypted one, or was."""
        return VaultHelper.get_ciphertext(value, with_tags=False) is not None

except ImportError:
    from ansible.parsing.yaml.objects import AnsibleVaultEncryptedUnicode

    def encrypted(value: t.Any) -> bool:
        """Whether the value is an encrypted one."""
        return isinstance(value, AnsibleVaultEncryptedUnicode)


VAULT = b"$ANSIBLE_VAULT"


def of_play_context(context: t.Any) -> list[str]:
    """Passwords that were asked for or read from a password file."""
    return [str(found) for name in ("password", "become_pass") if (found := getattr(context, name, None))]


def of_play(play: t.Any, is_secret_name: t.Callable[[str], bool]) -> t.Iterator[str]:
    """Secrets among the variables of the play's hosts. Looks at no host if nothing here is encrypted: then only `-e` and the play's own."""
    variables = play.get_variable_manager()
    loader = play.get_loader()
    vaults = bool(loader._vault.secrets)
    yield from _walk(variables.extra_vars, is_secret_name, False)
    yield from _walk(play.vars, is_secret_name, False)
    inventory = variables._inventory
    if inventory is None:
        return
    hosts = inventory.get_hosts(play.hosts)
    for host in hosts:
        if vaults:
            yield from _walk(variables.get_vars(play=play, host=host, include_hostvars=False), is_secret_name, False)
        else:
            yield from _walk(host.vars, is_secret_name, False)
    if not vaults:
        for group in inventory.groups.values():
            yield from _walk(group.vars, is_secret_name, False)
        return
    for path, data in list(loader._FILE_CACHE.items()):
        if _is_vault(path):
            yield from _walk(data, is_secret_name, True)


def _is_vault(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(VAULT)) == VAULT
    except (OSError, ValueError):
        return False


def _walk(value: t.Any, is_secret_name: t.Callable[[str], bool], all_of_it: bool, depth: int = 0) -> t.Iterator[str]:
    """Texts in `value` that are encrypted, or have a secret name, or all."""
    if depth > 20:
        return
    if isinstance(value, t.Mapping):
        for key, item in value.items():
            named = isinstance(key, str) and is_secret_name(key)
            if named and not isinstance(item, str) and isinstance(item, (int, float)) and not isinstance(item, bool):
                yield str(item)
            yield from _walk(item, is_secret_name, all_of_it or (named and not isinstance(item, t.Mapping)), depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _walk(item, is_secret_name, all_of_it, depth + 1)
    elif encrypted(value):
        try:
            yield str(value)
        except Exception:  # no key for it: nobody can show it either
            return
    elif all_of_it and isinstance(value, str) and "{{" not in value and value.lower() not in ("true", "false", "none", "null"):
        yield str(value)
