#!/bin/sh
echo failing; exit 7
