#!/bin/sh
# WANT_JSON
echo "{\"arguments\": $#, \"wanted\": \"$(grep -c '"a"' "$1")\"}"
