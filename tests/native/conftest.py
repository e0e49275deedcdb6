from talking import make_pool, pool, pool_dir  # noqa: F401
