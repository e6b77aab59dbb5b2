"""How MLflow's page should open: a saved view, as text for a tag of its experiment. Standard library only.

MLflow has no interface for this. The format is what the page of MLflow 3.17 itself writes when one shares a view: JSON
around a compressed state, whose fields are those of `ExperimentPageUIState` and `RunsChartsCardConfig` in its sources.
A later MLflow may read it otherwise.
"""

import base64
import json
import logging
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from segsweep.errors import short

log = logging.getLogger(__name__)

TAG = "mlflow.sharedViewState."  # and the view's key
SCORE, CURVE, SIZE, SPEED = "best/val_iou", "val/iou", "parameters", "perf/images_per_s"
PICTURES = 4  # cards, each of one image as every run segments it
BEST = 0  # the step at which a finished run's best pictures are found, whichever epoch was the best
# Name, columns and height of the sections that are open.
SECTIONS = {"charts": ("Runs", 2, 340), "pictures": ("Predictions (step 0: of each run's best epoch)", 1, 420)}
# MLflow adds a chart for every metric, in sections by the metrics' prefixes: there to be opened, closed at first.
CLOSED = ("best", "data", "perf", "predictions", "test", "train", "val", "val/iou", "Model metrics", "System metrics")


def save(
    client: Any, experiment_id: str, key: str, name: str, search: str, swept: Sequence[str], pictures: Sequence[str]
) -> str:
    """Save a view, as `text` has it, under a key in its experiment, where it replaces one of the same key.

    Return the key; nothing where MLflow refuses: pages open without a view, too.
    """
    try:
        client.set_experiment_tag(experiment_id, TAG + key, text(name, search, swept, pictures, time.time()))
    except Exception as error:
        log.debug("MLflow: no view was saved: %s", short(error))
        return ""
    return key


def text(name: str, search: str, swept: Sequence[str], pictures: Sequence[str], time: float) -> str:
    """Return the tag's value for a view of this name, written at this time, in seconds: the newest is what opens.

    Args:
        search: the filter of the runs, in MLflow's grammar.
        swept: parameters that are varied: columns of the table, axes of the parallel coordinates.
        pictures: keys of logged images.
    """
    columns = [_column("params", name) for name in (*swept, "weights_source", SIZE)]
    opened = [
        {"uuid": key, "name": name, "display": True, "isReordered": True, "columns": columns, "cardHeight": high}
        for key, (name, columns, high) in SECTIONS.items()
    ]
    closed = [{"uuid": name, "name": name, "display": False, "isReordered": False} for name in CLOSED]
    state = {
        "searchFilter": search,
        "orderByKey": _column("metrics", SCORE),
        "orderByAsc": False,
        "lifecycleFilter": "Active",
        "startTime": "ALL",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [_column("metrics", SCORE), *columns, _column("metrics", SPEED), "attributes.`Duration`"],
        "runsHiddenMode": "SHOW_ALL",  # otherwise charts show the first ten
        "compareRunCharts": [
            {**card, "uuid": f"segsweep-{place}", "isGenerated": False, "deleted": False}
            for place, card in enumerate(_cards(swept, pictures))
        ],
        "compareRunSections": [*opened, *closed],
        "isAccordionReordered": True,  # else MLflow sorts the sections by name
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
        "groupBy": None,
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    when = int(time * 1000)
    return json.dumps({"name": name, "createdAt": when, "updatedAt": when, "state": f"deflate;{packed}"})


def newest(tags: dict[str, str]) -> tuple[str, int]:
    """Return the key and the time of the last written among an experiment's tags; an empty key where there is none."""
    views = [(n.removeprefix(TAG), json.loads(v)["updatedAt"]) for n, v in tags.items() if n.startswith(TAG)]
    return max(views, key=lambda view: view[1], default=("", 0))


def page(experiment_id: str, key: str = "") -> str:
    """Return the address of an experiment's runs below that of its server, opened in the view if there is one."""
    view = f"&compareRunsMode=CHART&viewStateShareKey={key}" if key else ""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning{view}"


def _cards(swept: Sequence[str], pictures: Sequence[str]) -> Iterator[dict[str, object]]:
    axes = [*swept] if len(swept) > 1 else [*swept, SIZE]
    size, speed, score = ({"key": key, "type": "PARAM" if key == SIZE else "METRIC"} for key in (SIZE, SPEED, SCORE))
    charts: list[dict[str, Any]] = [
        {"type": "PARALLEL", "selectedParams": axes, "selectedMetrics": [SCORE], "showAllRuns": False},
        {"type": "LINE", "metricKey": CURVE, "selectedMetricKeys": [CURVE], "xAxisKey": "step", "lineSmoothness": 0},
        {"type": "SCATTER", "xaxis": size, "yaxis": score, "runsCountToCompare": 100},
        {"type": "SCATTER", "xaxis": speed, "yaxis": score, "runsCountToCompare": 100},
    ]
    yield from ({**chart, "metricSectionId": "charts"} for chart in charts)
    for key in pictures[:PICTURES]:
        # Otherwise MLflow writes all of a run's parameters above its picture.
        shown = {"imageKeys": [key], "step": BEST, "showRunParams": False}
        yield {"type": "IMAGE", **shown, "metricSectionId": "pictures"}


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"
