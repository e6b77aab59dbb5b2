"""What is typed: alone, beside a record, and what is said of words that are wrong."""

import random
import re
import shlex
from dataclasses import replace
from typing import Any

import pytest

from segsweep.commands.train import main
from segsweep.compose import changed, configuration, expanded, text_of, with_data
from segsweep.config.schema import DataConfig, LossConfig, OptimConfig, RunConfig, TrainConfig, keys
from segsweep.errors import ConfigError
from segsweep.paths import quoted

ASKED = RunConfig(
    data=DataConfig(name="folder", root="there", size=[64, 96], folds=5, fold=1, classes=["ground", "road"]),
    train=TrainConfig(workers=2, seed=7),
)


def test_nothing_typed_changes_nothing():
    assert with_data(ASKED, []) == ASKED


def test_typed_keys_take_the_place_of_the_records():
    found = with_data(ASKED, ["data.root=here", "data.fold=4", "train.workers=1"])
    assert (found.data.root, found.data.fold, found.train.workers) == ("here", 4, 1)
    assert (found.data.name, found.data.folds, found.data.size) == ("folder", 5, [64, 96])
    assert (found.data.classes, found.train.seed) == (["ground", "road"], 7)


def test_another_data_set_brings_its_own_section_whole():
    found = with_data(ASKED, ["data=folder", "data.root=here"])
    assert found.data == DataConfig(name="folder", root="here")
    assert found.train == ASKED.train


@pytest.mark.parametrize(
    ("kept", "words", "left"),
    [
        ({"table": "/a.csv"}, ["data.images=/n/i", "data.masks=/n/m"], {"images": "/n/i", "masks": "/n/m"}),
        ({"images": "/a", "masks": "/b"}, ["data.root=/n"], {"root": "/n"}),
        ({"name": "coco", "annotations": "/a", "images": "/b"}, ["data.root=/n"], {"name": "coco", "root": "/n"}),
        (
            {"name": "coco", "annotations": "/a", "root": "/b"},
            ["data.root=/n"],
            {"name": "coco", "annotations": "/a", "root": "/n"},
        ),
        (
            {"images": "*/i/*", "masks": "*/m/*", "root": "/a"},
            ["data.root=/n"],
            {"images": "*/i/*", "masks": "*/m/*", "root": "/n"},
        ),
        ({"images": "/a", "masks": "/b"}, ["data.table=/n.csv"], {"table": "/n.csv"}),
        ({"images": "/a/i*", "masks": "/a/m*"}, ["data.root=/n"], {"root": "/n"}),
        ({"root": "/a", "masks": "/b"}, ["data.root=/n"], {"root": "/n"}),
        ({"name": "coco", "annotations": "/a"}, ["data.root=/n"], {"name": "coco", "root": "/n"}),
        ({"table": "/a", "images": "/b"}, ["data.images=null"], {"table": "/a"}),
        ({"table": "/a.csv", "root": "/a"}, ["data.root=/n"], {"table": "/a.csv", "root": "/n"}),
        ({"images": "/a", "masks": "/b"}, ["data.masks=/n"], {"images": "/a", "masks": "/n"}),
    ],
)
def test_the_places_that_are_typed_are_those_that_are_read(kept, words, left):
    asked = RunConfig(data=DataConfig(**{"name": "folder"} | kept))
    assert with_data(asked, words).data == DataConfig(**{"name": "folder"} | left)


@pytest.mark.parametrize("nodata", [0, "none"])
def test_other_data_lack_values_where_the_models_did(nodata):
    asked = RunConfig(data=DataConfig(name="folder", root="there", nodata=nodata))
    assert with_data(asked, ["data=folder", "data.root=here"]).data.nodata == nodata
    assert with_data(asked, ["data=folder", "data.root=here", "data.nodata=auto"]).data.nodata == "auto"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("encoder=resnet18", "encoder=resnet18: must be a key of data"),
        ("train.seed=1", "must be a key of data"),
        ("tracking.uri=http://there", "must be a key of data"),
        ("hydra.run.dir=x", "must be a key of data"),
        ("+hydra.callbacks.x={_target_: os.system}", "must be a key of data"),
        ("folder", "must be a key of data"),
        ("data=foldr", "Try data=folder"),
        ("data.roots=x", "Try data.root=x."),
        ("path=/x", "Try data.root=/x."),
        ("epochs=3", "must be a key of data"),
        ("data.split=val", "must be a list of numbers."),
        ("data.split=val", "To score that part: --split val."),
        ("data.fold=5", "in 0..4"),
        ("data.fold=[", "cannot be read"),
        ("data.fold=x", "data.fold"),
        ("~data.fold", "data.fold"),
    ],
)
def test_other_words_are_one_line(word, said):
    with pytest.raises(ConfigError) as refusal:
        with_data(ASKED, [word])
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_auto_is_a_value_like_any_other():
    asked = RunConfig(optim=OptimConfig(lr=3e-3), train=TrainConfig(device="cpu"))
    assert changed(asked, ["train.device=auto"]).train.device == "auto"
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.003 -> auto"):
        changed(asked, ["optim.lr=auto"])


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_a_home_is_meant_by_its_sign(key, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded([f"{key}=~/a b"]) == [f"{key}={quoted(tmp_path / 'a b')}"]
    assert expanded([f"{key}=~/${{now:%Y}}"]) == [f"{key}='{tmp_path}/${{now:%Y}}'"]  # Hydra resolves the rest
    with pytest.raises(ConfigError, match="cannot be a path"):
        expanded([f"{key}=~nobody-at-all/x"])


def test_nothing_of_a_record_is_resolved(monkeypatch):
    """What looks like Hydra's grammar or OmegaConf's in a record is text."""
    root = "${oc.env:HOME}/x','${outputs:}"
    asked = RunConfig(data=DataConfig(root=root))
    assert with_data(asked, ["data.seed=3"]).data.root == root


def test_words_are_laid_over_the_runs_values_not_over_the_defaults():
    """data.root belongs to no data=shapes, the default; 3 divides 12, and not the default's 16."""
    asked = RunConfig(
        data=DataConfig(name="folder", root="there"),
        optim=OptimConfig(name="sgd", lr=0.05),
        train=TrainConfig(batch_size=12, compile="true"),
    )
    words = ["data.root=/here", "train.grad_accum=3", "train.compile=true", "optim.name=sgd", "train.batch_size=12"]
    found = changed(asked, words)
    assert (found.data.root, found.train.grad_accum) == ("/here", 3)
    assert found.optim == asked.optim
    with pytest.raises(ConfigError, match=r"train\.grad_accum=5: must be a divisor of train\.batch_size=12"):
        changed(asked, ["train.grad_accum=5"])


@pytest.mark.parametrize(
    ("began", "typed"), [({"dice": 1.0, "ce": 0.0}, "loss=ce_dice"), ({"ce": 0.7}, "loss=ce_dice")]
)
def test_an_option_whose_values_are_the_defaults_is_heard_too(began, typed):
    asked = RunConfig(loss=replace(LossConfig(), **began))
    with pytest.raises(ConfigError, match=r"differs from the run's configuration: loss\.ce: "):
        changed(asked, [typed])
    assert changed(asked, ["train.epochs=3"]).loss == asked.loss
    assert changed(configuration([typed]), [typed]).loss == configuration([typed]).loss


def test_data_that_were_moved_keep_the_size_that_was_typed_at_first():
    """data=folder has no size, and the default data set's is not what data=folder sets."""
    asked = configuration(["data=folder", "data.root=/before", "data.size=256"])
    moved = changed(asked, ["data=folder", "data.root=/now"])
    assert moved == replace(asked, data=replace(asked.data, root="/now"))
    asked = configuration(["data=camvid", "data.root=/before", "data.ignore_index=null"])
    with pytest.raises(ConfigError, match=r"configuration: data\.ignore_index: None -> 11\. "):
        changed(asked, ["data=camvid", "data.root=/now"])


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as refused:
        configuration(words)
    (line,) = str(refused.value).splitlines()
    return line


def test_random_text_is_composed_as_it_is():
    rng = random.Random(1)
    for _ in range(8):
        text = "/" + "".join(rng.choice("\\'\"${},:= aü細\n") for _ in range(rng.randrange(30)))
        assert configuration(["data=folder", f"data.root={quoted(text)}"]).data.root == text


@pytest.mark.parametrize("typed", ["128", "[128,128]"])
def test_one_number_of_pixels_is_the_record_that_two_are(typed):
    asked = configuration([f"data.size={typed}", f"data.tile={typed}"])
    assert (asked.data.size, asked.data.tile) == ([128, 128], [128, 128])
    assert changed(asked, ["data.size=128", "data.tile=[128,128]"]) == asked
    with pytest.raises(ConfigError, match=r"data\.size: \[128, 128\] -> \[64, 64\]"):
        changed(asked, ["data.size=64"])
    assert with_data(asked, ["data.size=64"]).data.size == [64, 64]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("train.imgsz=512", "data.size=512"),
        ("+train.imgsz=512", "data.size=512"),
        ("optim.learning_rate=1e-4", "optim.lr=1e-4"),
        ("data.path=/a", "data.root=/a"),
        ("optimizer=AdamW", "optim=adamw"),
        ("save_dir=/a", "hydra.run.dir=/a"),
        ("scheduler=cosine", "optim.schedule=cosine"),
    ],
)
def test_a_key_of_another_tool_is_answered_with_the_line_to_type(word, line):
    assert f"no such key. Try {line}. " in refusal(word)
    configuration(["data=folder", line])


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("model=unet", "encoder"),
        ("device=0", "train.device"),
        ("amp=true", "train.precision"),
        ("nc=3", "data.classes"),
    ],
)
def test_a_value_that_the_key_would_refuse_is_not_recommended(word, near):
    assert f"no such key. Closest: {near}. " in refusal(word)


ONE_OF_A_TYPE = {str(key.kind): key for key in keys() if key.kind is not Any}  # a composition takes a tenth of a second
MUST = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list of numbers",
}


@pytest.mark.parametrize("kind", ONE_OF_A_TYPE)
def test_a_value_of_another_type_is_one_line_that_says_what_must_be(kind):
    key, value = ONE_OF_A_TYPE[kind], "[x]" if "str" in kind else "x_y"
    said = refusal(f"{key.name}={value}")
    name = re.sub(r"<class '(\w+)'>", r"\1", kind)
    optional = " or null" if name.endswith(" | None") else ""
    assert said.startswith(f"{key.name}={value}: must be {MUST[re.split('[^a-z]', name)[0]]}{optional}. ")
    assert key.help in said


ADVICE = "for the shell: "


@pytest.mark.parametrize("path", ["'/x/it's'", "/a[1]", '"/x', "/x/ü,ö"])
def test_the_advice_for_a_text_that_cannot_be_read_works_when_typed(path):
    """And does not lead to another advice: quotes around quotes were recommended for ever."""
    said = refusal("data=folder", f"data.root={path}")
    (word,) = shlex.split(said.partition(ADVICE)[2])
    meant = path[1:-1] if path[0] == path[-1] == "'" else path
    assert configuration(["data=folder", word]).data.root == meant


@pytest.mark.parametrize("path", ['/x/it\'s "me"', "/Zürich 細胞", "/a=b:$c"])
def test_a_text_that_can_be_nothing_else_needs_no_quotes(path):
    assert configuration(["data=folder", f"data.root={path}"]).data.root == path


def test_a_comma_is_answered_with_one_text_or_a_list():
    said = refusal("data=folder", "data.root=/x/a,b")
    (word,) = shlex.split(said.partition("As one text: ")[2])
    assert configuration(["data=folder", word]).data.root == "/x/a,b"
    said = refusal("data.split=0.8,0.2")
    (word,) = shlex.split(said.partition("As a list: ")[2])
    assert configuration([word]).data.split == [0.8, 0.2]
    assert "python train.py -m" in refusal("train.seed=choice(1,2)")
    assert "As " not in refusal("train.seed=1,2")


@pytest.mark.parametrize("text", ["2026_11_30", "2.10", "1e3", "true", "False", "123"])
def test_a_text_that_looks_like_a_number_is_kept_to_the_letter(text):
    found = configuration(["data=folder", f"data.root={text}", f"tracking.experiment={text}"])
    assert (found.data.root, found.tracking.experiment) == (text, text)


def test_null_is_no_text():
    assert configuration(["data=folder", "data.root=null"]).data.root is None


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["--resume", "outputs/x"], "resume=VALUE"),
        (["--encoder", "resnet34"], "encoder=VALUE"),
        (["--data.root=/a b"], "'data.root=/a b'"),
        (["--hydra.run.dir=x"], "hydra.run.dir=x"),
    ],
)
def test_a_key_that_is_typed_as_a_flag_is_answered_with_the_key(words, typed, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"{words[0].partition('=')[0]}: no such flag. Keys have no dashes: {typed}")


@pytest.mark.parametrize(
    "words", [["sweeps=screen", "hydra.sweeper.n_trials=3"], ["-m", "hydra/sweeper=optuna", "hydra.sweeper.short=3"]]
)
def test_a_key_of_another_sweeper_is_answered_so(words, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{words[-1].partition('=')[0]}: not a key of this sweeper. The keys of each are in docs/" in line


@pytest.mark.parametrize("word", ["tracking=null", "loss=null", "data=3"])
def test_a_group_without_a_name_is_answered_with_its_options(word):
    group = word.partition("=")[0]
    assert refusal(word).startswith(f"{word}: must be {group}=NAME. There are: ")


def test_names_beyond_ascii_in_a_list_are_quoted_one_by_one():
    (word,) = shlex.split(refusal("data.classes=[Gebäude,road]").partition(ADVICE)[2])
    assert configuration([word]).data.classes == ["Gebäude", "road"]
    assert "data=FILE.yaml" in refusal("data.classes={Gebäude:1}")


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("resume=/a/b", "/a/b"),
        ("resume='/a/it\\'s'", "/a/it's"),
        ("resume='/a/\\${x}'", "/a/${x}"),
        ("resume=/a/${x}", "/a/${x}"),
        ("resume=/a,b", "/a,b"),
        ("resume=Zürich", "Zürich"),
        ("resume=2026", "2026"),
        ("resume=1e3", "1e3"),
        ("resume='1e3'", "1e3"),
    ],
)
def test_the_text_of_a_word_is_read_as_hydra_does_or_as_it_stands(word, text):
    assert text_of(word) == text


def test_other_words_stay_as_they_are():
    words = [
        "-m",
        "data=shapes",
        "data.size=64",
        "optim.lr=tag(log,interval(1e-5,1e-2))",
        "data.classes=[a,b]",
        "--cfg",
        "job",
    ]
    assert expanded(words) == words


@pytest.mark.parametrize(("key", "says"), [("data.size", "must be one value or a list."), ("optim.lr", "")])
def test_a_mapping_where_none_belongs_is_one_line(key, says):
    assert says in refusal(f"{key}={{a:x}}")


@pytest.mark.parametrize(
    ("word", "text"),
    [("data.root=/a/${b}", "/a/${b}"), ("data.root='/${b'", "/${b"), ("data.root='\\\\${no:x}'", "\\\\${no:x}")],
)
def test_an_interpolation_of_nothing_is_answered_with_the_text(word, text):
    (typed,) = shlex.split(refusal("data=folder", word).partition("As text: ")[2])
    assert configuration(["data=folder", typed]).data.root == text


def test_a_folder_typed_as_the_data_set_is_put_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "it's"):
        (tmp_path / name).mkdir()
        said = refusal(f"data='./{name}'" if name == "mine" else "data='./it\\'s'")
        typed = shlex.split(said.partition("Try ")[2])
        assert configuration(typed).data.root == f"./{name}"


def test_a_search_that_does_not_exist_is_refused_with_the_closest():
    said = refusal("hydra/sweeper=optun")
    assert said.startswith("hydra/sweeper=optun: no such option. There are: basic, cv, grid, optuna")
    assert said.endswith("Try hydra/sweeper=optuna.")


def test_another_groups_name_is_no_unknown_key():
    assert refusal("recipe=best", "train.epochs=ten").startswith("train.epochs=ten: must be a whole number or null.")


@pytest.mark.parametrize("word", ["data.binarize=${x}", "data.threshold=[${x},1]"])
def test_an_interpolation_that_fails_in_a_run_is_one_line_and_leaves_nothing(word, outputs, capsys):
    assert main([word]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{word}: inside ${{}} there must be a key" in line
    assert not outputs.exists() or not list(outputs.iterdir())
