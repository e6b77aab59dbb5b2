"""A Ray cluster of two nodes on this machine, one of which is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_train import config, end, epoch, start

from segsweep.config.sweeper import SweeperConfig
from segsweep.errors import ConfigError
from segsweep.runs import journal
from segsweep.sweeping.backends import ray as module
from segsweep.sweeping.backends.base import Id, JobUpdate

HERE = Path(__file__).parent


@pytest.mark.services
def test_a_lost_nodes_trials_begin_again_and_nothing_is_left_running(tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install -e '.[ray]'")
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}:{HERE.parents[1]}"}
    script = [sys.executable, str(HERE / "ray_sweep.py"), str(tmp_path)]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=240, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found["states"].values()) == ["complete"] * 24
    assert set(found["epochs"].values()) == {4}
    assert sum(found["began"].values()) in (25, 26)  # one or two ran on the node
    assert found["capacity"] == 2  # GPUs of the node that is left
    assert found["finalists"] == ["complete"] * 3
    assert found["used"] >= 0.85
    assert found["left"] == 0  # 15 seconds later
    for name in found["states"]:
        run = journal.read(tmp_path / name)
        assert run.end.status == "complete"
        assert len(run.starts) == 1
        assert (tmp_path / name / "best.safetensors").exists()


def test_what_does_not_go_with_ray_is_refused():
    for settings, said in (
        ({"slots": [0, 0]}, "on a Ray cluster a number, or auto"),
        ({"gpus": -1.0}, "must be 0 or more"),
    ):
        with pytest.raises(ConfigError, match=said):
            SweeperConfig(backend="ray", **settings)


def test_a_job_that_ends_with_its_first_records_is_heard(tmp_path):
    backend = module.RayBackend.__new__(module.RayBackend)  # without a cluster
    backend._ray, backend.folder = SimpleNamespace(get=lambda answer: answer), tmp_path
    actor, news = module._Actor(None, job="0"), JobUpdate(Id("0"), [start(config()), epoch(1, 0.5), end()], ended=True)
    assert backend._heard(actor, [news]) == [news]
    assert actor.ended  # else it would be asked for more, and its slot never be free
    assert [type(record) for record in journal.read(tmp_path / "0").records] == list(map(type, news.records))
