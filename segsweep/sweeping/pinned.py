"""What is the same for all trials of a sweep: weights and the plan of the data, kept in the study."""

from dataclasses import asdict

from optuna.trial import TrialState

from segsweep.config.checks import flat
from segsweep.config.keys import named
from segsweep.config.schema import FADING
from segsweep.errors import ConfigError
from segsweep.sweeping.backends.base import Backend
from segsweep.sweeping.plan import Plan
from segsweep.sweeping.study import Study

# What trials of a study had that was begun before there were plans.
BEFORE_PLANS: dict[str, object] = {"data.size": "[256,256]", "data.zoom": 1.0, "data.foreground": 0.0}
BEFORE_PLANS |= {"train.batch_size": 16, "augmentation.scale": 0.25, "augmentation.translate": 0.05}
BEFORE_PLANS |= {"loss.class_weights": "null"}


def weights(plan: Plan, study: Study, backend: Backend) -> dict[str, str]:
    """Find where each encoder's weights come from, once for all trials; empty where that is varied."""
    encoder, varied = plan.base.encoder, plan.space.distributions
    if varied.keys() & {"encoder.pretrained", "encoder.weights_file"}:
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
    if not plan.plans_once:
        return  # its trials have data of their own
    known = study.remembered("pixels")
    try:
        now = backend.call("segsweep.training.build:pixels", asdict(plan.base))
    except ConfigError:
        if known is None:
            raise
        return  # a sweep that is over prints its result without its data, too
    if known is None:
        study.remember("pixels", now)
    elif known != now:
        raise ConfigError(
            f"{plan.folder}: the data have changed since the sweep began, so new trials could not be compared with the "
            f"others. Bring them back as they were, or start a new sweep with hydra.sweep.dir=DIR."
        )


def decided(plan: Plan, study: Study, backend: Backend) -> list[str]:
    """Decide once, for all trials and starts of the sweep, what follows from the data alone; return what to type."""
    varied = list(plan.space.distributions)
    known: list[tuple[str, str]] | None = study.remembered("plan")
    if known is None and (study.remembered("decided") or study.trials(TrialState.COMPLETE, TrialState.PRUNED)):
        asked = dict(flat(asdict(plan.base)))
        values = {**BEFORE_PLANS, **(study.remembered("decided") or {})}
        left = [key for key in values if asked[key] in ("auto", FADING) and not named(key, varied)]
        return [f"{key}={values[key]}" for key in left]
    if known is None:
        known = []
        if plan.plans_once:
            known = backend.call("segsweep.training.build:decided_data", asdict(plan.base), varied)
        study.remember("plan", known)
    words = [word for word, _ in known]
    if _began_before_fading(study) and plan.base.loss.class_weights == FADING:
        words += [] if named("loss.class_weights", varied) else ["loss.class_weights=null"]
    return words


def _began_before_fading(study: Study) -> bool:
    """Tell whether trials were begun before class weights could fade: since then the data are remembered, too."""
    started = study.trials(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    return bool(started) and study.remembered("pixels") is None and study.remembered("begun") is None
