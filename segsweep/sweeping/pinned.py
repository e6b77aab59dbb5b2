"""What is the same for all trials of a sweep: weights and the plan of the data, kept in the study."""

from dataclasses import asdict

from optuna.trial import TrialState

from segsweep.config.schema import FADING
from segsweep.errors import ConfigError
from segsweep.runs.trial import load_all
from segsweep.sweeping import about, finalists
from segsweep.sweeping.backends.base import Backend
from segsweep.sweeping.plan import Plan
from segsweep.sweeping.study import Study


def weights(plan: Plan, study: Study, backend: Backend) -> dict[str, str]:
    """Find where each encoder's weights come from, once for all trials; empty where that is varied."""
    encoder = plan.base.encoder
    if plan.weights_varied:
        return {}
    known: dict[str, str] = study.remembered("weights") or {}
    if unknown := [name for name in plan.space.encoders if name not in known]:
        known |= backend.call("segsweep.nn.weights:sources", unknown, encoder.pretrained, encoder.weights_file)
    random = [name for name, source in known.items() if source == "random"]
    if random and len(random) < len(known) and not plan.sweeper.mixed_weights:
        rows = "; ".join(f"{name}: {source}" for name, source in known.items())
        raise ConfigError(
            f"an unfair comparison: {len(random)} of {len(known)} encoders would start from random weights ({rows}). "
            f"Drop them, or run the command once with access to the hub, or allow it with "
            f"hydra.sweeper.mixed_weights=true."
        )
    study.remember("weights", known)  # what was refused is looked up again
    return known


def refuse_other_data(plan: Plan, study: Study, backend: Backend) -> None:
    """Refuse to go on with other images or masks than the sweep began with: scores would not be of the same."""
    if not plan.plans_once or _over(plan, study):
        return  # each trial has data of its own; or none is to come
    known = study.remembered("pixels")
    try:
        now = backend.call("segsweep.training.build:pixels", asdict(plan.base))
    except ConfigError:
        return  # its trials will say so
    if known is None:
        study.remember("pixels", now)
    elif known != now:
        raise ConfigError(
            f"{plan.folder}: the data have changed since the sweep began, so new trials could not be compared with the "
            f"others. Bring them back as they were, or start a new sweep with hydra.sweep.dir=DIR."
        )


def _over(plan: Plan, study: Study) -> bool:
    """Tell whether nothing is left to train, the finalists' repeats included."""
    if not (plan.folder / about.NAME).exists():
        return False
    kept, asked = about.load(plan.folder), plan.sweeper
    trained = {run.name for run in load_all(plan.folder, finalists.FOLDER) if run.state == "complete"}
    repeats = len(finalists.best_of_each(load_all(plan.folder), asked.finalists)) * asked.repeats
    if kept.state != "complete" or len(trained.intersection(kept.repeats or ())) < repeats:
        return False
    return study.exhausted or len(study.trials(TrialState.COMPLETE, TrialState.PRUNED)) >= study.n_trials


def decided(plan: Plan, study: Study, backend: Backend) -> list[str]:
    """Decide once, for all trials and starts of the sweep, what follows from the data alone; return what to type."""
    known: list[tuple[str, str]] | None = study.remembered("plan")
    if known is None:
        study.remember("fades", True)  # else it was begun before class weights could fade
        asked = asdict(plan.base), list(plan.space.distributions)
        known = backend.call("segsweep.training.build:decided_data", *asked) if plan.plans_once else []
        study.remember("plan", known)
    words = [word for word, _ in known]
    left_open = plan.base.loss.class_weights == FADING and "loss.class_weights" not in plan.space.distributions
    return words if study.remembered("fades") or not left_open else [*words, "loss.class_weights=null"]
