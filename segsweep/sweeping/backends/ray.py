"""Trainings on a Ray cluster: an actor for each slot, which holds a local backend of one slot on its node.

Ray gives the GPUs, or parts of one, and notices when a node is gone. What a training writes lies on its node and comes
here when it ends; its journal comes as it grows. A training whose node is gone begins again elsewhere.
"""

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from platform import node
from typing import Any

from segsweep.errors import ConfigError, first_line, refused_by_system
from segsweep.paths import atomically, outputs
from segsweep.runs import journal
from segsweep.runs.records import Run
from segsweep.runs.trial import NAME as TRIAL
from segsweep.sweeping.backends.base import Id, Job, JobUpdate
from segsweep.sweeping.backends.local import CLAIM, EXIT, LOOK, PRELOADED, LocalBackend, clear
from segsweep.sweeping.backends.slots import Slot
from segsweep.tracking import client
from segsweep.world import cores

KEY = "hydra.sweeper.address"
WAIT = 1.0  # seconds that an actor waits for news at a time
UNHEARD = 30.0  # seconds after which an actor that cannot be reached is given up
LEAVE = 15.0  # seconds that trainings have to end when the sweep does
NOT_FETCHED = ("lock", CLAIM, EXIT, journal.NAME)
NOTES = (TRIAL, client.CURSOR)  # the sweep's own, of its folder alone


class Worker:
    """Runs one job at a time on its node; `RayBackend` makes it an actor."""

    def __init__(self, preloaded: Sequence[str], outputs: str):
        os.environ["SEGSWEEP_OUTPUTS"] = outputs  # where the controller's are, and no folder of Ray's
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = tuple(name for name in map(str.strip, given.split(",")) if name not in ("", "-1"))
        self._slot = Slot(0, gpus, cores() if not gpus else max(1, cores() // 4))
        self._folder = Path(tempfile.mkdtemp(prefix="segsweep-ray-"))
        # With the actor's process, however it ends, its training ends: Ray gives its GPU away at once.
        self._backend = LocalBackend(self._folder, [self._slot], preloaded, outlive=False)

    def where(self) -> str:
        return f"{node()} {self._slot}"

    def submit(self, job: Job, files: Mapping[str, bytes]) -> None:
        _write(self._folder / job.name, files)
        self._backend.submit(job)

    def poll(self) -> list[JobUpdate]:
        return self._backend.poll(WAIT)

    def stop(self, name: str) -> None:
        self._backend.stop(Id(name))

    def finish(self, name: str) -> None:
        self._backend.finish(Id(name))

    def files(self, name: str) -> dict[str, bytes]:
        """Return all files of an ended job, and forget it."""
        found = _read(self._folder / name)
        shutil.rmtree(self._folder / name)
        return found

    def call(self, function: str, arguments: Sequence[Any]) -> Any:
        return self._backend.call(function, *arguments)

    def close(self) -> None:
        self._backend.close()
        shutil.rmtree(self._folder, ignore_errors=True)


@dataclass
class _Actor:
    handle: Any
    where: str = ""
    job: str = ""  # that it runs, or whose files it has; empty of an idle one
    begun: Any = None  # the answer to its job, until that has come
    asked: Any = None  # the outstanding question for news
    first: bool = True  # no record has come yet; the first ones that do are its whole journal
    unheard: float | None = None  # since when it cannot be reached
    ended: bool = False


class RayBackend:
    """A `Backend` on a Ray cluster; jobs do not outlive it.

    Args:
        address: of the cluster, as `ray.init` takes it; "auto": the one of this machine or of RAY_ADDRESS.
        slots: jobs side by side; None: as many as the cluster has GPUs for.
        gpus: of a job; a part of one, or several, which then train it together.
    """

    keeps = False

    def __init__(
        self,
        folder: Path,
        address: str = "auto",
        slots: int | None = None,
        gpus: float = 1.0,
        preloaded: Sequence[str] = PRELOADED,
    ):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray: Any = import_module("ray")
        except ImportError as error:
            raise ConfigError("hydra.sweeper.backend=ray: Ray is not installed. Type pip install ray.") from error
        self._ray, self._address, self.folder = ray, address, folder
        self._slots, self._gpus, self._preloaded = slots, gpus, list(preloaded)
        self._connect()
        if slots is None and not self.capacity:
            ray.shutdown()
            raise ConfigError(
                f"{KEY}={address}: the cluster has no GPU. Type hydra.sweeper.slots=N hydra.sweeper.gpus=0."
            )
        self._actors: list[_Actor] = []
        self._coming: tuple[_Actor, Any] | None = None  # an actor that Ray has not placed yet, and its first answer

    def _connect(self) -> None:
        """Connect to the cluster; again where `close` has left it."""
        if self._ray.is_initialized():
            return
        before = signal.getsignal(signal.SIGTERM)
        try:
            self._ray.init(address=self._address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{KEY}={self._address}: no Ray cluster answers there: {first_line(error)}") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray's own would end this process without a word

    @property
    def capacity(self) -> int:
        self._connect()
        if self._slots is not None:
            return self._slots
        return int(self._ray.cluster_resources().get("GPU", 0) / self._gpus) if self._gpus else 0

    def thin(self, number: int) -> None:
        """Do nothing: Ray packs jobs, as `gpus` says."""

    def free(self) -> int:
        """Return how many actors are idle; one more is asked for at a time, as long as there is room for it."""
        if self._coming is None and len(self._actors) < self.capacity:
            self._coming = self._made()
        if self._coming is not None:
            actor, answer = self._coming
            ready, _ = self._ray.wait([answer], timeout=0)
            if ready:
                self._coming = None
                with suppress(self._ray.exceptions.RayError):  # its node was gone again
                    actor.where = self._ray.get(answer)
                    self._actors.append(actor)
        return sum(not actor.job for actor in self._actors)

    def submit(self, job: Job) -> Id:
        folder = self.folder / job.name
        folder.mkdir(parents=True, exist_ok=True)
        if job.anew:
            clear(folder)
        if journal.exists(folder) and not job.resume:
            raise ConfigError(f"{folder}: holds a run already. Give another folder with hydra.sweep.dir=DIR.")
        actor = next(actor for actor in self._actors if not actor.job)
        files = _read(folder, NOTES) if job.resume else {}
        actor.job, actor.ended, actor.first, actor.unheard = job.name, False, True, None
        actor.begun = actor.handle.submit.remote(job, files)
        actor.asked = actor.handle.poll.remote()
        return Id(job.name)

    def adopt(self, name: str) -> Id | None:
        """Return None: with the controller its trainings end."""
        return None

    def where(self, job: Id) -> str:
        return self._of(job).where

    def stop(self, job: Id) -> None:
        self._of(job).handle.stop.remote(job)

    def finish(self, job: Id) -> None:
        self._of(job).handle.finish.remote(job)

    def poll(self, seconds: float) -> list[JobUpdate]:
        asked = {actor.asked: actor for actor in self._actors if actor.job and not actor.ended}
        if not asked:
            time.sleep(min(seconds, LOOK))  # until an actor is placed
            return []
        ready, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=min(seconds, WAIT))
        found: list[JobUpdate] = []
        for reference in ready:
            found += self._heard(asked[reference], reference)
        return found

    def fetch(self, job: Id) -> bool:
        actor = self._of(job)
        try:
            files = self._ray.get(actor.handle.files.remote(job))
            _write(self.folder / job, {name: files[name] for name in files if name not in NOTES})
        except self._ray.exceptions.RayError:
            self._actors.remove(actor)
            return False
        actor.job = ""
        return True

    def call(self, function: str, *arguments: Any) -> Any:
        self._connect()
        idle = next((actor for actor in self._actors if not actor.job), None)
        handle = idle.handle if idle else self._made()[0].handle
        try:
            return self._ray.get(handle.call.remote(function, arguments))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, ConfigError) else RuntimeError(str(error)) from error
        finally:
            if not idle:
                self._ray.kill(handle)

    def close(self) -> None:
        actors = [*self._actors, *([self._coming[0]] if self._coming else [])]
        self._actors, self._coming = [], None
        if not self._ray.is_initialized():
            return
        ends = [actor.handle.close.remote() for actor in actors if actor.where]
        if ends:
            self._ray.wait(ends, num_returns=len(ends), timeout=LEAVE)
        for actor in actors:
            self._ray.kill(actor.handle)
        self._ray.shutdown()

    def _made(self) -> tuple[_Actor, Any]:
        kind = self._ray.remote(num_cpus=0, num_gpus=self._gpus, max_restarts=0)(Worker)
        handle = kind.remote(self._preloaded, str(outputs()))
        return _Actor(handle), handle.where.remote()

    def _heard(self, actor: _Actor, reference: Any) -> list[JobUpdate]:
        """Take an actor's news, and ask for more."""
        try:
            if actor.begun is not None:
                self._ray.get(actor.begun)
                actor.begun = None
            updates: list[JobUpdate] = self._ray.get(reference)
            actor.unheard = None
        except self._ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, OSError):
                raise
            actor.ended = True
            words = f"{actor.where}: {refused_by_system(error.cause)}"
            return [JobUpdate(Id(actor.job), ended=True, error="disk", words=words)]
        except self._ray.exceptions.ActorUnavailableError:
            actor.unheard = actor.unheard or time.monotonic()
            if time.monotonic() - actor.unheard < UNHEARD:
                actor.asked = actor.handle.poll.remote()
                return []
            return [self._gone(actor)]
        except self._ray.exceptions.RayActorError:
            return [self._gone(actor)]
        for update in updates:
            if actor.first and update.records:  # a job that goes on sends what there was, too
                journal.restore(self.folder / update.job, Run(list(update.records)))
                actor.first = False
            else:
                with journal.Journal(self.folder / update.job) as book:
                    for record in update.records:
                        book.write(record)
            actor.ended = actor.ended or update.ended
        if not actor.ended:
            actor.asked = actor.handle.poll.remote()
        return updates

    def _gone(self, actor: _Actor) -> JobUpdate:
        actor.ended = True
        self._ray.kill(actor.handle)  # one that only could not be reached must not train on
        return JobUpdate(Id(actor.job), ended=True, words=f"{actor.where} is gone")

    def _of(self, job: Id) -> _Actor:
        return next(actor for actor in self._actors if actor.job == job)


def _read(folder: Path, left_out: Sequence[str] = NOT_FETCHED) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in left_out]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomically(path, partial(Path.write_bytes, data=content))
