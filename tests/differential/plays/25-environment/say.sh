#!/bin/sh
echo "script $FROM_PLAY"
