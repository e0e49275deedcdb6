#!/bin/sh
seq 1 60000; seq 1 60000 >&2
