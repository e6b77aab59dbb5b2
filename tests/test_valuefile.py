"""`data=FILE.yaml`: what a data set's own file says, and what it may not hold."""

import json
import os
import shlex

import pytest
from hydra import compose, initialize_config_dir

from segsweep.commands.train import main
from segsweep.compose import CONF, changed, configuration, expanded, passed_over, register_schema, with_data
from segsweep.config.schema import DataConfig, OptimConfig, RunConfig
from segsweep.errors import ConfigError
from segsweep.valuefile import KEYS, LIMIT, SECTIONS, own_options

ALL = """\
# A comment.
root: ..
images: "it's, ${here}"
masks: /masks
table: ~
classes:
  Gebäude: 8
  "yes, no": [0, 128, 0]
  no: [[1, 2, 3], 4]
split: [0.7, .2, 1e-1]
size: 128
ignore_index: [255, 0, 0]
mask_suffix: 'null'
group: '^(\\d+)_'
binarize: false
folds: 5
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a working folder and one of files beside each other; returns the writer of a file."""
    (tmp_path / "work").mkdir()
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def write(text, name="my.yaml"):
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "files" / name).write_bytes(content)
        return f"data=../files/{name}"

    return write


def refused(*words):
    with pytest.raises(ConfigError) as error:
        configuration(words)
    (line,) = str(error.value).splitlines()
    return line


def test_a_file_is_what_one_would_type(here, tmp_path):
    assert configuration([here(ALL)]).data == DataConfig(
        root=str(tmp_path),
        images=str(tmp_path / "files" / "it's, ${here}"),
        masks="/masks",
        classes={"Gebäude": 8, "yes, no": [0, 128, 0], "no": [[1, 2, 3], 4]},
        split=[0.7, 0.2, 0.1],
        size=[128, 128],
        ignore_index=[255, 0, 0],
        mask_suffix="null",
        group=r"^(\d+)_",
        folds=5,
    )


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes files below conf/ of a working folder."""
    monkeypatch.chdir(tmp_path)

    def write(group, text, name="mine"):
        path = tmp_path / "conf" / group / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return write


def test_the_working_folder_adds_options(own, tmp_path):
    own("encoder", "name: resnet34\ndrop_path: 0.1\nweights_file: w.safetensors\n")
    own("optim", "name: sgd\nlr: 0.1\n")
    own("loss", "focal: 1.0\n")
    own("data", "root: ../../cells\nclasses: {Gebäude: 8, x: 9}\n", "cells")
    own("recipe", "train:\n  epochs: 7\n  ema: 0.9\ndata: {passes: 2}\n", "long")
    words = ["encoder=mine", "optim=mine", "loss=mine", "data=cells", "recipe=long", "train.ema=0.5"]
    found = configuration(words)
    assert (found.encoder.name, found.encoder.drop_path) == ("resnet34", 0.1)
    assert found.encoder.weights_file == str(tmp_path / "conf" / "encoder" / "w.safetensors")
    assert (found.optim.name, found.optim.lr, found.optim.momentum) == ("sgd", 0.1, OptimConfig().momentum)
    assert (found.loss.focal, found.loss.ce, found.loss.dice) == (1, 0, 0)  # and nothing of the default loss
    assert (found.data.root, found.data.classes) == (str(tmp_path / "cells"), {"Gebäude": 8, "x": 9})
    assert (found.train.epochs, found.train.ema, found.data.passes) == (7, 0.5, 2)
    assert own_options("encoder") == ["mine"]


def test_a_question_of_ones_own_is_a_search(own):
    own("sweeps", "sweeper:\n  n_trials: 24\n  params: {encoder: 'choice(a,b)', optim.lr: auto}\ntrain: {ema: 0.9}\n")
    assert expanded(["sweeps=mine"]) == [
        "hydra.mode=MULTIRUN",
        "hydra/sweeper=optuna",
        "hydra.sweep.dir=${outputs:}/sweeps/mine-${hydra.runtime.choices.data}",
        "+hydra.sweeper.params={encoder:'choice(a,b)',optim.lr:auto}",
        "hydra.sweeper.n_trials=24",
        "train.ema=0.9",
    ]


def test_a_question_may_name_weights_by_patterns(own):
    own("sweeps", "sweeper:\n  params: {encoder: 'weights(vit_small*, resnet1?.a1*)', optim.lr: auto}\n")
    params = "+hydra.sweeper.params={encoder:'weights(vit_small*, resnet1?.a1*)',optim.lr:auto}"
    assert params in expanded(["sweeps=mine"])


@pytest.mark.parametrize("name", ["optuna", "grid", "cv"])
def test_any_key_may_be_tried_in_a_question(own, name):
    own("sweeps", f"sweeper: {{name: {name}, params: {{train.ema: 'choice(0,0.5)', loss: 'choice(dice,focal)'}}}}\n")
    register_schema()
    with initialize_config_dir(CONF, version_base="1.3"):
        composed = compose("config", expanded(["sweeps=mine"]), return_hydra_config=True)
    params = composed.hydra.sweeper.params
    assert (params["train.ema"], params["loss"]) == ("choice(0,0.5)", "choice(dice,focal)")
    assert composed.hydra.sweep.dir.endswith("/sweeps/mine-shapes")


@pytest.mark.parametrize(
    ("group", "text", "says"),
    [
        ("encoder", "drop_path: 0.1", "must name the encoder, as name: resnet34"),
        ("encoder", "_target_: os.system", "_target_: no such key of encoder"),
        ("optim", "hydra: {job: {env_set: {A: b}}}", "hydra: no such key of optim"),
        ("optim", "lr: fast", "must be"),
        ("sweeps", "hydra: {sweeper: {n_trials: 3}}", "hydra: no such section"),
        ("sweeps", "sweeper: {_target_: x}", "_target_: no such key of hydra.sweeper"),
        ("sweeps", "sweeper: {params: {optim.lr: '${oc.env:HOME}'}}", "optim.lr: must be a key with the values to try"),
        ("sweeps", "sweeper: {params: {loss: ../../x}}", "loss: must be a key with the values to try"),
        (
            "sweeps",
            "sweeper: {params: {hydra.searchpath: x}}",
            "hydra.searchpath: must be a key with the values to try",
        ),
        ("sweeps", "sweeper: {params: {hydra.sweeper.storage: x}}", "hydra.sweeper.storage: must be a key with"),
        ("sweeps", "sweeper: {params: {tracking.uri: x}}", "tracking.uri: must be a key with the values to try"),
        ("sweeps", "sweeper: {name: ../../x}", "sweeper.name=../../x: must be one of optuna, grid, cv"),
        ("sweeps", "sweeper: {storage: 'postgresql://x/y'}", "storage: this key is about the machine"),
        ("sweeps", "sweeper: {slots: 500}", "slots: this key is about the machine"),
        (
            "sweeps",
            "sweeper: {params: {encoder.weights_file: w}}",
            "encoder.weights_file: must be a key with the values",
        ),
        ("encoder", "name: ../../proc/self/cwd/x", "not a timm model"),
        ("recipe", "tracking: {uri: 'http://x'}", "uri: this key is about the machine"),
        ("recipe", "hydra.sweeper: {n_trials: 3}", "hydra.sweeper: no such section"),
        ("data", "download: true", "download: this key is about the machine"),
        ("recipe", "train: 3", "train: must be a section"),
        ("recipe", "optimizer: {lr: 3}", "optimizer: no such section"),
        ("recipe", "defaults: [best]", f"defaults: no such section. There are: {', '.join(SECTIONS)}."),
        ("sweeps", "defaults: [cv]", f"defaults: no such section. There are: {', '.join(SECTIONS)}, sweeper."),
    ],
)
def test_nothing_but_values_of_our_keys_is_taken(own, group, text, says, monkeypatch):
    monkeypatch.setattr("segsweep.catalog.version", lambda name: "0.0")  # another timm, which may know any name
    own(group, text)
    assert says in refused(f"{group}=mine")


def test_an_option_that_there_is_already_is_passed_over(own, caplog):
    """A folder may have another project's conf/; what a name means does not depend on it."""
    own("optim", "_target_: torch.optim.Adam", "adamw")
    own("encoder", "name: resnet34", "resnet18")
    assert configuration(["optim=adamw"]).optim.name == "adamw"
    assert configuration(["encoder=resnet18"]).encoder.name == "resnet18"
    assert passed_over(["optim=adamw", "encoder=resnet18", "loss=dice"]) == ["optim=adamw", "encoder=resnet18"]
    main(["optim=adamw", "--cfg", "job"])
    assert "optim=adamw: is already an option of segsweep; your file in conf/ is ignored" in caplog.text


def test_an_option_of_ones_own_cannot_be_varied_and_may_be_typed_again(own, capsys):
    own("optim", "lr: 0.1")
    own("encoder", "name: resnet34\n")
    assert main(["-m", "optim=mine,adamw"]) == 2
    assert "optim=mine: an option from your conf/ cannot be varied" in capsys.readouterr().err
    assert main(["-m", "hydra/sweeper=optuna", "encoder=choice(resnet18,mine)"]) == 2
    assert "encoder=mine: an option from your conf/ cannot be varied. Vary its keys" in capsys.readouterr().err
    assert changed(RunConfig(optim=OptimConfig("adam", lr=0.1)), ["optim=mine"]).optim.lr == 0.1


def test_every_key_may_stand_in_it(here):
    given = {name.removeprefix("data."): key.default for name, key in KEYS.items() if name.startswith("data.")}
    assert configuration([here(json.dumps(given))]).data == DataConfig()


def test_a_named_data_set_brings_its_own_values(here):
    found = configuration([here("name: camvid\nroot: here\nclasses: [car, road]\n")]).data
    assert (found.name, found.ignore_index, found.size) == ("camvid", 11, "auto")  # conf/data/camvid.yaml
    assert found.classes == ["car", "road"]


def test_what_is_typed_beside_it_wins_and_classes_are_not_mixed(here):
    word = here(ALL)
    for typed in ([word, "data.size=64"], ["data.size=64", word]):
        assert configuration(typed).data.size == [64, 64]
    assert configuration([word, "data.classes={car:8}"]).data.classes == {"car": 8}
    assert configuration([word, "data.folds=3"]).data.folds == 3


def test_one_class_beside_those_of_a_file_is_refused_and_beside_none_it_is_the_class(here):
    word, typed = here(ALL), "+data.classes.car=8"
    line = refused(word, typed)
    assert line.startswith("data.classes.car: was typed, but ../files/my.yaml has its own classes.")
    advised = shlex.split(line.partition("type all classes: ")[2])[0].replace("VALUE", "8")
    assert configuration([word, advised]).data.classes == {"car": 8}
    assert configuration([word, "data.classes={bus:9}", typed]).data.classes == {"bus": 9, "car": 8}
    assert configuration([here("size: 64\n"), "data.classes={}", typed]).data.classes == {"car": 8}


def test_a_pattern_in_a_file_is_below_the_root_that_is_typed_beside_it(here, tmp_path):
    patterns = "images: '*/Imgs/*.jpg'\nmasks: '*/Imgs/*.png'\n"
    for word in (here(patterns), here(f"root: other\n{patterns}", "b.yaml")):
        found = configuration([word, f"data.root={tmp_path / 'there'}"]).data
        assert (found.root, found.images, found.masks) == (str(tmp_path / "there"), "*/Imgs/*.jpg", "*/Imgs/*.png")
    alone = configuration([here(patterns)]).data
    assert alone.images == str(tmp_path / "files" / "*/Imgs/*.jpg")


def test_an_absolute_path_a_home_and_any_letters_find_it(here, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "files"))
    for name in ("a,b.yaml", "Zürich 細胞.yml", "it's.yaml"):
        here("size: 96\n", name)
        for typed in (f"data={tmp_path / 'files' / name}", f"data=~/{name}"):
            assert configuration([typed]).data.size == [96, 96]


def test_beside_a_record_it_is_another_data_set(here, tmp_path):
    asked = RunConfig(data=DataConfig(root="there", folds=5))
    found = with_data(asked, [here("root: mine\n")])
    assert found.data == DataConfig(root=str(tmp_path / "files" / "mine"))
    moved = changed(RunConfig(data=DataConfig(root="there", size=64)), [here("root: mine\nsize: 64\n")])
    assert moved.data.root == str(tmp_path / "files" / "mine")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rot: x", "rot: no such key of data. Closest: root."),
        ("imgsz: 3", "imgsz: no such key of data. Closest: size."),
        ("epochs: 3", "epochs: no such key of data. There are: name, root"),
        ("_target_: os.system", "_target_: no such key of data."),
        ("defaults: [camvid]", "defaults: no such key of data."),
        ("<<: {root: x}", "<<: no such key of data."),
        ("data: {root: x}", "without data: above them"),
        ("name: fodler", "Try data.name=folder"),
        ("root: [a]", "root: must be a text or null, not \"['a']\". root: folder of"),
        ("root: 2024", "root: must be a text or null"),
        ("split: val", "split: must be a list of numbers, not 'val'."),
        ("seed: 010", "seed: must be a whole number, not '010'."),
        ("binarize: yes", "binarize: must be true or false, not 'yes'."),
        ("size: {h: 3}", "size: must be one value or a list."),
        ("classes:\n  - cell: 1\n", "data.classes=[{'cell': 1}]: must be names"),
        ("classes: cell", "data.classes=cell: must be names"),
        ("root: a\nroot: b", "line 2: root is there twice."),
        ("classes: {a: 1, a: 2}", "line 1: a is there twice."),
        ("? [a]\n: 3", "a key must be a word"),
        ("root: [a", "line 1: "),
        ("root: a\n\tsize: 3", "line 2: "),
        ("a: b: c", "line 1: "),
        ("", "must hold keys of data with their values"),
        ("- root", "must hold keys of data with their values"),
        ("just a text", "must hold keys of data with their values"),
        ("root: a\n---\nroot: b", "line 2: "),
        ("root: &a x\nimages: *a", "line 1: must contain plain values"),
        ("root: *a", "line 1: must contain plain values"),
        ("root: !!python/object/apply:os.system [ls]", "line 1: must contain plain values"),
        ("%YAML 1.1\n---\nroot: a", "line 1: must contain plain values"),
        ("root: a\x07", ""),
        (b"root: \xff", "can't decode byte"),
        ("classes: " + "[" * 60000, "line 1: must be nested at most 8 levels deep."),
        ("classes:\n  " + "- " * 20000, "line 2: must be nested at most 8 levels deep."),
        ("seed: " + "9" * 5000, ""),
        ("# " + "x" * LIMIT, "larger than 64 KiB"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_it_may_not_hold_is_one_line_that_names_the_file(here, text, says):
    line = refused(here(text))
    assert says in line
    assert "my.yaml" in line or line.startswith("data.")
    assert len(line) < 700


def test_aliases_that_would_fill_the_memory_are_never_expanded(here):
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "line 1: must contain plain values" in refused(here(bomb))


def test_a_file_that_is_not_there_is_one_line(here, tmp_path):
    assert refused("data=mine.yaml").startswith(f"data={tmp_path / 'work' / 'mine.yaml'}: no such file. ")
    assert "Try data=shapes." in refused("data=shapes.yaml")
    (tmp_path / "work" / "folder.yaml").mkdir()
    assert "not a file" in refused("data=folder.yaml")
    os.mkfifo(tmp_path / "work" / "pipe.yaml")
    assert "not a file" in refused("data=pipe.yaml")
    assert "no such file" in refused("data=a.yaml,b.yaml")


def test_without_a_file_words_stay(here):
    assert expanded(["data=shapes", "data.size=64"]) == ["data=shapes", "data.size=64"]
