"""A sweep by several controllers, from its plan to its result: each joins and takes trials, and one of them concludes.

That one holds the lock `leader`: it chooses the finalists, whose repeats are taken like trials, ranks them, scores the
winner and writes the report.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.study import Study as OptunaStudy

import segsweep
from segsweep import console
from segsweep.config.schema import places
from segsweep.errors import Asked, ConfigError, DiskError, SweepError, Terminated
from segsweep.paths import BEST
from segsweep.runs import journal, locks
from segsweep.runs.stop import Sign
from segsweep.runs.trial import Trial
from segsweep.sweeping import about, finalists, pinned, storage
from segsweep.sweeping.backends.base import Backend
from segsweep.sweeping.controllers import (
    LEADER,
    REPEAT,
    Shared,
    SharedRepeats,
    SharedSearch,
    SharedStudy,
    Superfluous,
    repeat_of,
)
from segsweep.sweeping.files import SEEN, Files
from segsweep.sweeping.finalists import FinalistResult
from segsweep.sweeping.mirror import Tracking
from segsweep.sweeping.plan import Plan, again
from segsweep.sweeping.run import (
    announce,
    backend_for,
    begun,
    concluded,
    exhausted,
    pruner_of,
    score,
    sent,
    stopped,
    watch,
)
from segsweep.sweeping.sharing import Beats, Claims, Owner, Server
from segsweep.tracking import client

NAMED = 3  # folders that are named where any of them may get the report
LEAVING = 5.0  # seconds that a controller that is stopped waits for MLflow


def join(plan: Plan) -> list[FinalistResult]:
    """Take part in the sweep that a study on a server holds, or begin it; print the result, if this one concludes it.

    Raises:
        ConfigError: the study is of another sweep, or of other data, weights or versions.
        SweepError: too many trials failed, or the first ones on this host all did.
    """
    if plan.sweeper.backend != "local":
        raise ConfigError(
            f"hydra.sweeper.backend={plan.sweeper.backend}: allows only one controller, with its study in a file. "
            f"Drop hydra.sweeper.storage, or start a controller on each machine with hydra.sweeper.backend=local."
        )
    made = storage.missing(plan.folder / locks.LOCK)
    plan.folder.mkdir(parents=True, exist_ok=True)
    sign, lock = Sign(plan.folder), locks.FolderLock(plan.folder, "sweep", shared=True)
    name = plan.sweeper.study_name or "sweep"
    server, beats = None, None
    try:
        backend = backend_for(plan, outlive=False)
        server = Server(storage.parsed(plan.sweeper.storage or ""), name)
        beats = Beats(server)
        controller = _Controller(plan, server, beats, backend, sign)
    except BaseException:
        if beats:
            beats.close()
        if server:
            server.close()
        storage.remove([plan.folder / SEEN, *made])
        lock.release()
        raise
    try:
        return controller.run()
    except (KeyboardInterrupt, Terminated, Asked, DiskError, OSError):
        console.note(
            f"\nstopped; nothing is lost. To continue, here or on another machine, type: "
            f"{again(plan.folder, plan.command)}"
        )
        raise
    finally:
        controller.leave()
        beats.close()
        server.close()
        lock.release()


class _Controller:
    """One of a sweep's controllers."""

    def __init__(self, plan: Plan, server: Server, beats: Beats, backend: Backend, sign: Sign):
        self.plan, self.server, self.beats, self.backend, self.sign = plan, server, beats, backend, sign
        pruner, fixed = pruner_of(plan), _portable(plan.fixed)
        self.study = server.until_answered(
            lambda: SharedStudy(
                server, beats, plan.folder, plan.space, plan.sweeper, seeds=plan.seeds, pruner=pruner, fixed=fixed
            )
        )
        self.claims, self.files = [self.study.claims], Files(plan, self.study.me)
        try:
            _refuse_foreign(plan.folder, self.study.id)
            own = self._identity()  # minutes, perhaps: each controller by itself
            server.until_answered(lambda: self._begin(own))
        except BaseException:
            self.files.retract()
            self.study.discard()
            raise
        self.placed = [word for word in plan.fixed if word.partition("=")[0] in places()]  # where data are here
        self.concluded_before = self.study.remembered("ended")

    def _begin(self, own: Mapping[str, str]) -> None:
        """Find out what all others take over, if this is the first controller; else take it over."""
        plan, study, backend = self.plan, self.study, self.backend
        with self.server.alone("begin", stuck=0):
            self.files.enter(self._compare(own))
            self.sources, self.decided = pinned.weights(plan, study, backend), pinned.decided(plan, study, backend)

    def run(self) -> list[FinalistResult]:
        plan, study = self.plan, self.study
        argv = partial(plan.argv, self.sources, self.decided)
        shared = self._shared(study.claims)
        search = SharedSearch(study, shared, argv, plan.sweeper, seed=plan.base.train.seed)
        search.restore()
        kept = replace(begun(plan), id=study.id, shared=True)
        if not (self.concluded_before and (plan.folder / about.NAME).exists()):  # else it stays as it ended
            kept.save(plan.folder)
        announce(plan, study, self.backend)
        self._announce(search)
        track = Tracking(plan, self._parent)
        try:
            results = self._searched(search, track, kept)
            text = "" if results is None else concluded(plan, list(search.trials.values()), results)
        except Superfluous:
            results = None
        except BaseException as error:
            self.leave()  # before anything that may take long
            if self.server.is_held(LEADER):
                stopped(plan, error)
            track.leave(LEAVING)
            raise
        if results is None:
            self._leave_to_others()
            track.leave()
            return []
        study.remember("ended", {"by": asdict(study.me), "time": time.time()})  # MLflow may take a minute
        sent(plan, track, text, results)
        return results

    def _announce(self, search: SharedSearch) -> None:
        """Say how far the sweep is already."""
        if self.concluded_before:
            by, at = Owner(**self.concluded_before["by"]), time.localtime(self.concluded_before["time"])
            ended = f"ended on {time.strftime('%Y-%m-%d at %H:%M', at)}, by {by}; this is its result"
            console.note(f"study {self.study.name}: {ended}")
            return
        done = sum(trial.state in ("complete", "pruned") for trial in search.trials.values())
        others = self.study.claims.elsewhere()
        controllers = console.counted(len({owner.member for owner in others if owner}), "controller")
        told = f"{done} of {self.study.n_trials} trials are finished; {controllers} elsewhere: {len(others)} running"
        console.note(f"study {self.study.name}: {told}")

    def _leave_to_others(self) -> None:
        """Say who ends the sweep, and where its report will be; this folder's own is of a part of it."""
        leader = self.study.remembered("leader")
        if leader and leader["member"] == self.study.me.member:  # it chose the finalists, and is not needed any more
            leader = None
        others = [Owner(**leader)] if leader else [owner for owner in self.claims[-1].elsewhere() if owner]
        shared = any(self.files.sees(owner) for owner in others)
        places = sorted({str(owner) for owner in others})[:NAMED]
        where = str(self.plan.folder) if shared else " or ".join(places) or "another controller's folder"
        reason = f"other controllers end the sweep, and its report will be in {where}"
        console.note(f"nothing is left for this controller to do; {reason}")
        kept = about.load(self.plan.folder)
        if not shared:
            replace(kept, state="stopped", reason=reason).save(self.plan.folder)
        elif kept.state == "running" and self.study.remembered("ended") != self.concluded_before:
            # It ended while this controller joined.
            replace(kept, state="complete").save(self.plan.folder)

    def leave(self) -> None:
        """Stop what runs here, and give the trials back that are still this controller's."""
        self.backend.close()
        for claims in self.claims:
            for number in claims.held:
                claims.give_back(number)

    def _searched(self, search: SharedSearch, track: Tracking, kept: about.About) -> list[FinalistResult] | None:
        """Search, and run finalists' repeats; rank them and score the winner if this controller leads, else None."""
        plan, study = self.plan, self.study
        if study.remembered("finalists") is None:  # else the search is over, by hydra.sweeper.timeout perhaps
            watch(search, study.n_trials, self.backend, plan.folder, track, self.sign)
        search.shared.leave_seat()
        if search.shared.sick:
            raise SweepError(search.shared.sick)
        if ended := exhausted(search, plan.sweeper.n_trials):
            console.note(ended)
        if plan.cross_validates:
            self._wait_for_others(search)
            if not self._leads():
                return None
            self.files.gather(search.trials.values())
            return []
        names = self._chosen(search)
        best = [search.trials[name] for name in names]
        seeds = plan.fresh_seeds(search.trials.values())
        planned = [run for trial in best for run in finalists.repeats(trial, seeds, plan.folds)]
        repeats: list[Trial] = []
        owners: Mapping[str, Owner] = search.shared.owners
        if plan.sweeper.finalists and planned:
            source = self._repeats(planned, track)
            console.note(f"finalists: {', '.join(t.weights for t in best)}, {plan.sweeper.repeats} new seeds each")
            watch(source, len(planned), self.backend, plan.folder, track, self.sign)
            if source.shared.sick:
                raise SweepError(source.shared.sick)
            source.refresh()
            repeats, owners = list(source.trials.values()), {**owners, **source.shared.owners}
        if not self._leads():
            return None
        self.files.gather([*search.trials.values(), *repeats])
        for trial in repeats if any(trial.state == "complete" for trial in repeats) else best:
            self.files.fetch(trial, owners.get(trial.name))
        counted = [run.name for run in repeats]  # by the attempt that ended it
        state: about.State = "complete" if self.concluded_before else "running"
        chosen = [trial.name for trial in best]
        replace(kept, finalists=chosen, repeats=counted, state=state).save(plan.folder)
        results = finalists.ranked(plan.folder, best, repeats)
        if results:
            self._score(results[0].winner)
            track.send(results[0].winner)
        return results

    def _wait_for_others(self, search: SharedSearch) -> None:
        """Wait until no trial of another controller runs: where the time is over, some still do."""
        while search.shared.claims.living():
            if self.sign.is_up():
                raise Asked
            time.sleep(1.0)
        search.refresh()

    def _leads(self) -> bool:
        """Tell whether it is this controller that concludes the sweep, which none has since it joined."""
        if not self.server.hold(LEADER) or self.study.remembered("ended") != self.concluded_before:
            return False
        self.study.remember("leader", asdict(self.study.me))
        return True

    def _chosen(self, search: SharedSearch) -> list[str]:
        """Return the names of the finalists, or of the best trial, as the leader has chosen them."""
        while True:
            names: list[str] | None = self.study.remembered("finalists")
            if names is not None:
                search.refresh()
                return names
            if self.sign.is_up():
                raise Asked
            # Where the time is over, trials of others may still run.
            if self.server.hold(LEADER) and not search.shared.claims.living():
                search.refresh()
                best = finalists.best_of_each(search.trials.values(), self.plan.sweeper.finalists or 1)
                self.study.remember("leader", asdict(self.study.me))
                self.study.remember("finalists", [trial.name for trial in best])
            else:
                time.sleep(1.0)

    def _repeats(self, planned: Sequence[Trial], track: Tracking) -> SharedRepeats:
        """Open the study that the finalists' repeats are claimed from."""

        def opened() -> OptunaStudy:
            with self.server.alone("finalists"):
                study = optuna.create_study(
                    storage=self.server.storage,
                    study_name=f"{self.study.name}-finalists-{self.study.id[:8]}",
                    direction="maximize",
                    sampler=RandomSampler(),
                    load_if_exists=True,
                )
                for i in range(len(study.get_trials(deepcopy=False)), len(planned)):
                    study.enqueue_trial({REPEAT: i})
                return study

        study = self.server.until_answered(opened)
        claims = Claims(study, self.server, self.beats, repeat_of(len(planned)), self.study.me)
        self.claims.append(claims)
        return SharedRepeats(study, self._shared(claims), planned, partial(self.files.keep, track))

    def _shared(self, claims: Claims) -> Shared:
        return Shared(claims, self.server, self.plan.folder, self.placed)

    def _identity(self) -> dict[str, str]:
        """Return all that two controllers of a sweep must have alike, and that the study does not compare itself."""
        plan = self.plan
        alike = ("n_trials", "pruner", "finalists", "repeats", "repeat_points")
        own = {"segsweep": segsweep.__version__, "optuna": optuna.__version__}
        own |= {f"hydra.sweeper.{name}": str(getattr(plan.sweeper, name)) for name in alike}
        if plan.plans_once:
            encoders = [] if plan.weights_varied else list(plan.space.encoders)
            own |= self.backend.call("segsweep.training.build:identity", asdict(plan.base), encoders)
        return own

    def _compare(self, own: Mapping[str, str]) -> Owner:
        """Refuse to join a sweep that was begun with something else that decides what comes out; return who began."""
        known: Mapping[str, Any] | None = self.study.remembered("begun")
        if known is None:
            self.study.remember("begun", {"by": asdict(self.study.me), "with": dict(own)})
            return self.study.me
        first, there = Owner(**known["by"]), {"hydra.sweeper.repeat_points": "none"} | known["with"]  # 0.1.0 lacks it
        differ = [name for name in own if own[name] != there.get(name)]
        if not differ:
            return first
        rows = "; ".join(f"{name}: {there.get(name)} there, {own[name]} here" for name in differ)
        hint = ""
        if "pixels" in differ:
            same = "files" not in differ
            hint = " The files are the same, but are decoded differently." if same else " The files differ."
        raise ConfigError(
            f"{first.host} began this sweep with other values: {rows}.{hint} Make them the same on all machines."
        )

    def _score(self, winner: Trial) -> None:
        """Score the winner on the test split, unless an earlier leader has."""
        known = self.study.remembered("winner")
        if known and known["name"] == winner.name:
            winner.run = journal.unpacked(known["record"])
            return
        if not (self.plan.folder / winner.name / BEST).exists():
            console.note("the winner's model is not here, so the test split is not scored.")
            return
        winner.placed = self.placed
        score(self.plan.folder, winner, self.backend)
        if winner.run.tested:  # else the next start tries again
            self.study.remember("winner", {"name": winner.name, "record": journal.packed(winner.run)})

    def _parent(self, make: Callable[[float | None], str]) -> str:
        """Make the sweep's run in MLflow, or take up the one that another controller made."""
        folder, uri = self.plan.folder, client.tracking_uri(self.plan.base.tracking.uri)

        def one() -> str:
            with self.server.alone("parent"):
                known: Mapping[str, Any] | None = self.study.remembered("mlflow")
                if known and not client.read_cursor(folder, uri).run_id:
                    swept = list(self.plan.space.distributions)
                    client.write_cursor(folder, uri, client.Cursor(**known, swept=swept, folder=str(folder)))
                # One that is over stays as it is.
                run_id = make(self.concluded_before["time"] if self.concluded_before else None)
                cursor = client.read_cursor(folder, uri)
                found = {"run_id": run_id, "experiment_id": cursor.experiment_id, "view": cursor.view}
                self.study.remember("mlflow", found)
                return run_id

        return self.server.until_answered(one)


def _portable(words: Sequence[str]) -> list[str]:
    return [word for word in words if word.partition("=")[0] not in places()]


def _refuse_foreign(folder: Path, sweep: str) -> None:
    """Refuse a folder that holds another sweep, or runs of something else."""
    other = "Give another folder: hydra.sweep.dir=DIR."
    if (folder / about.NAME).exists():
        if about.load(folder).id != sweep:
            raise ConfigError(f"{folder}: contains another sweep than the study. {other}")
    elif runs := sorted(path.parent.name for path in folder.glob(f"*/{journal.NAME}")):
        raise ConfigError(f"{folder}: contains runs that are not of this sweep: {', '.join(runs[:3])}. {other}")
