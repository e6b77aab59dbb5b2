"""What `auto` becomes, from facts alone."""

from dataclasses import replace

import pytest
from fingerprints import fingerprint
from records import undecided

from segsweep import catalog
from segsweep.config.schema import AugmentationConfig, DataConfig, LossConfig, OptimConfig, RunConfig, TrainConfig
from segsweep.config.settings import Settings
from segsweep.errors import ConfigError
from segsweep.training.plan import TrainingPlan
from segsweep.training.resolve import Facts, resolve

FACTS = Facts(
    kind="hierarchical",
    pretrained=True,
    input_size=None,
    width=[64, 32, 16, 8, 8],
    data=fingerprint(),
    classes=["background", "cell"],
    pixels=[900, 100],
)


def decided(facts=FACTS, **sections):
    return resolve(Settings.of(RunConfig(**sections)), facts).settings


def test_nothing_says_auto_afterwards():
    assert undecided(Settings.of(RunConfig()))
    everything = RunConfig(
        loss=LossConfig(ce=1, class_weights="auto"), augmentation=AugmentationConfig(scale="auto", translate="auto")
    )
    left = undecided(resolve(Settings.of(everything), FACTS).settings)
    assert left == ["train.grad_accum"]  # by what fits the memory


def test_what_was_decided_stays_whatever_is_known_later():
    first = decided()
    other = replace(FACTS, kind="plain", data=fingerprint((64, 64), channels=1, spread=2.0))
    assert resolve(first, other) == TrainingPlan(first)


def test_what_was_asked_for_stays():
    optim, data = (
        OptimConfig(lr=0.5, encoder_lr_scale=0.25),
        DataConfig(resize="squash", normalize="dataset", passes=3, threshold=100, nodata=-1, zoom=1.0, size=64),
    )
    found = decided(optim=optim, data=data, train=TrainConfig(epochs=7, bn_momentum=0.5))
    assert (found.optim, found.data) == (optim, replace(data, foreground=0.0, tile=None))
    assert (found.train.epochs, found.train.bn_momentum) == (7, 0.5)


def test_rates_follow_the_encoders_kind_and_random_weights_learn_as_fast_as_the_decoder():
    rates = catalog.RATES["hierarchical"]
    assert (decided().optim.lr, decided().optim.encoder_lr_scale) == (rates.lr, rates.encoder_lr_scale)
    random = decided(replace(FACTS, pretrained=False))
    assert (random.optim.encoder_lr_scale, random.encoder.pretrained) == (1.0, False)


def test_pixels_are_shown_as_the_encoder_knows_them_where_it_knows_any():
    assert decided().data.normalize == "encoder"
    assert decided(replace(FACTS, pretrained=False)).data.normalize == "dataset"
    for other in (fingerprint(channels=1), fingerprint(highest=65535.0)):
        assert decided(replace(FACTS, data=other)).data.normalize == "dataset"
    assert decided(data=DataConfig(window=[0.0, 9.0])).data.normalize == "window"


def test_weights_of_classes_become_numbers():
    assert decided(loss=LossConfig(ce=1, pos_weight="auto")).loss.pos_weight == 9
    assert decided(loss=LossConfig(ce=1, class_weights="auto")).loss.class_weights == [500 / 900, 5.0]
    assert decided(loss=LossConfig(ce=1)).loss.class_weights is None, "two classes"
    with pytest.raises(ConfigError, match="one for each of the 2 classes"):
        decided(loss=LossConfig(ce=1, class_weights=[1, 2, 3]))


def test_a_training_without_an_end_has_ten_epochs():
    assert decided().train.epochs == 10
    assert decided(train=TrainConfig(time_budget=60)).train.epochs is None


def test_settings_do_not_know_where_things_lie():
    here = RunConfig(data=DataConfig(root="/here"), train=TrainConfig(device="cpu", workers=3, precision="bf16"))
    assert Settings.of(here) == Settings.of(RunConfig())
    assert "root" not in Settings.of(here).recorded()["data"]
