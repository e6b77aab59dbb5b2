"""What `auto` becomes, from facts alone."""

from dataclasses import replace

import pytest
from records import undecided

from segsweep import catalog
from segsweep.config.schema import DataConfig, LossConfig, OptimConfig, RunConfig, TrainConfig
from segsweep.config.settings import Settings
from segsweep.errors import ConfigError
from segsweep.training.resolve import Facts, resolve

FACTS = Facts(
    kind="hierarchical",
    pretrained=True,
    width=[64, 32, 16, 8, 8],
    sizes=[(512, 400)] * 30,
    validation=10,
    photographs=True,
    classes=["background", "cell"],
    pixels=[900, 100],
)


def decided(facts=FACTS, **sections):
    return resolve(Settings.of(RunConfig(**sections)), facts)


def test_nothing_says_auto_afterwards():
    assert undecided(Settings.of(RunConfig()))
    assert undecided(decided(loss=LossConfig(ce=1, class_weights="auto"))) == []


def test_what_was_decided_stays_whatever_is_known_later():
    first = decided()
    other = replace(FACTS, kind="plain", pretrained=True, sizes=[(64, 64)] * 500, photographs=False)
    assert resolve(first, other) == first


def test_what_was_asked_for_stays():
    optim, data = (
        OptimConfig(lr=0.5, encoder_lr_scale=0.25),
        DataConfig(resize="squash", normalize="dataset", repeats=3, threshold=100, nodata=-1, zoom=1.0),
    )
    found = decided(optim=optim, data=data, train=TrainConfig(epochs=7, bn_momentum=0.5))
    assert (found.optim, found.data) == (optim, data)
    assert (found.train.epochs, found.train.bn_momentum) == (7, 0.5)


def test_rates_follow_the_encoders_kind_and_random_weights_learn_as_fast_as_the_decoder():
    rates = catalog.RATES["hierarchical"]
    assert (decided().optim.lr, decided().optim.encoder_lr_scale) == (rates.lr, rates.encoder_lr_scale)
    random = decided(replace(FACTS, pretrained=False))
    assert (random.optim.encoder_lr_scale, random.encoder.pretrained) == (1.0, False)


@pytest.mark.parametrize(
    ("size", "resize"),
    [
        ((256, 256), "crop"),
        ((512, 512), "crop"),
        ((1280, 256), "crop"),
        ((1281, 256), "pad"),
        ((255, 255), "pad"),
        ((100, 300), "crop"),
    ],
)
def test_images_of_one_to_five_canvases_a_side_are_cropped(size, resize):
    assert decided(replace(FACTS, sizes=[size])).data.resize == resize


@pytest.mark.parametrize("given", [{"foreground": 0.5}, {"tile": [64, 64]}, {"zoom": 0.5}])
def test_what_is_of_crops_crops(given):
    assert decided(replace(FACTS, sizes=[(3000, 3000)]), data=DataConfig(**given)).data.resize == "crop"


@pytest.mark.parametrize(("images", "folds", "repeats"), [(30, None, 6), (180, None, 1), (181, None, 1), (30, 5, 6)])
def test_few_images_are_shown_until_an_epoch_has_180(images, folds, repeats):
    facts = replace(FACTS, sizes=[(256, 256)] * images)
    assert decided(facts, data=DataConfig(folds=folds)).data.repeats == repeats


def test_all_folds_show_few_images_as_often():
    parts = [replace(FACTS, sizes=[(64, 64)] * train, validation=val) for train, val in ((9, 3), (10, 2))]
    assert {decided(part, data=DataConfig(folds=5)).data.repeats for part in parts} == {20}
    assert [decided(part).data.repeats for part in parts] == [20, 18]


def test_pixels_are_shown_as_the_encoder_knows_them_where_it_knows_any():
    assert decided().data.normalize == "encoder"
    assert decided(replace(FACTS, pretrained=False)).data.normalize == "dataset"
    assert decided(replace(FACTS, photographs=False)).data.normalize == "dataset"
    assert decided(data=DataConfig(window=[0.0, 9.0])).data.normalize == "window"


def test_weights_of_classes_become_numbers():
    assert decided(loss=LossConfig(ce=1, pos_weight="auto")).loss.pos_weight == 9
    assert decided(loss=LossConfig(ce=1, class_weights="auto")).loss.class_weights == [500 / 900, 5.0]
    with pytest.raises(ConfigError, match="one for each of the 2 classes"):
        decided(loss=LossConfig(ce=1, class_weights=[1, 2, 3]))


def test_a_training_without_an_end_has_ten_epochs():
    assert decided().train.epochs == 10
    assert decided(train=TrainConfig(time_budget=60)).train.epochs is None


def test_settings_do_not_know_where_things_lie():
    here = RunConfig(data=DataConfig(root="/here"), train=TrainConfig(device="cpu", workers=3, precision="bf16"))
    assert Settings.of(here) == Settings.of(RunConfig())
    assert "root" not in Settings.of(here).recorded()["data"]
