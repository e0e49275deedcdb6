# Copyright (c) churten contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The door to churten.facts."""

from __future__ import annotations

DOCUMENTATION = """
    name: jsonfile
    short_description: JSON formatted files, written atomically and decoded once.
    description:
        - Reads and writes the same files as the built-in P(ansible.builtin.jsonfile#cache) of the running ansible-core, so the two can be swapped at any time.
        - A file is replaced whole or not at all. A full disk keeps the old facts.
        - A corrupt file is ignored with a warning instead of ending the run.
        - A file is decoded once per process, in C where its content is plain.
    version_added: "0.1.0"
    author: churten contributors
    options:
      _uri:
        required: True
        description:
          - Path in which the cache plugin will save the JSON files.
        env:
          - name: ANSIBLE_CACHE_PLUGIN_CONNECTION
        ini:
          - key: fact_caching_connection
            section: defaults
        type: path
      _prefix:
        description: User defined prefix to use when creating the JSON files.
        env:
          - name: ANSIBLE_CACHE_PLUGIN_PREFIX
        ini:
          - key: fact_caching_prefix
            section: defaults
      _timeout:
        default: 86400
        description: Expiration timeout for the cache plugin data, in seconds. V(0) is never.
        env:
          - name: ANSIBLE_CACHE_PLUGIN_TIMEOUT
        ini:
          - key: fact_caching_timeout
            section: defaults
        type: integer
      persist_metadata:
        description:
          - V(false) leaves out internal metadata and uses the file name and format from before ansible-core 2.19.
          - Only ansible-core 2.22 and later know this option. Earlier ones always behave as their built-in plugin does.
        default: True
        type: bool
        env:
          - name: ANSIBLE_CACHE_JSONFILE_PERSIST_METADATA
        ini:
          - key: persist_metadata
            section: jsonfile_cache
"""

from ansible.errors import AnsibleError
from ansible.plugins.cache import BaseFileCacheModule
from ansible.utils.display import Display


class CacheModule(BaseFileCacheModule):
    """A caching module backed by JSON files."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        try:
            from churten.facts import open_store
        except ImportError as ex:
            raise AnsibleError(
                f"churten.core.jsonfile needs the Python package churten in this interpreter (pip install churten): {ex}"
            ) from ex
        self._store = open_store(self, wrapped=bool(kwargs), warn=Display().warning)

    @property
    def _persistent(self):
        return self._store.interposed

    def get(self, key):
        return self._store.get(key)

    def set(self, key, value):
        self._store.set(key, value)

    def contains(self, key):
        return self._store.contains(key)

    def has_expired(self, key):
        return self._store.expired(key)

    def keys(self):
        return self._store.keys()

    def delete(self, key):
        self._store.delete(key)

    def flush(self):
        self._store.flush()

    def _load(self, filepath):
        raise NotImplementedError  # only the built-in get() calls it

    def _dump(self, value, filepath):
        raise NotImplementedError  # only the built-in set() calls it
