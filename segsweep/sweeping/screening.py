"""`sweeps=screen`: many pretrained weights, cheaply, to the few that are worth a full sweep.

Each step is one job for each set of weights that is left, and costs more than the step before: frozen features, one
epoch, a short training. A job is a trial like any other, with a command and a journal. The journals alone decide which
weights continue, so the same command continues a screening that was stopped, and runs nothing twice.
"""

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from segsweep import catalog, console
from segsweep.config.checks import read_value
from segsweep.config.schema import FADING
from segsweep.config.screen import ScreenConfig
from segsweep.config.sweeper import PREFIX
from segsweep.errors import Asked, ConfigError, DiskError, SweepError, Terminated
from segsweep.paths import load_json, override, program
from segsweep.process import show
from segsweep.runs import locks
from segsweep.runs.stop import Sign
from segsweep.runs.trial import Trial, load_all
from segsweep.sweeping import screen_report, screened, storage
from segsweep.sweeping.backends.base import OUTPUT, Backend
from segsweep.sweeping.live import Board, duration
from segsweep.sweeping.plan import LENGTH, Plan, again
from segsweep.sweeping.run import backend_of, packed
from segsweep.sweeping.scheduler import TRAINING, TrialSource, drive, taken_up, tried_again
from segsweep.sweeping.screened import NAME, Screened

PROBE = "segsweep.commands.probe"
EACH = 8  # trials of the full sweep for each set of weights that is left
OVERHEAD = 10.0  # seconds of a job before and after its work, as estimated
FORWARD = 128 / 3  # images of a training that take as long as the 128 whose frozen features are looked at
EPOCH = 180  # images of an epoch, for the estimate
USUAL = (256, 256)  # canvas that memory is counted for where nobody has said another


@dataclass(frozen=True)
class Step:
    """A step of a screening."""

    name: str  # of its jobs' folder below the screening's
    title: str
    module: str  # whose `main` is a job's
    most: int | None  # weights that take it
    words: tuple[str, ...] = ()  # what its jobs have beside what all have


FULL = "train.time_budget=null"  # epochs alone end a step's trainings, whatever a recipe says


def steps(asked: ScreenConfig) -> list[Step]:
    """Return the steps, the cheapest first."""
    epochs = asked.short_epochs
    return [
        Step("features", "frozen features", PROBE, None),
        Step("epoch", "one epoch", TRAINING, asked.one_epoch, ("train.epochs=1", FULL)),
        Step("short", console.counted(epochs, "epoch"), TRAINING, asked.short, (f"train.epochs={epochs}", FULL)),
    ]


def run(plan: Plan, asked: ScreenConfig) -> Screened | None:
    """Screen the weights, or go on with the screening that the folder holds; print what is left to stdout.

    Raises what a sweep raises, and ConfigError where no weights are left to compare.
    """
    made = storage.missing(plan.folder / locks.LOCK)
    sign = Sign(plan.folder)
    plan.folder.mkdir(parents=True, exist_ok=True)
    lock, backend, kept = locks.FolderLock(plan.folder, "sweep"), None, None
    try:
        backend = backend_of(plan)
        kept, backend = _prepared(plan, asked, backend)
        show(cost(kept, asked, backend.capacity))
        if asked.dry:
            return None
        kept.save(plan.folder)
        with storage.full_disk_told():
            return _screened(plan, asked, backend, kept, sign)
    except (KeyboardInterrupt, Terminated, Asked, DiskError, OSError):
        if kept:
            console.note(f"\nstopped; nothing is lost. To continue, type: {again(plan.folder, plan.command)}")
        raise
    finally:
        if backend:
            backend.close()
        if not (plan.folder / NAME).exists():
            storage.remove(made)
        lock.release()


def _prepared(plan: Plan, asked: ScreenConfig, backend: Backend) -> tuple[Screened, Backend]:
    """Find out what is compared, the weights that fit and can be had, with what all jobs have alike; and where."""
    if plan.base.encoder.pretrained is False:
        raise ConfigError("encoder.pretrained=false: a screening compares pretrained weights. Drop it.")
    if (plan.folder / NAME).exists():
        before = screened.load(plan.folder)
        now = [*plan.fixed, f"{PREFIX}short_epochs={asked.short_epochs}"]
        then = [*before.fixed, f"{PREFIX}short_epochs={before.short_epochs}"]
        if now != then:
            raise ConfigError(
                f"{plan.folder}: contains a screening that was begun with other options: {shlex.join(then)}. Type "
                f"these, or start another one with hydra.sweep.dir=DIR."
            )
    else:
        words = backend.call("segsweep.training.build:decided_data", asdict(plan.base), ["encoder"])
        for word, why in words:
            console.note(f"plan: {word}  {why}")
        before = Screened(plan.command, list(plan.fixed), [word for word, _ in words], fades=True)
    if not before.fades and plan.base.loss.class_weights == FADING:  # its first jobs were begun before weights could
        before = replace(before, decided=[*before.decided, "loss.class_weights=null"])
    before = replace(before, fades=True)
    names, census = [catalog.tagged(name) for name in plan.space.encoders], catalog.counted()
    counted = {name: census.get(name.partition(".")[0]) for name in names}
    if unknown := [name for name, row in counted.items() if row is None]:
        counted |= backend.call("segsweep.nn.survey:surveys", unknown)
    parameters = {name: float(row["parameters"]) for name, row in counted.items() if row}
    gflop = {name: float(row["gflop"]) for name, row in counted.items() if row}
    left_out = {name: "the installed timm does not have it" for name in names if name not in gflop}
    if asked.parameters is not None:
        left_out |= {n: f"{m:.1f} million parameters" for n, m in parameters.items() if m > asked.parameters}
    rest = [name for name in names if name not in left_out]
    if asked.memory is not None:
        needed = backend.call("segsweep.nn.survey:training_gib", rest, _canvas(before.decided, plan))
        left_out |= {n: f"{gib:.1f} GiB for an image" for n, gib in needed.items() if gib > asked.memory}
    rest = [name for name in rest if name not in left_out]
    sources = {name: source for name, source in before.sources.items() if name in rest}
    if looked := [name for name in rest if name not in sources]:
        fetched = "" if asked.dry else "; those on the hub are fetched"
        console.note(f"looking for the weights of {console.counted(len(looked), 'encoder')}{fetched}")
        found = backend.call("segsweep.nn.weights:available", looked, plan.base.encoder.weights_file, not asked.dry)
        sources |= {name: source for name, (source, _) in found.items() if source}
        left_out |= {name: why for name, (source, why) in found.items() if not source}
    rest = [name for name in rest if name in sources]
    if not rest:
        raise ConfigError(f"no weights are left to compare. {'; '.join(f'{n}: {why}' for n, why in left_out.items())}")
    seconds = {name: before.seconds[name] for name in rest if name in before.seconds}
    if len(seconds) < len(rest):
        seconds = _seconds(rest, gflop, plan, backend)
    kept = replace(before, command=plan.command, gflop=gflop, parameters=parameters, chosen=[], full="")
    kept = replace(kept, sources=sources, left_out=left_out, seconds=seconds, short_epochs=asked.short_epochs)
    backend = packed(_untaught(plan), backend, rest, len(rest))
    begun = {trial.encoder for trial in load_all(plan.folder, steps(asked)[0].name)}
    return _within(kept, asked, backend.capacity, begun), backend


def _seconds(names: Sequence[str], gflop: Mapping[str, float], plan: Plan, backend: Backend) -> dict[str, float]:
    """Estimate an epoch's seconds with each encoder: one of middling cost is timed, the others go by their GFLOP."""
    timed = sorted(names, key=gflop.__getitem__)[len(names) // 2]
    console.note(f"timing a few steps with {timed}")
    asked = asdict(_untaught(plan).base)
    found = backend.call("segsweep.training.estimate:estimates", asked, [timed])
    return {name: found[timed]["seconds"] * gflop[name] / gflop[timed] for name in names}


def _untaught(plan: Plan) -> Plan:
    """Return the plan with an epoch from random weights, which takes as long and fetches nothing."""
    encoder = replace(plan.base.encoder, pretrained=False, weights_file=None)
    train = replace(plan.base.train, epochs=1, time_budget=None)
    return replace(plan, base=replace(plan.base, encoder=encoder, train=train))


def _within(kept: Screened, asked: ScreenConfig, slots: int, begun: Collection[str] = ()) -> Screened:
    """Leave out the costliest weights until the estimate is within the minutes that were asked for.

    Args:
        begun: weights that an earlier start has compared already, which stay.
    """
    order = sorted((name for name in kept.compared if name not in begun), key=kept.seconds.__getitem__)
    while asked.minutes is not None and order and len(kept.compared) > asked.choose:
        if estimate(kept, asked, slots) <= 60 * asked.minutes:
            break
        slowest = order.pop()
        why = f"too slow for {PREFIX}minutes={asked.minutes:g}: an epoch takes about {duration(kept.seconds[slowest])}"
        kept = replace(kept, left_out={**kept.left_out, slowest: why})
    return kept


def estimate(kept: Screened, asked: ScreenConfig, slots: int) -> float:
    """Return the seconds that a screening takes from its beginning, as estimated; nothing is known of who goes on."""
    each = [kept.seconds[name] for name in kept.compared]
    usual = sum(each) / len(each)
    jobs = len(each) * OVERHEAD + sum(FORWARD / EPOCH * seconds for seconds in each)
    jobs += min(asked.one_epoch, len(each)) * (OVERHEAD + usual)
    jobs += min(asked.short, len(each)) * (OVERHEAD + asked.short_epochs * usual)
    return jobs / max(1, min(slots, len(each)))


def cost(kept: Screened, asked: ScreenConfig, slots: int) -> str:
    """Say what is compared and what that costs, before it begins."""
    counts = {step.title: min(step.most or len(kept.compared), len(kept.compared)) for step in steps(asked)}
    parts = ", ".join(f"{count} x {title}" for title, count in counts.items())
    rows = [
        ("weights", f"{len(kept.compared)}: {', '.join(kept.compared)}"),
        *(("" if i else "left out", why) for i, why in enumerate(kept.reasons)),
        ("jobs", f"{sum(counts.values())}: {parts}; {slots} at once"),
        ("all", f"about {duration(estimate(kept, asked, slots))} from the beginning"),
    ]
    return console.table(rows)


def _screened(plan: Plan, asked: ScreenConfig, backend: Backend, kept: Screened, sign: Sign) -> Screened:
    """Take one step after the other, and say what is left."""
    left = kept.compared
    for step in steps(asked):
        before = {trial.name: trial for trial in load_all(plan.folder, step.name)}
        done = {trial.encoder for trial in before.values() if trial.state == "complete"}
        # Weights that were added may be better; what has been paid for still counts.
        left = [name for i, name in enumerate(left) if step.most is None or i < step.most or name in done]
        jobs = [_trial(kept, step, name, before) for name in left]
        over = sum(job.state != "running" for job in jobs)
        told = f", {over} of them over" if over else ""
        console.note(f"\n{step.title}: {console.counted(len(jobs), 'job')}{told}")
        with Board({job.name: job for job in jobs}, len(jobs), backend.capacity) as board:
            for event in drive(TrialSource(jobs), backend, plan.folder, step.module, sign):
                board.show(event)
        left = screened.best_first(left, screened.trials(plan.folder), step.name)
        if not left:
            raise SweepError(f"{step.title}: no job has a score. Their messages are in {OUTPUT} of each job.")
    chosen = left[: asked.choose]
    kept = replace(kept, chosen=chosen, full=_full(plan, chosen))
    kept.save(plan.folder)
    show(screen_report.written(plan.folder))
    return kept


def _trial(kept: Screened, step: Step, name: str, before: Mapping[str, Trial]) -> Trial:
    """Make a step's job for a set of weights, with what an earlier start left of it among those of `before`."""
    pinned = [] if kept.sources[name] == "file" else ["encoder.pretrained=true"]
    fixed = [word for word in kept.fixed if word.partition("=")[0] not in LENGTH]
    trial = Trial(f"{step.name}/{name}", name, [], [*fixed, *kept.decided, *step.words, f"encoder={name}", *pinned])
    return taken_up(trial, tried_again(before.get(trial.name, trial)))


def _full(plan: Plan, chosen: Sequence[str]) -> str:
    """Return the command of the full sweep over the weights that are left."""
    folder = plan.folder.with_name(f"{plan.folder.name}-full")
    words = [word for word in plan.fixed if not word.startswith("sweeps=")]
    typed = any(word.startswith("optim.lr=") for word in words)
    if plan.base.optim.name == "sgd" and not typed:  # the ranges by the encoder's kind are for others
        words.append("optim.lr=tag(log,interval(0.005,0.5))")
    choice = f"encoder=choice({','.join(chosen)})" if len(chosen) > 1 else f"encoder={chosen[0]}"
    trials = f"{PREFIX}n_trials={EACH * len(chosen)}"
    search = shlex.join(["sweeps=lr_by_encoder", *words, choice, trials])
    return f"{program()} {search} {override('hydra.sweep.dir', folder)}"


def _canvas(decided: Sequence[str], plan: Plan) -> list[int]:
    """Return the canvas' height and width, as decided or typed."""
    found = [word.partition("=")[2] for word in decided if word.startswith("data.size=")]
    size = load_json(found[-1].encode()) if found else plan.base.data.size
    return list(read_value(tuple[int, int], USUAL if size == "auto" else size, "data.size"))
