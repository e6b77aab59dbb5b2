"""A sweep's saved view in real Chromium: from the line that the sweep prints to what MLflow has drawn."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from segsweep.tracking import server as ui

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
DRAWN = 90  # seconds that a page may take, on a busy machine

# Whether something has been painted on a canvas of the parallel coordinates.
PAINTED = """
return [...document.querySelectorAll('.parcoords canvas')].some(canvas => canvas.width && canvas.height &&
    canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(value => value))"""
PICTURES = """
return [...document.querySelectorAll('img')].filter(image => image.src.includes('predictions') && image.naturalWidth)
    .length"""
FIRST = "return document.querySelector('.ag-row[row-index=\"0\"]')?.innerText.split('\\n').pop()"
CHARTS = "return document.querySelectorAll('[data-testid=\"experiment-view-compare-runs-card\"]').length"
# A section that is not in the window is not drawn.
DOWN = "[...document.querySelectorAll('[data-testid=\"experiment-view-compare-runs-card\"]')].pop().scrollIntoView()"
CURVES = "return document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length"


def swept(folder, root, **environment):
    """A small sweep; the address of its view, as it was printed."""
    command = [sys.executable, "train.py", "-m", "hydra/sweeper=optuna", f"hydra.sweep.dir={folder}"]
    command += ["encoder=choice(test_resnet,test_convnext)", "encoder.pretrained=false", "train.device=cpu"]
    command += ["data=folder", f"data.root={root}", "data.size=[48,64]", "train.epochs=3", "train.batch_size=4"]
    command += ["hydra.sweeper.n_trials=3", "hydra.sweeper.finalists=0"]
    command += ["optim.lr=tag(log,interval(5e-3,5e-2))"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "View run" not in done.stdout, "MLflow prints on stdout"
    (line,) = re.findall(r"^compare +(.*)$", done.stdout, re.M)
    return line


def looked_at(browser, page, uri):
    """Open the page; the table, the charts and the pictures are there."""
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(browser, DRAWN)
    browser.get(page)
    waiting.until(lambda b: b.execute_script(FIRST))
    waiting.until(lambda b: b.execute_script(PAINTED))
    waiting.until(lambda b: b.execute_script(CURVES))
    assert "Sweep: " in browser.find_element("tag name", "body").text  # the list of views names it
    assert browser.execute_script(CHARTS) >= 5
    client = MlflowClient(tracking_uri=uri)
    (experiment,) = (found.experiment_id for found in client.search_experiments() if found.name.endswith("-data"))
    runs = [run for run in client.search_runs([experiment]) if "mlflow.parentRunId" in run.data.tags]
    assert len(runs) == 3
    best = max(run.data.metrics["best/val_iou"] for run in runs)
    assert best > 0
    names = {run.info.run_name for run in runs if run.data.metrics["best/val_iou"] == best}
    assert browser.execute_script(FIRST) in names
    browser.execute_script(DOWN)
    waiting.until(lambda b: b.execute_script(PICTURES) >= len(runs))


def test_the_view_of_a_sweep_shows_the_answer(browser, pairs, database, tmp_path):
    said = swept(tmp_path / "sweep", pairs(16))
    assert said.startswith("segsweep ui   then http://127.0.0.1:5000/#/")
    with ui.server(f"sqlite:///{database}") as (address, _):
        page = f"{address}/#/{said.partition('/#/')[2]}"
        assert ui.front_page(address) == page
        looked_at(browser, page, f"sqlite:///{database}")


def test_so_does_a_tracking_server(browser, pairs, mlflow_database, outputs, tmp_path):
    (tmp_path / "server.db").write_bytes(mlflow_database.read_bytes())
    with ui.server(f"sqlite:///{tmp_path / 'server.db'}") as (address, _):
        page = swept(tmp_path / "sweep", pairs(16), MLFLOW_TRACKING_URI=address)
        assert page.startswith(f"{address}/#/experiments/")
        looked_at(browser, page, address)
    assert not (outputs / "mlflow.db").exists()
