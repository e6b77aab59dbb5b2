"""Classes that are warned of by name."""

import numpy as np
import pytest
from PIL import Image
from records import epoch

import train
from segsweep.config.schema import TrainConfig
from segsweep.training.classes import ClassWatch
from segsweep.training.loop import share_done
from segsweep.training.state import Progress

NAMES = ("road", "car", "rider")


def matrix(**pixels):
    """A confusion matrix: `road_car=3` are three pixels of road that were called car."""
    found = np.zeros((3, 3), np.int64)
    for cell, n in pixels.items():
        target, predicted = map(NAMES.index, cell.split("_"))
        found[target, predicted] = n
    return found


def warned(caplog, watch, *epochs):
    """What is said after each epoch, of which each is its share and its images' matrices."""
    said = []
    for done, *matrices in epochs:
        caplog.clear()
        watch.epoch(matrices, done)
        said.append([message.partition(":")[0] for message in caplog.messages])
    return said


ONLY_ROAD = matrix(road_road=90, car_road=5, rider_road=2)


def test_what_is_never_predicted_is_warned_of_once_after_half_of_the_training(caplog):
    watch = ClassWatch(NAMES, [1, 1, 1])
    epochs = [(share, ONLY_ROAD, ONLY_ROAD) for share in (0.25, 0.5, 0.75, 1.0)]
    assert warned(caplog, watch, *epochs) == [[], ["car, rider"], [], []]


def test_a_class_that_was_predicted_once_in_any_image_and_be_it_wrongly_is_not_named(caplog):
    watch = ClassWatch(NAMES, [1, 1, 1])
    early = (0.25, ONLY_ROAD, matrix(road_car=1, road_road=5))
    assert warned(caplog, watch, early, (0.5, ONLY_ROAD)) == [[], ["rider"]]


def test_of_a_class_that_no_validation_image_has_nothing_is_said(caplog):
    watch = ClassWatch(NAMES, [1, 1, 1])
    assert warned(caplog, watch, (1.0, matrix(road_road=90, car_road=5))) == [["car"]]


def test_a_resumed_training_knows_what_was_predicted_before(caplog):
    past = [epoch(1, 0.3, **{"val/iou/car": 0.2, "val/iou/rider": 0.0}), epoch(2, 0.3)]
    watch = ClassWatch(NAMES, [1, 1, 1], past)
    assert warned(caplog, watch, (0.75, ONLY_ROAD)) == [["rider"]]


def test_a_class_that_the_training_split_lacks_is_warned_of_at_once_and_not_again(caplog):
    watch = ClassWatch(NAMES, [100, 0, 0])
    assert [message.partition(",")[0] for message in caplog.messages] == ["the training split has no pixel of car"]
    assert "no pixel of car, rider, so" in caplog.messages[0]
    assert warned(caplog, watch, (1.0, ONLY_ROAD)) == [[]]


@pytest.mark.parametrize(
    ("given", "epoch", "seconds", "share"),
    [
        ({"epochs": 8}, 4, 99.0, 0.5),
        ({"time_budget": 60.0}, 4, 30.0, 0.5),
        ({"epochs": 8, "time_budget": 60.0}, 2, 45.0, 0.75),
    ],
)
def test_how_much_of_a_training_is_done(given, epoch, seconds, share):
    progress = Progress(epoch=epoch, seconds=seconds)
    assert share_done(progress, TrainConfig(**given)) == share


def test_a_training_says_which_classes_it_lacks_and_does_not_find(tmp_path, caplog):
    """Three classes; the second is in no training image, one pixel a mask is of the third."""
    rng = np.random.default_rng(0)
    for part, values in (("train", (0, 2)), ("val", (0, 1, 2))):
        for i in range(8):
            mask = np.zeros((32, 32), np.uint8)
            mask.flat[rng.permutation(1024)[: len(values) - 1]] = values[1:]
            for kind, pixels in (("images", rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)), ("masks", mask)):
                path = tmp_path / "data" / kind / part / f"{part}{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    argv = ["encoder=test_resnet", "encoder.pretrained=false", "train.device=cpu", "train.precision=fp32"]
    argv += ["data=folder", f"data.root={tmp_path / 'data'}", "data.classes=[sky,bird,star]", "data.size=[32,32]"]
    argv += ["train.epochs=4", "train.batch_size=8", "optim.lr=1e-2", "data.passes=4", "loss=ce", "tracking=none"]
    assert train.main([*argv, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    said = [message for message in caplog.messages if "bird" in message or "star" in message]
    assert len(said) == 2
    assert said[0].startswith("the training split has no pixel of bird, so the model cannot learn it.")
    assert said[1].startswith("star: not predicted on any validation image so far, after 50 % of the training.")
