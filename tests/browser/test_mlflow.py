"""What MLflow's pages show of runs, in real Chromium, on the MLflow that is installed."""

import re
import shutil

import pytest
from conftest import TINY, write_pairs
from mlflow import MlflowClient

import train
from segsweep.tracking import server as ui

pytestmark = pytest.mark.browser

TRAINING = "workflowType=machine_learning"  # as the addresses that runs end with say
DRAWN = 90  # seconds that a page may take, on a busy machine


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A database: two data sets in folders of one name; of the first two runs, of the second one with its machine."""
    place = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSWEEP_OUTPUTS", str(place / "outputs"))
        patch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
        for owner, words in (
            ("ann", []),
            ("ann", ["loss=focal"]),
            ("bob", ["tracking.system=true", "train.epochs=15"]),
        ):
            root = place / owner / "cells"
            if not root.exists():
                (place / owner).mkdir()
                write_pairs(place / owner)(name="cells")
            typed = [*TINY, "data=folder", f"data.root={root}", "data.size=[32,32]", "train.batch_size=4"]
            assert train.main([*typed, "train.epochs=2", *words]) == 0
    return place / "outputs"


@pytest.fixture
def pages(browser, recorded, outputs):
    """Opens a page of MLflow's: `pages(path, *texts)` waits until all texts are there and returns the page's own."""
    from selenium.webdriver.support.ui import WebDriverWait

    outputs.mkdir(parents=True)
    shutil.copytree(recorded, outputs, dirs_exist_ok=True)

    def shown():
        return browser.find_element("tag name", "body").text

    with ui.server(f"sqlite:///{outputs / 'mlflow.db'}") as (address, _):

        def opened(path, *texts):
            browser.get("about:blank")  # the same page is not loaded again
            browser.get(f"{address}/#/{path}")
            WebDriverWait(browser, DRAWN).until(lambda _: all(text in shown() for text in texts))
            return shown()

        yield opened


def experiment(outputs, name):
    """The id of an experiment, and the run that began first in it."""
    client = MlflowClient(tracking_uri=f"sqlite:///{outputs / 'mlflow.db'}")
    number = client.get_experiment_by_name(name).experiment_id
    return number, client.search_runs([number], order_by=["start_time"])[0].info.run_id


def test_data_sets_in_folders_of_one_name_are_two_experiments(pages):
    pages(f"experiments?{TRAINING}", "ann-cells", "bob-cells")


def test_a_deleted_experiment_comes_back_with_a_word(pages, recorded, outputs, caplog):
    number, _ = experiment(outputs, "ann-cells")
    MlflowClient(tracking_uri=f"sqlite:///{outputs / 'mlflow.db'}").delete_experiment(number)
    assert "ann-cells" not in pages(f"experiments?{TRAINING}", "bob-cells")
    typed = [*TINY, "data=folder", f"data.root={recorded.parent / 'ann' / 'cells'}", "data.size=[32,32]"]
    assert train.main([*typed, "train.batch_size=4", "train.epochs=1"]) == 0
    assert "experiment ann-cells was deleted; it is restored" in caplog.text
    pages(f"experiments?{TRAINING}", "ann-cells", "bob-cells")


def test_runs_are_told_apart_by_their_names(pages, outputs):
    number, _ = experiment(outputs, "ann-cells")
    said = pages(
        f"experiments/{number}/runs?{TRAINING}", "2 matching runs", "001-test_resnet-lr3e-3", "002-test_resnet"
    )
    first, second = (line for line in said.splitlines()[::-1] if "-test_resnet-lr3e-3-" in line)
    assert second.endswith("-focal") != first.endswith("-focal")
    assert "Experiment kind" not in said  # MLflow asks for it where it is not known


def test_best_checkpoints_are_models_with_scores_and_data(pages, browser, outputs):
    number, _ = experiment(outputs, "ann-cells")
    browser.set_window_size(6000, 1200)  # a column that is not in the window is not drawn
    pages(f"experiments/{number}/models?{TRAINING}", "002-test_resnet-lr3e-3", "Ready", "model/val/iou", "folder (")


def test_the_machine_has_charts_beside_its_run(pages, outputs):
    number, run = experiment(outputs, "bob-cells")
    said = pages(f"experiments/{number}/runs/{run}/system-metrics?{TRAINING}", "System metrics\n(")
    assert int(re.search(r"System metrics\n\((\d+)\)", said)[1]) >= 4
