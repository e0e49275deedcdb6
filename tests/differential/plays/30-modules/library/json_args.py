#!/usr/bin/python3
import json

text = r'''<<INCLUDE_ANSIBLE_MODULE_JSON_ARGS>>'''
data = json.loads(text)
print(json.dumps({"got": {k: v for k, v in data.items() if not k.startswith("_ansible")}}))
