"""The schema: every default passes, every bad value is refused by its key's name."""

import json
import math
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest

from segsweep.config import schema as config
from segsweep.errors import ConfigError

GROUPS = {
    "encoder": config.EncoderConfig,
    "decoder": config.DecoderConfig,
    "optim": config.OptimConfig,
    "augmentation": config.AugmentationConfig,
    "data": config.DataConfig,
    "loss": config.LossConfig,
    "tracking": config.TrackingConfig,
    "train": config.TrainConfig,
}

BAD = [
    ("encoder.pretrained", "yes"),
    ("encoder.pretrained", None),
    ("decoder.width", "wide"),
    ("decoder.width", []),
    ("decoder.width", [16, 0]),
    ("decoder.width", [16, 8.5]),
    ("decoder.width", [True]),
    ("decoder.norm", "instance"),
    ("decoder.dropout", -0.1),
    ("decoder.dropout", 1.0),
    ("decoder.dropout", math.nan),
    ("optim.name", "lion"),
    ("optim.schedule", "step"),
    ("optim.lr", 0.0),
    ("optim.lr", -1e-3),
    ("optim.lr", math.nan),
    ("optim.lr", math.inf),
    ("optim.encoder_lr_scale", -1.0),
    ("optim.encoder_lr_scale", math.inf),
    ("optim.weight_decay", -1.0),
    ("optim.momentum", 1.0),
    ("optim.momentum", -0.1),
    ("optim.warmup", 1.0),
    ("optim.warmup", -0.1),
    *[
        (f"augmentation.{name}", bad)
        for name in ("hflip", "vflip", "transpose", "translate", "brightness", "contrast", "saturation")
        for bad in (-0.1, 1.1, math.nan)
    ],
    *[(f"augmentation.{name}", bad) for name in ("scale", "blur", "noise") for bad in (-0.1, math.inf, math.nan)],
    ("augmentation.rotate", 181.0),
    ("augmentation.shear", 61.0),
    ("augmentation.hue", 0.6),
    ("data.size", [256]),
    ("data.size", [256, 31]),
    ("data.size", [256, 256, 3]),
    ("data.size", [256.0, 256]),
    ("data.resize", "stretch"),
    ("data.normalize", "imagenet"),
    ("data.split", [1.0]),
    ("data.split", [0.8, 0.3]),
    ("data.split", [1.0, 0.0]),
    ("data.split", [0.4, 0.3, 0.2, 0.1]),
    ("data.split", [1.2, -0.2]),
    ("data.ignore_index", 1.5),
    ("data.ignore_index", True),
    ("data.ignore_index", "white"),
    ("data.ignore_index", [0, 0]),
    ("data.ignore_index", [0, 0, 256]),
    ("data.ignore_index", [0, 0, -1]),
    ("data.ignore_index", [0, 0, 1.0]),
    ("data.classes", "cell"),
    ("data.classes", []),
    ("data.classes", {}),
    ("data.classes", {"cell": "red"}),
    ("data.classes", {"cell": []}),
    ("data.classes", {"cell": None}),
    ("data.classes", {"cell": [1, "red"]}),
    ("data.classes", {"cell": [[0, 0, 256]]}),
    ("data.classes", {"cell": [[0, 0]]}),
    ("data.classes", [1, 2]),
    ("data.classes", {0: 0, 1: 1}),
    ("data.fold", 1),
    ("data.folds", 1),
    ("data.classes", ["a", "a"]),
    ("data.count", 9),
    ("data.tile", [16, 64]),
    ("data.tile", [64]),
    ("data.tile", 31),
    ("data.size", 31),
    ("data.size", 128.0),
    ("data.size", True),
    ("data.size", "128"),
    ("data.size", [[64, 64]]),
    ("data.size", None),
    ("data.balance", 1.1),
    ("encoder.drop_path", 1.0),
    ("optim.layer_decay", 0.0),
    ("optim.layer_decay", 1.1),
    ("optim.freeze_epochs", -1),
    ("loss.label_smoothing", 1.0),
    ("train.ema", 1.0),
    ("train.bn_momentum", 0.0),
    ("train.bn_momentum", "low"),
    ("train.tta", "all"),
    ("data.foreground", -0.1),
    ("data.foreground", 1.1),
    ("data.foreground", math.nan),
    ("data.zoom", 0),
    ("data.zoom", 9),
    ("data.zoom", math.nan),
    ("data.zoom", True),
    ("data.zoom", "half"),
    ("data.passes", 0),
    ("data.passes", "often"),
    ("data.overfit", 0),
    ("data.overfit", -1),
    ("data.window", [5.0, 5.0]),
    ("data.window", [5.0, 1.0]),
    ("data.window", [5.0]),
    ("data.window", [1.0, 2.0, 3.0]),
    ("data.window", []),
    ("data.window", [0.0, math.nan]),
    ("data.window", [0.0, math.inf]),
    ("data.window", [-math.inf, 0.0]),
    *[(f"loss.{name}", bad) for name in (*config.LOSSES, "gamma") for bad in (-0.5, math.nan, math.inf)],
    *[("loss.class_weights", bad) for bad in ("median", [1, 0], [1, -1.0], [1, "2"], [True, 1], [math.inf], 3)],
    *[("loss.pos_weight", bad) for bad in ("median", 0, -1.0, math.inf, math.nan, True, [1, 2])],
    ("tracking.name", "wandb"),
    ("train.epochs", 0),
    ("train.batch_size", 0),
    ("train.batch_size", -4),
    ("train.batch_size", "large"),
    ("train.compile", "maybe"),
    ("data.cache", "disk"),
    ("data.class_from", "file"),
    ("train.grad_accum", 0),
    ("train.grad_accum", "some"),
    ("train.workers", 0),
    ("train.patience", 0),
    ("train.time_budget", 0.0),
    ("train.time_budget", math.nan),
    ("train.grad_clip", -1.0),
    ("train.grad_clip", math.nan),
    ("train.precision", "fp8"),
    ("train.device", "gpu"),
    ("train.device", "cuda:"),
    ("train.device", "cuda:x"),
]

GOOD = [
    ("data.size", [128, 128]),
    ("encoder.pretrained", True),
    ("encoder.pretrained", False),
    ("decoder.width", [256, 128, 64, 32, 16]),
    ("optim.encoder_lr_scale", 0.0),
    ("optim.momentum", 0.0),
    ("data.size", [32, 4096]),
    ("data.split", [0.7, 0.2, 0.1]),
    ("data.ignore_index", 0),
    ("data.ignore_index", -1),
    ("data.ignore_index", 65535),
    ("data.ignore_index", [0, 0, 0]),
    ("data.classes", ["background", "cell"]),
    ("data.classes", {"cell": 300}),
    ("data.classes", {"cell": 1, "wall": [1, 2]}),  # refused by segsweep.data.labels
    ("data.classes", {"car": 8, "tree": [0, 128, 0], "road": [[1, 2, 3], [4, 5, 6]]}),
    ("data.window", [-1000.0, 400.0]),
    ("data.overfit", 1),
    ("data.passes", 3),
    ("data.binarize", True),
    ("data.class_from", "folder"),
    ("loss.ce", 0.0),
    ("loss.lovasz", 3.5),
    ("loss.gamma", 0.0),
    ("loss.class_weights", "auto"),
    ("loss.class_weights", "fading"),
    ("loss.class_weights", [1, 0.5, 20]),
    ("loss.pos_weight", "auto"),
    ("loss.pos_weight", 0.1),
    ("train.grad_accum", 16),
    ("train.grad_clip", 0.0),
    ("train.device", "cuda:3"),
    ("train.device", "mps"),
]


def build(name: str, value: object) -> object:
    group, _, leaf = name.partition(".")
    return GROUPS[group](**{leaf: value})


def flat(instance: object, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for item in fields(instance):
        value = getattr(instance, item.name)
        found |= flat(value, f"{prefix}{item.name}.") if is_dataclass(value) else {f"{prefix}{item.name}": value}
    return found


def nested(**leaves: object) -> dict[str, object]:
    """The composed default configuration as plain containers, with leaves by dotted name in it."""
    tree: dict[str, object] = {}
    for name, value in {**flat(config.RunConfig()), **leaves}.items():
        *groups, leaf = name.split(".")
        at = tree
        for group in groups:
            at = at.setdefault(group, {})
        at[leaf] = value
    return tree


def test_every_default_passes_its_own_check():
    run = config.RunConfig()
    assert {name: type(getattr(run, name)) for name in GROUPS} == GROUPS


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_refused_by_its_name(name, value):
    with pytest.raises(ConfigError) as error:
        build(name, value)
    assert str(error.value).startswith(f"{name}={value}: must be ")


@pytest.mark.parametrize(("name", "value"), GOOD)
def test_a_good_value_is_kept(name, value):
    assert getattr(build(name, value), name.partition(".")[2]) == value


@pytest.mark.parametrize(
    ("name", "value", "near"), (("decoder.norm", "bach", "batch"), ("optim.name", "AdamW", "adamw"))
)
def test_a_misspelt_choice_is_refused_with_the_closest(name, value, near):
    with pytest.raises(ConfigError, match=rf"Try {name}={near}\."):
        build(name, value)


@pytest.mark.parametrize("value", (0, 1))
def test_pretrained_as_a_number_is_refused_or_the_same_as_a_bool(value):
    """`weights.find` asks `is False` and `is True`: a 0 that came through would mean auto."""
    try:
        assert config.EncoderConfig(pretrained=value).pretrained is bool(value)
    except ConfigError as error:
        assert "encoder.pretrained" in str(error)


def test_a_weights_file_without_pretraining_is_a_contradiction():
    with pytest.raises(ConfigError, match=r"encoder\.weights_file.*encoder\.pretrained=false"):
        config.EncoderConfig(pretrained=False, weights_file="a.pth")


@pytest.mark.parametrize(
    "beside", ({"classes": ["a", "b"]}, {"binarize": True}, {"name": "voc2012"}, {"name": "coco"}), ids=str
)
def test_classes_from_folders_leave_nothing_else_to_say(beside):
    with pytest.raises(ConfigError, match=r"data\.class_from=folder"):
        config.DataConfig(class_from="folder", **beside)


def test_annotations_are_of_coco():
    assert config.DataConfig(name="coco", annotations="a.json").annotations == "a.json"
    with pytest.raises(ConfigError, match="Add data=coco"):
        config.DataConfig(annotations="a.json")


@pytest.mark.parametrize("normalize", ("auto", "window"))
def test_a_window_goes_with_normalizing_to_it(normalize):
    assert config.DataConfig(normalize=normalize, window=[0.0, 4095.0]).window == [0, 4095]


@pytest.mark.parametrize("normalize", ("encoder", "dataset", "percentile"))
def test_a_window_beside_another_normalization_is_a_contradiction(normalize):
    with pytest.raises(ConfigError, match=rf"data\.window is given but data\.normalize={normalize}"):
        config.DataConfig(normalize=normalize, window=[0.0, 4095.0])


def test_normalizing_to_a_window_needs_one():
    with pytest.raises(ConfigError, match=r"data\.normalize=window needs its bounds: 'data\.window="):
        config.DataConfig(normalize="window")


def test_a_window_typed_as_the_normalization_is_put_right():
    with pytest.raises(ConfigError, match=r"type data\.normalize=window 'data\.window=\[0,4095\]'"):
        config.DataConfig(normalize="window[0,4095]")


@pytest.mark.parametrize("resize", ("pad", "squash"))
def test_foreground_without_crops_is_refused(resize):
    with pytest.raises(ConfigError, match=r"data\.foreground=0\.5 .*data\.resize=crop"):
        config.DataConfig(foreground=0.5, resize=resize)
    assert config.DataConfig(foreground=0.5, resize="crop").foreground == 0.5


@pytest.mark.parametrize("resize", ["pad", "squash"])
@pytest.mark.parametrize(("name", "value"), [("zoom", 0.5), ("tile", [64, 64])])
def test_what_is_of_crops_is_refused_without_them(resize, name, value):
    with pytest.raises(ConfigError, match=rf"data\.{name}=.*data\.resize=crop"):
        config.DataConfig(**{name: value}, resize=resize)
    assert getattr(config.DataConfig(**{name: value}, resize="crop"), name) == value


@pytest.mark.parametrize("classes", (["background", "cell"], {"cell": 1}))
def test_binarizing_named_classes_is_a_contradiction(classes):
    with pytest.raises(ConfigError, match=r"data\.binarize=true .*drop data\.classes"):
        config.DataConfig(binarize=True, classes=classes)


@pytest.mark.parametrize("class_weights", ("auto", [1, 2]))
@pytest.mark.parametrize("pos_weight", ("auto", 2.0))
def test_both_kinds_of_class_weights_are_a_contradiction(class_weights, pos_weight):
    with pytest.raises(ConfigError, match=r"loss\.class_weights and loss\.pos_weight .*drop one"):
        config.LossConfig(class_weights=class_weights, pos_weight=pos_weight)


@pytest.mark.parametrize("value", (-1.0, math.nan))
def test_a_tracking_timeout_is_a_span_of_time(value):
    with pytest.raises(ConfigError, match=r"tracking\.timeout"):
        config.TrackingConfig(timeout=value)


@pytest.mark.parametrize("name", ("batch_size", "grad_accum"))
def test_a_null_that_has_no_meaning_is_refused(name):
    with pytest.raises(ConfigError, match=rf"train\.{name}"):
        config.TrainConfig(**{name: None})


def test_micro_batches_divide_their_batch():
    with pytest.raises(ConfigError, match=r"train\.grad_accum=3: must be a divisor of train\.batch_size=16"):
        config.TrainConfig(batch_size=16, grad_accum=3)


def test_defaults_are_not_shared():
    one, other = config.DataConfig(), config.DataConfig()
    one.split.append(3)
    assert other.split == [0.8, 0.2]


def test_keys_are_all_leaves_with_their_default_and_a_line_of_help():
    listed = list(config.keys())
    assert {key.name: key.default for key in listed} == flat(config.RunConfig())
    assert len({key.name for key in listed}) == len(listed)
    for key in listed:
        assert key.help.strip(), key.name
        assert "\n" not in key.help
        assert not key.help.endswith("."), key.name


def test_the_default_configuration_has_no_unknown_keys():
    assert list(config.unknown_keys(nested())) == []


def test_nothing_is_unknown_in_a_part_of_the_configuration():
    assert list(config.unknown_keys({"train": {"epochs": 3}, "resume": None})) == []


def test_an_unknown_key_is_found_with_its_value():
    assert list(config.unknown_keys(nested(**{"train.epoch": 3}))) == [("train.epoch", 3)]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("train.epoch", "train.epochs"),
        ("epochs", "train.epochs"),
        ("optim.epochs", "train.epochs"),
        ("resum", "resume"),
        ("optim.learning_rate", "optim.lr"),
        ("optimizer.lr", "optim.lr"),
        ("data.path", "data.root"),
        ("train.imgsz", "data.size"),
        ("Trainer.MAX_EPOCHS", "train.epochs"),
        ("model.backbone", "encoder"),
        ("seed", "train.seed"),
        ("name", "hydra.run.dir"),
    ],
)
def test_an_unknown_key_is_refused_with_the_key_that_was_meant(name, near):
    assert config.unknown(name).startswith(f"{name}: no such key. Closest: {near}. ")
    assert config.unknown(name, f"{near}=3").startswith(f"{name}: no such key. Try {near}=3. ")


def test_what_means_nothing_is_refused_without_a_guess():
    assert config.unknown("qqqqqq.zzzzzz").startswith("qqqqqq.zzzzzz: no such key. List all with")


def test_the_schema_imports_the_standard_library_only():
    script = "import sys; before = set(sys.modules); import segsweep.config.schema; print(*(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in run.stdout.split()}
    assert roots <= {*sys.stdlib_module_names, "segsweep"}


@pytest.mark.parametrize("setting", ({"class_weights": "auto"}, {"pos_weight": 2.0}, {"label_smoothing": 0.1}))
def test_what_no_term_of_the_loss_uses_is_refused(setting):
    (name,) = setting
    with pytest.raises(ConfigError, match=rf"loss\.{name}=.*the loss is dice and lovasz\. Add loss\.ce=1"):
        config.LossConfig(dice=0.5, lovasz=0.5, **setting)
    config.LossConfig(dice=0.5, ce=0.5, **setting)


@pytest.mark.parametrize(
    ("data", "tracking", "experiment"),
    [
        ({}, {}, "shapes"),
        ({"name": "folder", "root": "a/nuclei/"}, {}, "a-nuclei"),
        ({"name": "camvid", "root": "a/camvid", "classes": ["car"]}, {}, "a-camvid-car"),
        ({"name": "folder", "root": "a/my scans", "classes": ["a/b", "c"]}, {}, "a-my_scans-a_b-c"),
        ({"name": "folder", "root": "/a", "classes": list("abcd")}, {}, "a-4classes"),
        ({"name": "folder", "root": "a"}, {"experiment": "mine"}, "mine"),
    ],
)
def test_the_experiment_is_the_data_set_and_what_is_asked_of_it(data, tracking, experiment):
    found = config.RunConfig(
        data=config.DataConfig(**{"name": "shapes"} | data), tracking=config.TrackingConfig(**tracking)
    )
    assert found.experiment == experiment


def test_what_has_a_name_here_is_there():
    """The schema imports neither: their names stand in both places."""
    from segsweep.engine import losses
    from segsweep.training import optim

    assert set(config.LOSSES) == set(losses.TERMS)
    assert all(0 <= optim.schedule(name)(0.5) <= 1 for name in config.SCHEDULES)
    with pytest.raises(KeyError):
        optim.schedule("linear")


def test_paths_are_what_the_user_has_where_they_like():
    assert {key.name for key in list(config.keys()) if key.role.is_path} == {
        *("data.root", "data.images", "data.masks", "data.annotations", "data.table", "encoder.weights_file")
    }


def test_one_number_is_both_sides():
    found = config.DataConfig(size=128, tile=512)
    assert (found.size, found.tile) == ([128, 128], [512, 512])
    assert found == config.DataConfig(size=[128, 128], tile=[512, 512])


@pytest.mark.parametrize("classes", (["Gebäude", "a,b"], {"Gebäude": 8, "b c": [0, 128, 0]}))
def test_classes_may_be_a_text_of_json(classes):
    assert config.DataConfig(classes=json.dumps(classes, ensure_ascii=False)).classes == classes
