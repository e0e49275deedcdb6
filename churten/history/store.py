"""The database: its tables, and how it is opened.

SQLite with a rollback journal (not WAL), full sync, one writer at a time (Place.lock), opened and closed within one process and never across a fork.
`PRAGMA user_version` is the version of the tables: an older database is migrated when it is opened for writing, a newer one is refused.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import typing as t

from .place import Place, Unusable, open_private

VERSION = 1
BUSY_S = 20.0

_TABLES = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    run TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,            -- running completed failed interrupted
    playbook TEXT NOT NULL,
    path TEXT,                      -- of the playbook
    started REAL NOT NULL,          -- seconds since 1970, as all times but `at`
    seconds REAL,
    results INTEGER NOT NULL DEFAULT 0,
    ansible TEXT, churten TEXT, python TEXT, controller TEXT, user TEXT,
    forks INTEGER,
    arguments TEXT,                 -- JSON object
    source TEXT NOT NULL            -- callback or log
);
CREATE INDEX runs_started ON runs (started);
CREATE TABLE labels (run_id INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE, name TEXT NOT NULL, PRIMARY KEY (run_id, name)) WITHOUT ROWID;
CREATE TABLE plays (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    uuid TEXT NOT NULL,
    name TEXT NOT NULL,
    strategy TEXT,
    slots INTEGER,
    at REAL,                        -- seconds from the start of the run
    UNIQUE (run_id, uuid)
);
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    play_id INTEGER NOT NULL REFERENCES plays ON DELETE CASCADE,
    uuid TEXT NOT NULL,
    name TEXT NOT NULL,
    action TEXT NOT NULL,
    role TEXT,
    path TEXT,                      -- FILE:LINE
    tags TEXT NOT NULL DEFAULT '[]',
    handler INTEGER NOT NULL DEFAULT 0,
    UNIQUE (run_id, uuid)
);
CREATE INDEX tasks_play ON tasks (play_id);
CREATE TABLE hosts (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    name TEXT NOT NULL,
    stats TEXT,                     -- JSON object of core's counts; NULL if core did not tell
    facts TEXT,                     -- JSON object, on request
    UNIQUE (run_id, name)
);
CREATE TABLE results (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    task_id INTEGER NOT NULL REFERENCES tasks ON DELETE CASCADE,
    host_id INTEGER NOT NULL REFERENCES hosts ON DELETE CASCADE,
    status TEXT NOT NULL,           -- ok changed skipped failed ignored unreachable
    at REAL NOT NULL,
    started REAL NOT NULL,
    seconds REAL NOT NULL,
    queue REAL, connect REAL, remote REAL, controller REAL,
    engine TEXT,
    worker INTEGER,
    items INTEGER,
    attempts INTEGER,
    delegated TEXT,
    content TEXT                    -- JSON, on request
);
CREATE INDEX results_task ON results (task_id);
CREATE INDEX results_host ON results (host_id);
CREATE INDEX results_run ON results (run_id, at);
CREATE TABLE files (
    id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    path TEXT NOT NULL,
    content TEXT NOT NULL,
    UNIQUE (run_id, path)
);
CREATE TABLE imports (              -- files of runs/ that are not read to their end yet
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL,
    run_id INTEGER REFERENCES runs ON DELETE CASCADE
) WITHOUT ROWID;
"""

# From a version to the next: MIGRATIONS[1] makes version 2 of version 1.
MIGRATIONS: dict[int, str] = {}


@contextlib.contextmanager
def opened(place: Place, write: bool = False) -> t.Iterator[sqlite3.Connection]:
    """The database, made if missing. Rows are sqlite3.Row. Raises Unusable; errors of SQLite inside the block become Unusable too."""
    place.make()
    os.close(open_private(place.database))
    try:
        connection = sqlite3.connect(place.database, timeout=BUSY_S, isolation_level=None)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")
            _prepare(connection, place)
            if not write:
                connection.execute("PRAGMA query_only = ON")
            yield connection
        finally:
            connection.close()
    except sqlite3.OperationalError as ex:
        raise Unusable(f"the history {place.database}: {ex}") from ex
    except sqlite3.DatabaseError as ex:
        raise Unusable(
            f"the history {place.database} is damaged ({ex}): move it away (a new one is made), or mend a copy with sqlite3's .recover"
        ) from ex


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> t.Iterator[None]:
    """All of it or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _prepare(connection: sqlite3.Connection, place: Place) -> None:
    if _version(connection) != VERSION:
        with transaction(connection):
            version = _version(connection)  # maybe somebody else was faster
            if version > VERSION:
                raise Unusable(
                    f"the history {place.database} was written by a newer churten (tables of version {version}, this one knows {VERSION}): "
                    "update churten, or give another directory (history_dir)"
                )
            if version == 0:
                if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise Unusable(f"{place.database} is a database of another program: give another directory (history_dir)")
                _run(connection, _TABLES)
            for step in range(version or VERSION, VERSION):
                _run(connection, MIGRATIONS[step])
            connection.execute(f"PRAGMA user_version = {VERSION}")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _run(connection: sqlite3.Connection, script: str) -> None:
    """The statements inside the present transaction (executescript would commit it)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
