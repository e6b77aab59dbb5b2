"""What is the same for all trials of a sweep: weights and the plan of the data, kept in the study."""

from dataclasses import asdict

from optuna.trial import TrialState

from segsweep.config.checks import flat
from segsweep.config.keys import named
from segsweep.config.schema import FADING
from segsweep.errors import ConfigError
from segsweep.sweeping import about
from segsweep.sweeping.backends.base import Backend
from segsweep.sweeping.plan import Plan
from segsweep.sweeping.study import Study

# What trials of a study had that was begun before there were plans.
BEFORE_PLANS: dict[str, object] = {"data.size": "[256,256]", "data.zoom": 1.0, "data.foreground": 0.0}
BEFORE_PLANS |= {"train.batch_size": 16, "augmentation.scale": 0.25, "augmentation.translate": 0.05}


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
    if not (plan.folder / about.NAME).exists() or about.load(plan.folder).state != "complete":
        return False
    return study.exhausted or len(study.trials(TrialState.COMPLETE, TrialState.PRUNED)) >= study.n_trials


def decided(plan: Plan, study: Study, backend: Backend) -> list[str]:
    """Decide once, for all trials and starts of the sweep, what follows from the data alone; return what to type."""
    fades = _fades(study)
    words = _of_data(plan, study, backend)
    left_open = plan.base.loss.class_weights == FADING and "loss.class_weights" not in plan.space.distributions
    return words if fades or not left_open else [*words, "loss.class_weights=null"]


def _fades(study: Study) -> bool:
    """Tell whether class weights may fade: not in a study whose first trials were begun before they could."""
    known: bool | None = study.remembered("fades")
    if known is None:
        known = not study.trials(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        study.remember("fades", known)
    return known


def _of_data(plan: Plan, study: Study, backend: Backend) -> list[str]:
    varied = list(plan.space.distributions)
    known: list[tuple[str, str]] | None = study.remembered("plan")
    if known is None and (study.remembered("decided") or study.trials(TrialState.COMPLETE, TrialState.PRUNED)):
        asked = dict(flat(asdict(plan.base)))
        values = {**BEFORE_PLANS, **(study.remembered("decided") or {})}
        return [f"{key}={value}" for key, value in values.items() if asked[key] == "auto" and not named(key, varied)]
    if known is None:
        known = []
        if plan.plans_once:
            known = backend.call("segsweep.training.build:decided_data", asdict(plan.base), varied)
        study.remember("plan", known)
    return [word for word, _ in known]
