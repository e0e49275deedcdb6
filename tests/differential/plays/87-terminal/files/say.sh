#!/bin/sh
tty > /dev/null && echo on a terminal
printf '%s\n' "$@"
echo to stderr >&2
exit 0
