"""Where studies are kept, and that each has one controller.

A second controller would take the first one's running trials for its own orphans.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from optuna.exceptions import OptunaError
from optuna.storages import BaseStorage, get_storage
from sqlalchemy import URL, NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from segsweep.errors import ConfigError, first_line
from segsweep.runs.locks import Lock

KEY = "hydra.sweeper.storage"


class Server(NamedTuple):
    """A kind of database server: the driver that is advised and pip's name of it, and what it is asked in SQL."""

    driver: str
    package: str
    stay: str  # keeps an idle connection open for days
    lock: str  # takes the lock `:key` without waiting; it is freed when the connection ends, however it ends


POSTGRESQL = Server(
    "psycopg",
    "psycopg[binary]",
    "SELECT set_config(key, value, false) FROM pg_settings JOIN (VALUES ('idle_session_timeout', '0'), "
    "('tcp_keepalives_idle', '60')) AS wanted (key, value) ON name = key",
    "SELECT pg_try_advisory_lock(CAST(:key AS bigint))",
)
MYSQL = Server(
    "pymysql", "pymysql", "SET SESSION wait_timeout = 31536000", "SELECT GET_LOCK(CONCAT('segsweep-', :key), 0)"
)
SERVERS = {"postgresql": POSTGRESQL, "mysql": MYSQL, "mariadb": MYSQL}


def missing(path: Path) -> list[Path]:
    """Return what does not exist yet of a file and the folders above it, the innermost first."""
    return [one for one in (path, *path.parents) if not one.exists()]


def remove(made: Iterable[Path]) -> None:
    """Remove what a refused sweep has made of `missing` files and folders; a folder that holds something stays."""
    for path in made:
        with suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink()


class FileLock(Lock):
    """Locks a study by a file beside it, whose folder is made; `study` is the file that only its holder writes."""

    def __init__(self, path: Path, refusal: str, study: Path | None = None):
        self._made = [*(missing(study) if study else ()), *missing(path)]
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, refusal)

    def discard(self) -> None:
        """Release, and remove what has been made since: the sweep was refused."""
        remove(self._made)
        self.release()


class ServerLock:
    """Locks one study of a database server, by a connection that stays open until `release`.

    A pooler that lends connections for single transactions (PgBouncer) does not keep such a lock: connect past it.
    """

    def __init__(self, url: URL, study: str):
        server = SERVERS[url.get_backend_name()]
        with _told(url):
            engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
            self._connection = engine.connect()
            try:
                self._connection.execute(text(server.stay))
                got = self._connection.scalar(text(server.lock), {"key": _number(f"{url.database}/{study}")})
            except BaseException:
                self.release()
                raise
        if not got:
            self.release()
            raise ConfigError(_refusal(study, url))

    def release(self) -> None:
        with suppress(SQLAlchemyError):  # the server may be gone, and the lock with it
            self._connection.close()

    discard = release


def hold(storage: str | None, study: str) -> list[FileLock | ServerLock]:
    """Lock the study of that name, before it is opened and while its sweep runs; ConfigError if that is impossible."""
    if not storage:
        return []  # a journal in the sweep's folder, which has a lock of its own
    if "://" not in storage:
        path = Path(storage).resolve()
        refusal = f"{KEY}={path}: in use by a running sweep. Wait for it, or give another file."
        return [FileLock(path.with_name(f"{path.name}.lock"), refusal, path)]
    url = _parsed(storage)
    if url.get_backend_name() != "sqlite":
        return [ServerLock(url, study)]
    path = Path(url.database or "").resolve()
    return [FileLock(path.with_name(f"{path.name}.{_number(study)}.lock"), _refusal(study, url))]


def database(storage: str) -> BaseStorage:
    """Open a database's URL; ConfigError says what the driver, the server or Optuna has against it."""
    with _told(_parsed(storage)):
        return get_storage(storage)


def _parsed(storage: str) -> URL:
    """The URL, of a kind that can be locked. What cannot be read is not repeated: a part may be a password."""
    try:
        url = make_url(storage)
        unread = url.get_backend_name() != "sqlite" and "@" in f"{url.host}{url.database}"
    except (SQLAlchemyError, ValueError):
        unread = True
    if unread:
        raise ConfigError(
            f"{KEY}: cannot be read as postgresql+psycopg://USER:PASSWORD@HOST/DATABASE. Write @ in a password as %40."
        )
    kind = url.get_backend_name()
    if kind not in ("sqlite", *SERVERS):
        raise ConfigError(f"{KEY}={_shown(url)}: must be one of {', '.join(['sqlite', *SERVERS])}, or a file's path.")
    if kind == "sqlite" and (url.database or ":memory:").startswith((":memory:", "file:")):
        raise ConfigError(f"{KEY}={_shown(url)}: must name a file. Type {KEY}=sqlite:///FILE.")
    return url


@contextmanager
def _told(url: URL) -> Iterator[None]:
    """What goes wrong with a database becomes one line."""
    try:
        yield
    except ImportError as error:
        kind = url.get_backend_name()
        raise ConfigError(
            f"{KEY}={_shown(url)}: its driver cannot be loaded: {first_line(error)} Type pip install "
            f"'{SERVERS[kind].package}', and {kind}+{SERVERS[kind].driver}://... as the address."
        ) from None
    except (SQLAlchemyError, OptunaError, RuntimeError) as error:
        said = error.orig if isinstance(error, DBAPIError) and error.orig else error
        raise ConfigError(f"{KEY}={_shown(url)}: {first_line(said)} Check the server and the address.") from None


def _shown(url: URL) -> str:
    """Without the password, which may also be among the options behind the question mark."""
    return url.set(query={}).render_as_string(hide_password=True)


def _refusal(study: str, url: URL) -> str:
    return (
        f"{KEY}={_shown(url)}: study {study} is run by another controller. Wait for it, or give another study with "
        "hydra.sweeper.study_name=NAME."
    )


def _number(name: str) -> int:
    """The same for the same name everywhere, below 2^60."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:15], 16)
