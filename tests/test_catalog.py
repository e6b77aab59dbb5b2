"""timm's names without timm."""

import json
import subprocess
import sys

import pytest
import timm

from segsweep import catalog
from segsweep.errors import ConfigError

LISTED = catalog._read()[0]
same_timm = pytest.mark.skipif(timm.__version__ != LISTED, reason=f"the list is of timm {LISTED}")

QUICK = """
import json, sys, time
begun = time.process_time()
from segsweep import catalog
from segsweep.errors import ConfigError
catalog.check("resnet34.a1_in1k")
try:
    catalog.check("resnt34")
except ConfigError as error:
    said = str(error)
print(json.dumps({"seconds": time.process_time() - begun, "said": said, "modules": list(sys.modules)}))
"""


@same_timm
def test_the_list_is_timms():
    assert catalog.architectures() == sorted(timm.list_models())


@same_timm
def test_the_tags_are_timms():
    tagged = sorted(name for name in timm.list_pretrained() if "." in name)
    ours = [f"{name}.{tag}" for name in catalog.architectures() for tag in catalog.tags(name)]
    assert sorted(ours) == tagged


@same_timm
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnt34", r"^encoder=resnt34: not a timm model\. Closest: resnet34.*\. Try encoder=resnet34\.$"),
        (
            "resnet34.a1_in2k",
            r"^encoder=.*: resnet34 has no pretrained tag 'a1_in2k'\. .*Try encoder=resnet34\.a1_in1k\.$",
        ),
        ("resnet34.qqqqqqqq", r"no pretrained tag 'qqqqqqqq'\. Closest: resnet34\.a1_in1k"),
        ("botnet50ts_256.in1k", r"no pretrained tag 'in1k'\. Closest: botnet50ts_256\. Try encoder=botnet50ts_256\.$"),
        ("qqqqqqqqqqqq", r"^encoder=qqqqqqqqqqqq: not a timm model\. List them: segsweep encoders"),
        ("", "not a timm model"),
    ],
)
def test_unknown_names_are_refused_with_the_closest(name, says):
    with pytest.raises(ConfigError, match=says):
        catalog.check(name)


@same_timm
def test_what_is_listed_passes():
    for architecture in catalog.architectures()[::50]:
        catalog.check(architecture)
        for tag in catalog.tags(architecture):
            catalog.check(f"{architecture}.{tag}")


def test_another_timm_decides_for_itself(monkeypatch):
    monkeypatch.setattr(catalog, "version", lambda _: "99.0")
    catalog.check("model_of_the_future")
    catalog.check("resnet34.tag_of_the_future")


KINDS = {
    "resnet34": "convolutional",
    "tf_efficientnet_lite0": "convolutional",
    "resnest14d": "convolutional",
    "gcresnet33ts": "convolutional",  # one small attention over the whole image
    "convnext_atto": "hierarchical",
    "resnet50_gn": "hierarchical",
    "swin_tiny_patch4_window7_224": "hierarchical",
    "mobilevit_xxs": "hierarchical",
    "vit_tiny_patch16_224": "plain",
    "mixer_s16_224": "plain",
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_kinds_are_what_is_measured(name, kind):
    from segsweep.nn.encoder import encoder_traits

    assert encoder_traits(name).kind == kind
    if timm.__version__ == LISTED:
        assert catalog.rates(name) == catalog.RATES[kind]


def test_every_kind_has_rates_within_their_range():
    assert set(catalog._read()[2].values()) == set(catalog.RATES)
    for rates in catalog.RATES.values():
        assert 0 < rates.low < rates.lr < rates.high
    assert catalog.rates("resnet34.a1_in1k") == catalog.rates("model_of_the_future") == catalog.RATES["convolutional"]


def test_tags_of_an_architecture():
    assert "a1_in1k" in catalog.tags("resnet34")
    assert catalog.tags("none") == ()


def test_patterns_name_architectures():
    assert catalog.matching("*") == catalog.architectures()
    assert catalog.matching("resnet34") == ["resnet34"]
    found = catalog.matching("ConvNeXt*_atto")
    assert {"convnext_atto", "convnextv2_atto"} == set(found)


@same_timm
def test_every_set_of_weights_is_in_the_table_as_timm_has_it():
    made = catalog.pretrainings()
    assert set(made) == {name for name in timm.list_pretrained() if "." in name}
    for name, known in list(made.items())[::40]:
        published = timm.models.get_pretrained_cfg(name)
        assert known.input_size == "x".join(map(str, published.input_size[-2:]))
        assert known.licence == (published.license if published.license not in (None, "unknown") else "unpublished")
        usual = timm.models.get_pretrained_cfg(name.partition(".")[0])
        assert (catalog.tagged(name.partition(".")[0]) == name) == (usual.tag == published.tag)


@pytest.mark.parametrize(
    ("name", "data", "objective"),
    [
        ("resnet34.a1_in1k", "ImageNet-1k", "supervised"),
        ("vit_small_patch16_224.augreg_in21k_ft_in1k", "ImageNet-21k > ImageNet-1k", "supervised"),
        ("vit_small_patch16_224.dino", "ImageNet-1k", "DINO, self-supervised"),
        ("vit_small_patch14_dinov2.lvd142m", "LVD-142M", "DINOv2, self-supervised"),
        ("hiera_tiny_224.mae_in1k_ft_in1k", "ImageNet-1k > ImageNet-1k", "masked autoencoder, then supervised"),
        ("samvit_base_patch16.sa1b", "SA-1B", "segmentation with prompts (SAM)"),
        ("vit_base_patch16_224.sam_in1k", "ImageNet-1k", "supervised"),  # an optimizer called SAM
        ("vit_base_patch16_clip_224.openai_ft_in1k", "WIT-400M > ImageNet-1k", "image-text (CLIP), then supervised"),
        ("tf_efficientnet_b0.ns_jft_in1k", "JFT-300M > ImageNet-1k", "noisy student"),
        ("davit_base_fl.msft_florence2", "unpublished", "part of a vision-language model"),
        ("model_of_the_future.tag", "unpublished", "unpublished"),
    ],
)
def test_how_weights_were_made_is_read_from_their_names(name, data, objective):
    made = catalog.pretraining(name)
    assert (made.data, made.objective) == (data, objective)


def test_an_architecture_alone_means_its_usual_weights():
    assert catalog.tagged("resnet34") == "resnet34.a1_in1k"
    assert catalog.tagged("resnet34.tv_in1k") == "resnet34.tv_in1k"
    assert catalog.tagged("botnet50ts_256") == "botnet50ts_256"  # without weights
    assert catalog.pretraining("resnet34") == catalog.pretraining("resnet34.a1_in1k")


def test_patterns_name_weights():
    assert catalog.matching_weights(["resnet34"]) == [f"resnet34.{tag}" for tag in catalog.tags("resnet34")]
    assert catalog.matching_weights(["*.dino", "vit_small*.dino"]) == catalog.matching_weights(["*.dino"])
    assert catalog.matching("vit_small*.dino") == ["vit_small_patch16_224", "vit_small_patch8_224"]
    with pytest.raises(ConfigError, match=r"weights\(resnt34\): timm has no such weights\. Closest: resnet34"):
        catalog.matching_weights(["resnet18", "resnt34"])


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("encoder=weights(vit_small*.dino)", "encoder=choice(vit_small_patch16_224.dino,vit_small_patch8_224.dino)"),
        ("encoder.name='weights(test_vit,test_vit2)'", "encoder.name=choice(test_vit.r160_in1k,test_vit2.r160_in1k)"),
        ("encoder=resnet34", "encoder=resnet34"),
        ("data.root=weights(x)", "data.root=weights(x)"),
    ],
)
def test_weights_are_a_choice_in_hydras_grammar(word, says):
    assert catalog.expanded(word) == says


def test_a_pattern_that_names_nothing_is_refused_with_the_closest():
    with pytest.raises(ConfigError, match=r"resnt34\*: .*Closest: resnet34"):
        catalog.matching("resnt34*")
    with pytest.raises(ConfigError, match="Try 'resnet"):
        catalog.matching("qqqqqqqq")


def test_what_another_timm_was_measured_with_is_not_used(monkeypatch, tmp_path):
    path = tmp_path / "encoders.csv"
    path.write_text("encoder,runs,timm\nresnet34,yes,0.1\nresnet18,no,0.2\nresnet10t,yes,0.2\n")
    monkeypatch.setattr(catalog, "CENSUS", path)
    for timm_version, counted in (("0.1", {"resnet34"}), ("0.2", {"resnet10t"}), ("0.3", set())):
        monkeypatch.setattr(catalog, "version", lambda _, found=timm_version: found)
        assert set(catalog.counted()) == counted
    monkeypatch.setattr(catalog, "CENSUS", tmp_path / "none.csv")
    assert catalog.counted() == {}


def test_a_check_is_quick_and_does_not_import_timm():
    run = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, check=True)
    told = json.loads(run.stdout)
    assert told["seconds"] < 0.5
    assert not {"timm", "torch", "hydra", "mlflow"} & set(told["modules"])
    if timm.__version__ == LISTED:
        assert "Try encoder=resnet34." in told["said"]
