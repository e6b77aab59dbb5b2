"""A saved view is a text in MLflow's own format; that MLflow draws it is tested in tests/browser."""

import json
import time

from conftest import unpacked

from segsweep.tracking import views as saved_view

NOW = time.time()


def view(pictures=(), swept=("encoder", "optim.lr")):
    return unpacked(saved_view.text("Sweep: mine", "tags.`a` = 'b'", swept, pictures, NOW))


def test_the_envelope_is_what_mlflow_writes():
    envelope = json.loads(saved_view.text("Sweep: mine", "", (), (), 12.5))
    assert (envelope["name"], envelope["updatedAt"]) == ("Sweep: mine", 12500)
    assert envelope["state"].startswith("deflate;")


def test_the_table_is_sorted_and_shows_what_was_varied():
    state = view()
    assert state["searchFilter"] == "tags.`a` = 'b'"
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`best/val_iou`", False)
    columns = state["selectedColumns"]
    assert columns[:3] == ["metrics.`best/val_iou`", "params.`encoder`", "params.`optim.lr`"]
    assert {"params.`weights_source`", "params.`parameters`", "metrics.`perf/images_per_s`"} < set(columns)


def test_every_card_lies_in_a_section_and_has_an_identity_of_its_own():
    state = view(pictures=["predictions/a", "predictions/b"])
    cards, sections = state["compareRunCharts"], state["compareRunSections"]
    assert [card["type"] for card in cards] == ["PARALLEL", "LINE", "SCATTER", "SCATTER", "IMAGE", "IMAGE"]
    assert len({card["uuid"] for card in cards}) == len(cards)
    assert {card["metricSectionId"] for card in cards} <= {section["uuid"] for section in sections}
    assert [section["display"] for section in sections] == [True] * 2 + [False] * (len(sections) - 2)
    assert [card["imageKeys"] for card in cards[4:]] == [["predictions/a"], ["predictions/b"]]


def test_parallel_coordinates_have_two_axes_and_the_score_at_least():
    """MLflow draws none with fewer."""
    for swept in ((), ("optim.lr",), ("a", "b", "c")):
        card = view(swept=swept)["compareRunCharts"][0]
        assert len(card["selectedParams"]) + len(card["selectedMetrics"]) >= 2
        assert set(swept) <= set(card["selectedParams"])


def test_many_pictures_and_keys_fit_mlflows_tag():
    """Experiments' tags end at 5000 characters in its older versions."""
    keys = [f"some.long.key_{i}" for i in range(40)]
    pictures = [f"predictions/an image of a long name {i:06d}" for i in range(100)]
    assert len(saved_view.text("n" * 200, "s" * 200, keys, pictures, NOW)) < 5000


def test_the_newest_view_is_found_among_other_tags():
    tags = {"mlflow.note.content": "text", saved_view.TAG + "a": saved_view.text("", "", (), (), 1.0)}
    assert saved_view.newest({}) == ("", 0)
    assert saved_view.newest(tags) == ("a", 1000)
    tags[saved_view.TAG + "b"] = saved_view.text("", "", (), (), 2.0)
    assert saved_view.newest(tags) == ("b", 2000)


def test_a_page_without_a_view_is_the_table_of_runs():
    assert saved_view.page("3") == "#/experiments/3/runs?workflowType=machine_learning"
    assert saved_view.page("3", "k").startswith(saved_view.page("3") + "&")
    assert saved_view.page("3", "k").endswith("viewStateShareKey=k")
