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
    ours = [name for architecture in catalog.architectures() for name in catalog.names(f"{architecture}.")]
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
        ("qqqqqqqqqqqq", r"^encoder=qqqqqqqqqqqq: not a timm model\. List them with: python -c"),
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
        for name in catalog.names(f"{architecture}."):
            catalog.check(name)


def test_another_timm_decides_for_itself(monkeypatch):
    monkeypatch.setattr(catalog, "version", lambda _: "99.0")
    catalog.check("model_of_the_future")
    catalog.check("resnet34.tag_of_the_future")


def test_names_are_architectures_until_one_is_spelt_out():
    assert catalog.names("resn") == catalog.names() == catalog.architectures()
    assert "resnet34.a1_in1k" in catalog.names("resnet34.")
    assert all(name.startswith("resnet34.") for name in catalog.names("resnet34.a"))
    assert catalog.names("none.") == []


def test_a_check_is_quick_and_does_not_import_timm():
    run = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, check=True)
    told = json.loads(run.stdout)
    assert told["seconds"] < 0.5
    assert not {"timm", "torch", "hydra", "mlflow"} & set(told["modules"])
    if timm.__version__ == LISTED:
        assert "Try encoder=resnet34." in told["said"]
