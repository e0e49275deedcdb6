#!/usr/bin/python
raise ValueError("verbose crash")
