#!/bin/sh
. "$1"
echo "{\"a\": \"$a\", \"b\": \"$b\", \"arguments\": $#}"
