#!/bin/sh
ls -d "$0" | sed "s/ansible-tmp.*/T/"; ls -A ~/.ansible/tmp | wc -l; echo "$@"
