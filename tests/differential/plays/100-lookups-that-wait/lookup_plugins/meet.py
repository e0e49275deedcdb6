"""Waits until `count` hosts are there; says so, and whether a forked worker did the waiting."""

import multiprocessing
import os
import time

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase


class LookupModule(LookupBase):
    def run(self, terms, variables=None, **kwargs):
        place, host, count = terms
        try:
            os.makedirs(place, exist_ok=True)
            open(os.path.join(place, host), "w").close()
        except OSError as ex:
            raise AnsibleError(f"no meeting: {ex.strerror}") from ex
        for _ in range(200):
            if len(os.listdir(place)) >= int(count):
                return [f"met {multiprocessing.parent_process() is not None}"]
            time.sleep(0.1)
        return ["alone"]
