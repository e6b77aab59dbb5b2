"""Continue a sweep with more encoders: Optuna cannot change a choice, so the study is written again."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from segsweep.errors import ConfigError
from segsweep.paths import atomically
from segsweep.sweeping.space import ENCODER, Space, distribution

BEGAN = "began"  # a study's attribute: the space and what is fixed
ONCE = ("seeded", "gridded")  # attributes: trials have been enqueued, which the new encoders lack
EACH = 4  # trials that are advised for each further encoder


def extend(
    path: Path, opened: Callable[[Path], BaseStorage], name: str, space: Space, fixed: Sequence[str], n_trials: int
) -> list[str]:
    """Give a study in a file the encoders that its space lacks, if it differs in nothing else; return them.

    Args:
        opened: opens a file as a storage.
        fixed: what all trials have.
        n_trials: finished ones that the sweep is to have.

    Raises ConfigError: there are as many already, so that the further encoders would not be tried.
    """
    if not path.exists():
        return []
    old = opened(path)
    if len(old.get_all_studies()) > 1:  # the others would have to be copied, too
        return []
    with suppress(KeyError):  # no such study yet
        study = old.get_study_id_from_name(name)
        began = old.get_study_user_attrs(study).get(BEGAN)
        if not began or list(began["fixed"]) != list(fixed) or not (added := _added(began["space"], space)):
            return []
        trials = old.get_all_trials(study, deepcopy=False)
        finished = sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)
        if finished >= n_trials:
            raise ConfigError(
                f"hydra.sweeper.n_trials={n_trials}: {finished} trials are finished, so {', '.join(added)} would not "
                f"be tried. Type hydra.sweeper.n_trials={finished + EACH * len(added)}."
            )

        def write(target: Path) -> None:
            target.unlink(missing_ok=True)  # of a start that was killed
            _copy(old, opened(target), name, space)

        atomically(path, write)
        return added
    return []


def _added(before: Mapping[str, str], space: Space) -> list[str]:
    """Return the encoders that a space has beyond an earlier one, if it differs in nothing else."""
    now = space.described()
    differ = [key for key in before.keys() | now.keys() if before.get(key) != now.get(key)]
    if len(differ) != 1 or differ[0] not in ENCODER or before.keys() != now.keys():
        return []
    old, new = distribution(before[differ[0]]), distribution(now[differ[0]])
    if not isinstance(old, CategoricalDistribution) or not isinstance(new, CategoricalDistribution):
        return []
    return [str(one) for one in new.choices if one not in old.choices] if {*old.choices} < {*new.choices} else []


def _copy(old: BaseStorage, new: BaseStorage, name: str, space: Space) -> None:
    before = old.get_study_id_from_name(name)
    study = new.create_new_study([StudyDirection.MAXIMIZE], name)
    for key, value in old.get_study_user_attrs(before).items():
        if key not in ONCE:
            new.set_study_user_attr(study, key, {**value, "space": space.described()} if key == BEGAN else value)
    for trial in old.get_all_trials(before):
        kinds = trial.distributions.items()
        trial.distributions = {key: space.distributions[key] if key in ENCODER else kind for key, kind in kinds}
        new.create_new_trial(study, template_trial=trial)
