"""Where studies are kept, and that each has one controller, but on PostgreSQL (`segsweep.sweeping.sharing`).

A second controller would take the first one's running trials for its own orphans.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from optuna.exceptions import OptunaError, StorageInternalError
from optuna.storages import BaseStorage, get_storage
from sqlalchemy import URL, NullPool, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from segsweep.errors import ConfigError, DiskError, first_line, suggestion
from segsweep.runs.locks import Lock

KEY = "hydra.sweeper.storage"
SEVERAL = f"Several controllers at once: {KEY}=postgresql://USER@HOST/DATABASE, see docs/scaling.md."


# The driver that is advised for each kind of server, and pip's name of it.
SERVERS = {
    "postgresql": ("psycopg", "psycopg[binary]"),
    "mysql": ("pymysql", "pymysql"),
    "mariadb": ("pymysql", "pymysql"),
}
# In MySQL: keep an idle connection open for days; take the lock `:key` without waiting, until the connection ends.
STAY, LOCK = "SET SESSION wait_timeout = 31536000", "SELECT GET_LOCK(CONCAT('segsweep-', :key), 0)"


def is_database(storage: str | None) -> bool:
    """Tell whether a study is kept in a database, and not in a file of its own."""
    return "://" in str(storage)


def is_shared(storage: str | None) -> bool:
    """Tell whether several controllers may use a study there at once."""
    return is_database(storage) and parsed(str(storage)).get_backend_name() == "postgresql"


def without_password(word: str) -> str:
    """Return an override of the command line as it may be printed and kept; the address is left without its password.

    PGPASSWORD and ~/.pgpass give it to whoever types the rest again.
    """
    key, _, address = word.partition("=")
    if key.lstrip("+") != KEY or "://" not in address:
        return word
    try:
        quoted = address[:1] in "'\"" and address[-1:] == address[:1]
        url = make_url(address[1:-1] if quoted else address)
    except (SQLAlchemyError, ValueError):
        return f"{KEY}=..."
    options = {name: value for name, value in url.query.items() if "password" not in name}
    return f'{KEY}="{url._replace(password=None).set(query=options).render_as_string()}"'


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
    """Locks one study of a MySQL server, by a connection that stays open until `release`."""

    def __init__(self, url: URL, study: str):
        with told(url):
            engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
            self._connection = engine.connect()
            try:
                self._connection.execute(text(STAY))
                got = self._connection.scalar(text(LOCK), {"key": number(f"{url.database}/{study}")})
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
        path = Path(storage).expanduser().resolve()
        refusal = f"{KEY}={path}: in use by a running sweep. Wait until it ends, or give another file. {SEVERAL}"
        return [FileLock(path.with_name(f"{path.name}.lock"), refusal, path)]
    url = parsed(storage)
    if url.get_backend_name() != "sqlite":
        return [ServerLock(url, study)]
    path = Path(url.database or "").resolve()
    return [FileLock(path.with_name(f"{path.name}.{number(study)}.lock"), _refusal(study, url))]


def database(storage: str) -> BaseStorage:
    """Open a database's URL; ConfigError says what the driver, the server or Optuna has against it."""
    url = parsed(storage)
    with told(url):
        return get_storage(url.render_as_string(hide_password=False))


def parsed(storage: str) -> URL:
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
    kinds = ("sqlite", *SERVERS)
    if kind not in kinds:
        hint = suggestion(f"{kind}://", [f"{name}://" for name in kinds], f"Try {KEY}=")
        raise ConfigError(f"{KEY}={_shown(url)}: must be one of {', '.join(kinds)}, or a file's path.{hint}")
    if kind == "sqlite" and (url.database or ":memory:").startswith((":memory:", "file:")):
        raise ConfigError(f"{KEY}={_shown(url)}: must name a file. Type {KEY}=sqlite:///FILE.")
    # SQLAlchemy before 2.1 takes another driver than ours where none is named.
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


@contextmanager
def told(url: URL) -> Iterator[None]:
    """Turn an error of a database into a ConfigError of one line."""
    try:
        yield
    except ImportError as error:
        kind = url.get_backend_name()
        driver, package = SERVERS[kind]
        raise ConfigError(
            f"{KEY}={_shown(url)}: its driver cannot be loaded: {first_line(error)} Type pip install '{package}', and "
            f"{kind}+{driver}://... as the address."
        ) from None
    except (SQLAlchemyError, OptunaError, RuntimeError) as error:
        said = error.orig if isinstance(error, DBAPIError) and error.orig else error
        raise ConfigError(f"{KEY}={_shown(url)}: {first_line(said)} Check the server and the address.") from None


@contextmanager
def full_disk_told() -> Iterator[None]:
    """Raise DiskError where SQLite's file cannot be written."""
    try:
        yield
    except StorageInternalError as error:
        said = str(error.__cause__ or error)
        if not re.search("disk is full|readonly database|disk I/O error", said):
            raise
        raise DiskError(f"{KEY}: {first_line(error.__cause__ or error)}") from error


def _shown(url: URL) -> str:
    """Without the password, which may also be among the options behind the question mark."""
    return url.set(query={}).render_as_string(hide_password=True)


def _refusal(study: str, url: URL) -> str:
    return (
        f"{KEY}={_shown(url)}: study {study} is in use by another controller. Wait until it ends, or give another "
        f"study with "
        f"hydra.sweeper.study_name=NAME. {SEVERAL}"
    )


def number(name: str) -> int:
    """Return a number below 2^60 that is the same for the same name on all machines."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:15], 16)
