"""The files in examples/, as far as a parser goes: no cluster is here to run them."""

import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from segsweep.config.schema import keys
from segsweep.config.sweeper import SweeperConfig

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
KNOWN = {key.name for key in keys()} | {f"hydra.sweeper.{item.name}" for item in fields(SweeperConfig)}
KNOWN |= {"tracking", "hydra.sweep.dir", "hydra.run.dir", "hydra/sweeper", "data", "sweeps"}
WORD = re.compile(r"(?<![\w./-])((?:hydra|data|train|optim|encoder|decoder|tracking|augmentation|loss)[\w./]*)=")
MANIFESTS = sorted((EXAMPLES / "kubernetes").glob("*.yaml"))


def documents(path):
    return list(yaml.safe_load_all(path.read_text()))


def jobs():
    return [document for path in MANIFESTS for document in documents(path) if document["kind"] == "Job"]


@pytest.mark.parametrize("path", [*MANIFESTS, *EXAMPLES.rglob("*.sbatch"), ROOT / "docs" / "scaling.md"])
def test_every_key_that_is_typed_is_one(path):
    typed = set(WORD.findall(path.read_text()))
    assert typed, path
    assert typed - KNOWN == set()


def test_slurms_script_is_bash_and_asks_for_a_gpu():
    path = EXAMPLES / "slurm.sbatch"
    subprocess.run(["bash", "-n", path], check=True)
    asked = dict(line.split("=", 1) for line in re.findall(r"^#SBATCH --(\S+=\S+)$", path.read_text(), re.MULTILINE))
    assert asked["gres"] == "gpu:1"
    signal, seconds = asked["signal"].split("@")
    assert (signal, int(seconds) >= 30) == ("TERM", True)  # a controller needs 20


@pytest.mark.parametrize("job", jobs(), ids=lambda job: job["metadata"]["name"])
def test_pods_have_few_rights_and_time_to_end(job):
    pod = job["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["terminationGracePeriodSeconds"] >= 30
    (container,) = pod["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["resources"]["limits"]["nvidia.com/gpu"] >= 1
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_passwords_come_from_secrets():
    (sweep,) = [job for job in jobs() if job["metadata"]["name"] == "segsweep"]
    (container,) = sweep["spec"]["template"]["spec"]["containers"]
    secret = {one["name"] for one in container["env"] if "secretKeyRef" in one.get("valueFrom", {})}
    assert secret == {"PGPASSWORD", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    (compose,) = documents(EXAMPLES / "compose.yaml")
    assert all(service["secrets"] for service in compose["services"].values())
    assert all(port.startswith("127.0.0.1:") for service in compose["services"].values() for port in service["ports"])
    for path in EXAMPLES.rglob("*"):
        assert path.is_dir() or not re.search(r"://[^/\s'\"]+:[^/\s'\"@]+@", path.read_text()), path
