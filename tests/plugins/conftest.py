from lab_plays import collections, lab, play, pool_dir, same  # noqa: F401
