#!/usr/bin/python3
# WANT_JSON
import json
import os
import sys

with open(sys.argv[1]) as file:
    data = json.load(file)
shown = {k: v for k, v in data.items() if not k.startswith("_ansible")}
print(json.dumps({"changed": False, "got": shown, "mode": oct(os.stat(sys.argv[1]).st_mode), "argc": len(sys.argv)}))
