"""What is decided from a fingerprint, and what is said of it."""

from dataclasses import replace

import pytest
from fingerprints import CELL, fingerprint

from segsweep.config.schema import AugmentationConfig, DataConfig, LossConfig, RunConfig, TrainConfig
from segsweep.config.settings import Settings
from segsweep.data.fingerprint import Range
from segsweep.training.plan import RULES, TrainingPlan, length, plan_data, tiles, weigh

AUTO = AugmentationConfig(scale="auto", translate="auto")


def planned(found, train=None, **data):
    given = RunConfig(data=DataConfig(**data), train=train or TrainConfig(), augmentation=AUTO)
    return plan_data(Settings.of(given), found)


def decided(found, **data):
    return planned(found, **data).settings


def why(found, key, **data):
    return next(decision.why for decision in planned(found, **data).decisions if decision.key == key)


def test_what_is_thick_is_shrunk_until_an_image_fits_and_what_is_thin_is_not():
    thick, thin = replace(CELL, thickness=400), replace(CELL, thickness=5)
    assert decided(fingerprint((1024, 1024), thick)).data.zoom == 0.25
    assert decided(fingerprint((1024, 1024), thin)).data.zoom == 1
    assert "cell is typically 5 px thick, and shrinking has to leave 16 px" in why(
        fingerprint((1024, 1024), thin), "data.zoom"
    )


def test_the_thinnest_class_decides():
    both = (replace(CELL, thickness=400), replace(CELL, name="crack", thickness=4))
    found = fingerprint((1024, 1024), classes=both)
    assert decided(found).data.zoom == 1
    assert "crack is typically 4 px thick" in why(found, "data.zoom")


def test_each_image_gets_a_scale_of_its_own_where_objects_grow_with_their_images():
    sizes = {"height": Range(300, 600, 1200), "width": Range(400, 800, 1600)}
    grows = fingerprint(parts=replace(CELL, thickness=200), spread=1.0, spread_fitted=0.2, **sizes)
    stays = replace(grows, spread=0.2, spread_fitted=1.0)
    assert decided(grows).data.resize == "pad"
    assert decided(stays).data.resize == "crop"
    assert why(grows, "data.resize").startswith("resizing images to one size makes objects more alike")
    assert why(stays, "data.resize").startswith("resizing images to one size would make objects less alike")
    assert "little more alike" in why(replace(stays, spread=1.0, spread_fitted=0.98), "data.resize")
    assert decided(grows, zoom=0.5).data.resize == "crop"
    thin = replace(grows, classes=(replace(CELL, thickness=5),))
    assert decided(thin).data.resize == "crop"  # to shrink would lose it


@pytest.mark.parametrize(
    ("size", "canvas"), [((1000, 1000), [256, 256]), ((128, 128), [128, 128]), ((100, 300), [128, 256])]
)
def test_the_canvas_is_no_larger_than_the_images(size, canvas):
    assert decided(fingerprint(size, replace(CELL, thickness=5))).data.size == canvas


def test_a_whole_image_is_one_whose_sides_both_fit():
    thick = replace(CELL, thickness=400)
    assert decided(fingerprint((1024, 1024), thick), size=[256, 512]).data.zoom == 0.25
    assert decided(fingerprint((500, 1000), thick), size=[512, 256]).data.zoom == 0.25
    assert decided(fingerprint((8000, 8000), replace(CELL, thickness=4000))).data.zoom == 0.05  # the least


def test_long_images_are_not_shrunk_to_a_thread():
    strips = fingerprint((300, 6000), replace(CELL, thickness=300))
    assert decided(strips).data.zoom == 0.42  # 128 of 300 pixels
    assert "at this zoom a canvas shows 10% of an image" in why(strips, "data.zoom")
    assert "the shorter side has 120 px" in why(fingerprint((120, 6000), replace(CELL, thickness=100)), "data.zoom")


def test_what_is_fitted_is_as_thin_as_its_canvas_makes_it():
    sizes = {"height": Range(200, 400, 800), "width": Range(800, 1600, 3200)}
    grows = fingerprint(parts=replace(CELL, thickness=60), spread=1.0, spread_fitted=0.2, **sizes)
    assert decided(grows).data.resize == "pad"  # 256/800 of 60 px are 19


def test_background_is_no_object():
    sky = replace(CELL, name="sky", thickness=3, seen=(0.1,) * 8)
    thick = replace(CELL, thickness=400)
    found = fingerprint((1024, 1024), classes=(sky, thick, thick))
    assert (decided(found).data.zoom, decided(found).data.foreground) == (0.25, 0)


def test_long_images_of_one_size_are_alike():
    assert why(fingerprint((1080, 1920)), "data.resize").startswith("all images have 1920 x 1080 px")


def test_what_is_not_known_of_one_image_is_not_said():
    found = fingerprint(spread=None, spread_fitted=None, height=Range(300, 600, 1200), width=Range(400, 800, 1600))
    assert why(found, "data.resize").startswith("it is not known")
    assert why(found, "augmentation.scale").startswith("it is not known")


def test_what_depends_on_a_varied_key_is_left_to_each_trial():
    given = Settings.of(RunConfig(augmentation=AUTO))

    def keys(*varied):
        return {decision.key for decision in plan_data(given, fingerprint(), varied).decisions}

    assert keys() == set(RULES)
    assert keys("data.zoom") == keys("data") == keys("data.resize") == set()
    assert keys("data.size") == {"data.resize", "augmentation.scale", "augmentation.translate"}
    assert keys("augmentation", "optim.lr") == set(RULES) - {"augmentation.scale", "augmentation.translate"}
    assert keys("train.tta") == set(RULES) - {"data.passes", "train.batch_size"}


@pytest.mark.parametrize(("key", "ends"), [("size", [[128, 128], [512, 512]]), ("zoom", [1.0, 0.5])])
def test_trials_of_a_varied_key_are_planned_as_alone(key, ends):
    grows = {"height": Range(300, 1024, 2000), "width": Range(300, 1024, 2000), "spread": 1.0, "spread_fitted": 0.2}
    found = fingerprint(parts=replace(CELL, thickness=400), **grows)
    for value in ends:
        base = Settings.of(RunConfig(data=DataConfig(**{key: ends[0]}), augmentation=AUTO))
        fixed = plan_data(base, found, [f"data.{key}"])
        words = {str(d).partition("=")[0].partition(".")[2]: d.value for d in fixed.decisions if d.key[:5] == "data."}
        assert decided(found, **{**words, key: value}).data == decided(found, **{key: value}).data


def test_a_canvas_that_images_are_fitted_to_has_their_aspect():
    assert decided(fingerprint((600, 1200)), resize="pad").data.size == [192, 384]


@pytest.mark.parametrize(("images", "passes"), [(30, 6), (180, 1), (181, 1), (5, 36)])
def test_few_images_are_shown_until_an_epoch_has_180(images, passes):
    assert decided(fingerprint((256, 256), training=images, validation=2)).data.passes == passes


def test_large_validation_images_make_longer_epochs():
    thin = replace(CELL, thickness=5)
    found = fingerprint((2048, 2048), thin, training=200, validation=6)
    passes = decided(found).data.passes
    training, scoring = passes * 200 * 256 * 256, 6 * (3 * 1024) ** 2 / 3  # three overlapping tiles in a row
    assert 0.15 < scoring / (scoring + training) <= 0.2
    assert why(found, "data.passes").endswith("so that validation takes 19% of the time (at most 20%)")
    mirrored = planned(found, train=TrainConfig(tta="flips"))
    assert mirrored.settings.data.passes == 9  # no more than 1800 images
    assert mirrored.decisions[3].why == (
        "9 x 200 = 1800 images in an epoch; validation takes 39% of the time, since images are not repeated beyond "
        "1800 in an epoch"
    )


@pytest.mark.parametrize("training", [30, 179, 250, 1250, 4000])
@pytest.mark.parametrize("validation", [2, 60, 400, 1500])
def test_the_reason_for_the_passes_says_a_share_that_it_keeps_or_why_it_does_not(training, validation):
    """Images of 512 x 512 at zoom 1, each of which is scored whole and trained on as a quarter."""
    found = fingerprint((512, 512), replace(CELL, thickness=5), training=training, validation=validation)
    passes, said = decided(found).data.passes, why(found, "data.passes")
    scoring = 4 * validation / 3
    share = scoring / (scoring + passes * training)
    assert f"{passes * training} images in an epoch" in said
    assert (f"takes {share:.0%} of the time" in said) is not said.endswith("(at least 180)")
    beyond = said.endswith("since images are not repeated beyond 1800 in an epoch")
    assert beyond is (share > 0.2)
    assert not beyond or "at most" not in said
    assert share <= 0.2 or (passes + 1) * training > 1800


def test_classes_that_random_crops_seldom_show_are_shown_more():
    rare = replace(CELL, name="crack", thickness=5, seen=(0.01, 0.05, 0.1, 0.3, 0.6, 0.9, 0.95, 1.0))
    found = fingerprint((4096, 4096), classes=(CELL, rare))
    assert decided(found).data.foreground == 0.33
    shown = "10% of random crops of an image with crack show it (50% would be enough)"
    assert why(found, "data.foreground").endswith(shown)
    assert decided(found, zoom=0.25).data.foreground == 0  # a crop covers 1024 pixels a side
    assert decided(fingerprint(parts=replace(rare, parts=0, images=0))).data.foreground == 0


def test_a_batch_is_no_larger_than_an_epoch():
    assert decided(fingerprint()).train.batch_size == 16
    assert decided(fingerprint(training=9), passes=1).train.batch_size == 8


def test_zooms_are_as_large_as_objects_differ_in_scale():
    alike, unlike = (decided(fingerprint(spread=spread)).augmentation for spread in (0.1, 1.0))
    assert (alike.scale, alike.translate) == (0.25, 0.05)
    assert (unlike.scale, unlike.translate) == (0.5, 0.1)
    fitted = fingerprint(spread=1.0, spread_fitted=0.1)
    assert decided(fitted, resize="pad").augmentation.scale == 0.25  # as the network sees them
    typed = Settings.of(RunConfig(augmentation=replace(AUTO, scale=0.1)))
    assert plan_data(typed, fingerprint(spread=1.0)).settings.augmentation.translate == 0.05


@pytest.mark.parametrize(
    ("side", "input_size", "limit", "said"),
    [
        (512, None, [1024, 1024], "scored whole"),
        (3000, None, [1024, 1024], "up to 3000 px high and 3000 px wide"),
        (512, (224, 224), [256, 256], "up to 512 px high and 512 px wide"),
    ],
)
def test_images_beyond_a_limit_are_scored_in_tiles(side, input_size, limit, said):
    found = fingerprint((side, side), replace(CELL, thickness=5))
    plan = tiles(planned(found), input_size, found)
    assert plan.settings.data.tile == limit
    assert said in plan.decisions[-1].why


def test_what_was_typed_is_kept_and_what_follows_goes_by_it():
    found = fingerprint((1024, 1024), replace(CELL, thickness=400))
    plan = planned(found, zoom=1.0, passes=3, train=TrainConfig(batch_size=4))
    assert {"data.zoom", "data.passes", "train.batch_size"}.isdisjoint(d.key for d in plan.decisions)
    assert (plan.settings.data.zoom, plan.settings.data.size) == (1.0, [256, 256])


def test_every_decision_is_a_line_with_what_to_type_and_its_reason():
    plan = planned(fingerprint())
    lines = plan.table().splitlines()
    assert len(lines) == len(plan.decisions)
    for line, decision in zip(lines, plan.decisions, strict=True):
        assert line.endswith(decision.why)
        assert f" {decision.key}=" in line
    assert "data.size=[256,256]" in plan.table()
    assert planned(fingerprint(), resize="squash", size=64).table().startswith("plan")


def test_class_weights_fade_where_three_classes_or_more_have_a_cross_entropy():
    def weighed(classes, **loss):
        settings = replace(Settings.of(RunConfig()), loss=LossConfig(**loss))
        return weigh(TrainingPlan(settings), classes, [900, 90, 10][: len(classes)])

    (decision,) = weighed("abc", ce=1.0).decisions
    assert str(decision) == "loss.class_weights=fading"
    assert decision.why.startswith("c has 1 % of the pixels: rare classes weigh more at first")
    for left in (weighed("ab", ce=1.0), weighed("abc", dice=1.0)):
        assert (left.decisions, left.settings.loss.class_weights) == ((), None)
    assert weighed("abc", ce=1.0, class_weights="auto").settings.loss.class_weights == "auto"


@pytest.mark.parametrize(("images_per_s", "epochs"), [(100.0, None), (20.0, 7), (1.0, 3)])
def test_a_first_training_is_over_soon(images_per_s, epochs):
    found = fingerprint((256, 256), training=1000, validation=100)
    plan = planned(found)
    longer = length(plan, found, images_per_s)
    assert longer.settings.train.epochs == epochs
    said = longer.decisions[len(plan.decisions) :]
    assert [str(decision) for decision in said] == ([f"train.epochs={epochs}"] if epochs else [])
    if epochs == 7:
        assert said[0].why.startswith("10 would take 10 minutes here")  # 10 x (1000 + 100/3) / 20 x 1.2 s
