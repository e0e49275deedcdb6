#!/bin/sh
echo "args: $*"; pwd | sed "s,.*/,,"; echo err >&2
