"""Throw-away hosts on loopback for the demo, the tests and the benchmarks."""

from .errors import LabError
from .lab import Host, Lab, Options, default_dir

__all__ = ["Host", "Lab", "LabError", "Options", "default_dir"]
