"""What a training step and a validation see."""

from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from segsweep.config.schema import AugmentationConfig, DataConfig
from segsweep.data import windows
from segsweep.data.batches import EvalBatches, Pixels, Sampling, TrainBatches, labelled
from segsweep.data.geometry import Canvas, Placement
from segsweep.data.images import read_image
from segsweep.data.labels import VOID, labels
from segsweep.data.sources import folder
from segsweep.data.store import Store, open_store
from segsweep.world import SINGLE, World

CPU = torch.device("cpu")
CLASSES = labels({0: 1, 1: 1, 2: 1, 3: 1}, ["a", "b", "c", "d"])
RESIZES = ("pad", "squash", "crop")
GEOMETRY = {
    "hflip": 0.5,
    "vflip": 0.5,
    "transpose": 0.5,
    "rotate": 45,
    "scale": 0.5,
    "shear": 10,
    "translate": 0.1,
}
COLOUR = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.4, "hue": 0.05}
MIXED = [(40, 48), (20, 30), (64, 34), (100, 70), (40, 48), (31, 17), (32, 32)]


def blobs(size, classes, seed):
    """Smooth regions of the values 0 to classes - 1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    level = sum(
        np.cos(2 * np.pi * (fy * y + fx * x) + phase)
        for fy, fx, phase in zip(
            rng.uniform(-0.03, 0.03, 3), rng.uniform(-0.03, 0.03, 3), rng.uniform(0, 6, 3), strict=True
        )
    )
    return np.clip(np.floor((level + 3) / 6 * classes), 0, classes - 1).astype(np.uint8)


def stored(root, images, masks):
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        for kind, pixels in (("images", image), ("masks", mask)):
            path = root / kind / f"{i:03d}.{'tif' if pixels.dtype == np.float32 else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return open_store(folder.find(DataConfig(root=str(root))).samples, workers=1)


def noisy(root, sizes, classes=3, channels=3):
    rng = np.random.default_rng(0)
    shapes = [(*size, channels) if channels > 1 else size for size in sizes]
    images = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
    return stored(root, images, [blobs(size, classes, i) for i, size in enumerate(sizes)])


SAMPLING = ("batch_size", "seed", "grad_accum", "passes", "rarity", "foreground", "counts")


def trained(store, meaning=CLASSES, indices=None, *, size=(32, 40), resize="squash", world=SINGLE, **given):
    """Batches of four; `given`: what `Pixels` and `Sampling` take, and `augmentation` as a dict."""
    augmentation, side = AugmentationConfig(**given.pop("augmentation", {})), given.pop("side_stream", False)
    sampling = Sampling(**({"batch_size": 4} | {name: given.pop(name) for name in SAMPLING if name in given}))
    pixels = Pixels(store, meaning, **({"device": CPU} | given))
    chosen = range(len(store.rows)) if indices is None else indices
    made = TrainBatches(pixels, chosen, Canvas(size, resize), sampling, augmentation, world)
    return replace(made, side_stream=side)


def evaluated(store, meaning=CLASSES, indices=None, *, size=(32, 40), resize="squash", batch_size=4):
    chosen = range(len(store.rows)) if indices is None else indices
    return EvalBatches(Pixels(store, meaning, CPU), chosen, Canvas(size, resize), batch_size)


def members(size):
    """The processes of a world, as far as batches see them."""
    found = [World() for _ in range(size)]
    for rank, world in enumerate(found):
        world.rank, world.size = rank, size
    return found


def epoch(batches, number=0):
    """One list of micro-batches for each step."""
    return [list(step) for step in batches.epoch(number)]


def joined(micro):
    """Indices, images and masks of a step or of any micro-batches."""
    indices = [i for batch in micro for i in batch.indices]
    return indices, torch.cat([batch.image for batch in micro]), torch.cat([batch.mask for batch in micro])


def everything(batches, number=0):
    return joined([batch for step in epoch(batches, number) for batch in step])


def canvas_points(placement):
    """Image points under the canvas's pixel centres: `h w 2`."""
    height, width = placement.canvas
    x, y = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    return np.stack([x, y], -1) @ placement.linear.T + placement.center


def inside_of(points, size, margin=0.0):
    return ((points >= margin) & (points <= np.array(size[::-1]) - margin)).all(-1)


@pytest.mark.parametrize("size", [(32, 40), (33, 47)])
@pytest.mark.parametrize("resize", RESIZES)
def test_an_image_of_the_canvas_size_comes_as_it_is(tmp_path, size, resize):
    store = noisy(tmp_path, [size] * 6)
    for batches in (trained(store, size=size, resize=resize), evaluated(store, size=size, resize=resize)):
        micro = list(batches) if isinstance(batches, EvalBatches) else [b for step in epoch(batches) for b in step]
        for index, image, mask in zip(*joined(micro), strict=True):
            assert torch.allclose(image, store.image(index).permute(2, 0, 1).float(), atol=1e-2)
            assert torch.equal(mask, store.mask(index).long())


def test_images_are_float_masks_are_class_indices(tmp_path):
    (batch,) = evaluated(noisy(tmp_path, [(40, 48)] * 3))
    assert batch.image.dtype == torch.float32
    assert batch.image.shape == (3, 3, 32, 40)
    assert batch.mask.dtype == torch.int64
    assert batch.mask.shape == (3, 32, 40)
    assert len(batch.placements) == len(batch.indices) == 3


@pytest.mark.parametrize(("dtype", "high"), [(np.uint16, 60000), (np.float32, 1)])
@pytest.mark.parametrize("size", [(32, 32), (100, 120)])
def test_wider_types_keep_their_scale(tmp_path, dtype, high, size):
    image = (np.linspace(0, high, size[0] * size[1]).reshape(size)).astype(dtype)
    store = stored(tmp_path, [image] * 2, [np.ones(size, np.uint8)] * 2)
    (batch,) = evaluated(store, size=(32, 32))
    assert batch.image.shape[1] == 1
    assert np.isclose(batch.image.mean(), image.mean(), rtol=1e-2)
    assert batch.image.max() > 0.95 * high


def test_grey_among_colour_has_three_equal_channels(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape).astype(np.uint8) for shape in [(32, 40), (32, 40, 3)]]
    store = stored(tmp_path, images, [np.ones((32, 40), np.uint8)] * 2)
    (batch,) = evaluated(store)
    assert torch.allclose(batch.image[0], torch.from_numpy(images[0]).float().expand(3, -1, -1), atol=1e-2)
    assert not torch.equal(batch.image[1, 0], batch.image[1, 1])


def test_mask_values_are_mapped_to_classes(tmp_path):
    mask = np.random.default_rng(0).choice(np.array([0, 7, 255], np.uint8), (32, 40))
    store = stored(tmp_path, [mask] * 2, [mask] * 2)
    (batch,) = evaluated(store, labels({0: 1, 255: 1}))
    expected = np.select([mask == 0, mask == 255], [0, 1], VOID)
    assert np.array_equal(batch.mask[0], expected)


def test_the_target_of_a_sample_is_its_own_mask_in_classes(tmp_path):
    masks = [np.random.default_rng(i).choice(np.array([0, 7, 255], np.uint8), (20 + i, 31)) for i in range(3)]
    batches = evaluated(stored(tmp_path, masks, masks), labels({0: 1, 255: 1}))
    found = {i: target for batch in batches for i, target in zip(batch.indices, batch.targets, strict=True)}
    for i, mask in enumerate(masks):
        target = found[i]
        assert target.dtype == torch.int64
        assert np.array_equal(target, np.select([mask == 0, mask == 255], [0, 1], VOID))


def test_padding_is_void_and_nothing_else_is(tmp_path):
    store = noisy(tmp_path, [(30, 60), (60, 30), (64, 64)])
    (batch,) = evaluated(store, size=(64, 64), resize="pad")
    for i, (height, width) in enumerate([(32, 64), (64, 32), (64, 64)]):
        top, left = (64 - height) // 2, (64 - width) // 2
        image_part = torch.zeros(64, 64, dtype=torch.bool)
        image_part[top : top + height, left : left + width] = True
        assert torch.equal(batch.mask[i] != VOID, image_part)


def test_void_lies_exactly_where_the_placement_says_there_is_no_image(tmp_path):
    sizes = [(40, 48), (20, 90), (64, 34)]
    for resize in RESIZES:
        store = noisy(tmp_path / resize, sizes)
        for step in epoch(trained(store, resize=resize, batch_size=3, augmentation=GEOMETRY)):
            for batch in step:
                for i, index in enumerate(batch.indices):
                    points = canvas_points(batch.placements[i])
                    void = batch.mask[i].numpy() == VOID
                    assert not void[inside_of(points, sizes[index], 1e-3)].any()
                    assert void[~inside_of(points, sizes[index], -1e-3)].all()


def test_eval_canvases_of_small_images_in_crops_are_the_image_and_void(tmp_path):
    sizes = [(20, 30), (12, 40), (40, 16), (32, 32)]
    store = noisy(tmp_path, sizes)
    for batch in evaluated(store, resize="crop"):
        for i, index in enumerate(batch.indices):
            height, width = sizes[index]
            assert batch.mask.shape[1:] == (max(32, height), max(32, width))
            top, left = (batch.mask.shape[1] - height) // 2, (batch.mask.shape[2] - width) // 2
            part = (slice(top, top + height), slice(left, left + width))
            assert torch.equal(batch.mask[i][part], store.mask(index).long())
            assert (batch.mask[i] != VOID).sum() == height * width
            assert torch.allclose(batch.image[i][:, *part], store.image(index).permute(2, 0, 1).float(), atol=1e-2)


def test_eval_canvases_of_small_odd_images_in_crops_have_as_many_labels_as_the_image_has_pixels(tmp_path):
    sizes = [(31, 17), (31, 40), (40, 23)]
    store = noisy(tmp_path, sizes)
    for batch in evaluated(store, resize="crop"):
        for i, index in enumerate(batch.indices):
            found, n = np.unique(batch.mask[i][batch.mask[i] != VOID], return_counts=True)
            assert dict(zip(found.tolist(), n.tolist(), strict=True)) == store.rows[index].values


@pytest.mark.parametrize("size", [(20, 24), (64, 80)])
def test_train_crops_are_cut_from_the_image_pixel_on_pixel(tmp_path, size):
    store = noisy(tmp_path, [size] * 4)
    indices, images, masks = everything(trained(store, resize="crop"))
    for index, image, mask in zip(indices, images, masks, strict=True):
        whole = store.image(index).permute(2, 0, 1).float()
        assert mask.shape == (32, 40)
        pixels = image[:, mask != VOID].T.round()
        assert len(pixels) == min(size[0], 32) * min(size[1], 40)
        own = {tuple(pixel) for pixel in whole.flatten(1).T.tolist()}
        assert all(tuple(pixel) in own for pixel in pixels.tolist())


def test_train_crops_lie_all_over_the_image(tmp_path):
    y, x = np.mgrid[:100, :120]
    image = np.stack([x, y, x], -1).astype(np.uint8)
    store = stored(tmp_path, [image] * 60, [np.ones((100, 120), np.uint8)] * 60)
    _, images, _ = everything(trained(store, resize="crop"))
    left, top = images[:, 0].amin((1, 2)), images[:, 1].amin((1, 2))
    assert left.min() < 8
    assert left.max() > 72
    assert top.min() < 7
    assert top.max() > 61
    assert abs(np.corrcoef(left, top)[0, 1]) < 0.4


@pytest.mark.parametrize("resize", RESIZES)
def test_ramps_are_where_the_placements_say(tmp_path, resize):
    sizes = [(48, 60), (90, 37), (200, 170), (20, 24)]
    images = []
    for height, width in sizes:
        y, x = np.mgrid[:height, :width] + 0.5
        images.append(np.stack([x, y, 100 + 0.3 * x - 0.4 * y], -1).round().astype(np.uint8))
    store = stored(tmp_path, images, [np.ones(size, np.uint8) for size in sizes])
    for step in epoch(trained(store, resize=resize, augmentation=GEOMETRY)):
        for batch in step:
            for i, index in enumerate(batch.indices):
                points = canvas_points(batch.placements[i])
                x, y = points[..., 0], points[..., 1]
                expected = np.stack([x, y, 100 + 0.3 * x - 0.4 * y])
                coarse = np.linalg.norm(batch.placements[i].linear, axis=1).max()
                seen = inside_of(points, sizes[index], 1 + coarse)
                assert seen.any()
                assert np.abs(batch.image[i].numpy() - expected)[:, seen].max() < 1.1


@pytest.mark.parametrize("resize", RESIZES)
def test_masks_hold_the_value_under_the_placement(tmp_path, resize):
    sizes = [(48, 60), (37, 41), (60, 33)]
    store = noisy(tmp_path, sizes, 4)
    size = (48, 60)
    for step in epoch(trained(store, size=size, resize=resize, batch_size=3, augmentation={**GEOMETRY, "scale": 0})):
        for batch in step:
            for i, index in enumerate(batch.indices):
                points = canvas_points(batch.placements[i])
                seen = inside_of(points, sizes[index], 1e-3) & (np.abs(points - points.round()) > 1e-3).all(-1)
                x, y = np.floor(points).astype(int)[seen].T
                assert np.array_equal(batch.mask[i].numpy()[seen], store.mask(index).numpy()[y, x])


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("sizes", [[(48, 60)] * 8, [(300, 260)] * 4 + [(40, 50)] * 4])
def test_image_and_mask_stay_aligned(tmp_path, resize, sizes):
    masks = [blobs(size, 2, i) for i, size in enumerate(sizes)]
    store = stored(tmp_path, [mask * 200 for mask in masks], masks)
    batches = trained(store, size=(64, 64), resize=resize, augmentation=GEOMETRY)
    for number in range(2):
        _, images, found = everything(batches, number)
        counted = found != VOID
        agree = (images[:, 0] > 100) == (found == 1)
        assert 0.05 < (found == 1)[counted].float().mean() < 0.95
        assert agree[counted].float().mean() > 0.97


@pytest.mark.parametrize("resize", RESIZES)
def test_no_label_is_invented(tmp_path, resize):
    sizes = [(48, 60), (200, 150), (20, 30), (33, 100)]
    masks = [np.where(blobs(size, 2, i) > 0, 3, i % 2).astype(np.uint8) for i, size in enumerate(sizes)]
    store = stored(tmp_path, masks, masks)
    batches = trained(store, resize=resize, augmentation=GEOMETRY | COLOUR | {"blur": 1.0, "noise": 0.1})
    for number in range(3):
        indices, _, found = everything(batches, number)
        for index, mask in zip(indices, found, strict=True):
            assert set(mask.unique().tolist()) <= set(np.unique(masks[index]).tolist()) | {VOID}


@pytest.mark.parametrize(("flip", "axis"), [("hflip", -1), ("vflip", -2)])
@pytest.mark.parametrize(("size", "resize"), [((32, 40), "squash"), ((64, 80), "pad"), ((30, 36), "pad")])
def test_flips_flip_image_and_mask(tmp_path, flip, axis, size, resize):
    store = noisy(tmp_path, [size] * 6)
    plain, flipped = (everything(trained(store, resize=resize, augmentation={flip: chance})) for chance in (0, 1))
    assert plain[0] == flipped[0]
    assert torch.allclose(flipped[1], plain[1].flip(axis), atol=1e-2)
    if resize == "squash":
        assert torch.equal(flipped[2], plain[2].flip(axis))


def test_flips_commute(tmp_path):
    store = noisy(tmp_path, [(32, 40)] * 6)
    _, plain, mask = everything(trained(store))
    _, both, both_mask = everything(trained(store, augmentation={"hflip": 1, "vflip": 1}))
    assert torch.allclose(both, plain.flip(-1, -2), atol=1e-2)
    assert torch.equal(both_mask, mask.flip(-1, -2))


def test_transpose_swaps_rows_and_columns(tmp_path):
    store = noisy(tmp_path, [(40, 40)] * 6)
    _, plain, mask = everything(trained(store, size=(40, 40)))
    _, swapped, swapped_mask = everything(trained(store, size=(40, 40), augmentation={"transpose": 1}))
    assert torch.allclose(swapped, plain.mT, atol=1e-2)
    assert torch.equal(swapped_mask, mask.mT)


def test_shifts_are_shares_of_the_canvas(tmp_path):
    store = noisy(tmp_path, [(64, 192)] * 60)
    shifts = []
    for step in epoch(trained(store, size=(32, 96), augmentation={"translate": 0.1})):
        shifts += [(p.center - (96, 32)) / (192, 64) for batch in step for p in batch.placements]
    assert (np.abs(shifts).max(0) <= 0.1).all()
    assert (np.abs(shifts).max(0) > 0.08).all()


def test_turns_are_turns_on_the_canvas_however_the_image_is_stretched(tmp_path):
    store = noisy(tmp_path, [(40, 100), (90, 33)] * 2)
    for step in epoch(trained(store, augmentation={"rotate": 40})):
        for batch in step:
            for index, placement in zip(batch.indices, batch.placements, strict=True):
                row = store.rows[index]
                turn = np.diag([40 / row.width, 32 / row.height]) @ placement.linear
                assert np.allclose(turn @ turn.T, np.eye(2))
                assert not np.allclose(turn, np.eye(2))


def test_colours_do_not_move_the_mask(tmp_path):
    store = noisy(tmp_path, [(32, 40)] * 6)
    indices, plain, mask = everything(trained(store))
    others, coloured, same = everything(trained(store, augmentation=COLOUR | {"blur": 1.0, "noise": 0.1}))
    assert indices == others
    assert torch.equal(mask, same)
    assert not torch.allclose(plain, coloured, atol=10)


@pytest.mark.parametrize("resize", ["pad", "squash"])
@pytest.mark.parametrize("size", [(1000, 1000), (999, 1001), (130, 70)])
def test_shrinking_keeps_the_mean_colour(tmp_path, resize, size):
    y, x = np.mgrid[: size[0], : size[1]]
    smooth = np.stack([x / size[1], y / size[0], (x + y) / sum(size)], -1) * 150 + 30
    image = (smooth + np.random.default_rng(0).uniform(-30, 30, smooth.shape)).round().astype(np.uint8)
    store = stored(tmp_path, [image], [np.ones(size, np.uint8)])
    (batch,) = evaluated(store, size=(64, 64), resize=resize)
    counted = batch.mask[0] != VOID
    assert np.allclose(batch.image[0][:, counted].mean(1), image.reshape(-1, 3).mean(0), atol=1.5)


def test_shrinking_skips_no_pixel(tmp_path):
    stripes = np.zeros((1000, 1000), np.uint8)
    stripes[:, ::2] = 255
    store = stored(tmp_path, [stripes, stripes.T.copy()], [np.ones_like(stripes)] * 2)
    (batch,) = evaluated(store, size=(64, 64))
    assert (batch.image - 127.5).abs().max() < 12


@pytest.mark.parametrize("size", [(101, 135), (190, 97), (331, 333)])
def test_shrinking_does_not_move_the_image(tmp_path, size):
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    image = np.stack([x / size[1], y / size[0], x / size[1]], -1) * 250
    store = stored(tmp_path, [image.round().astype(np.uint8)], [np.ones(size, np.uint8)])
    (batch,) = evaluated(store, size=(32, 40))
    middle = (np.arange(40) + 0.5) / 40 * 250, (np.arange(32) + 0.5) / 32 * 250
    assert np.abs(batch.image[0, 0].numpy() - middle[0])[:, 1:-1].max() < 2
    assert np.abs(batch.image[0, 1].numpy() - middle[1][:, None])[1:-1].max() < 2


def test_a_shrunk_image_and_its_mirror_image_are_mirrored(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (96, 120, 3)).astype(np.uint8)
    mask = blobs((96, 120), 3, 0)
    store = stored(tmp_path, [image, image[:, ::-1]], [mask, mask[:, ::-1]])
    (batch,) = evaluated(store)
    assert torch.allclose(batch.image[0], batch.image[1].flip(-1), atol=1)
    assert (batch.mask[0] == batch.mask[1].flip(-1)).float().mean() > 0.97


def test_what_a_sample_looks_like_does_not_depend_on_its_neighbours(tmp_path):
    store = noisy(tmp_path, MIXED)
    for resize in ("pad", "squash"):
        together = joined(list(evaluated(store, resize=resize, batch_size=7)))
        alone = joined(list(evaluated(store, resize=resize, batch_size=1)))
        assert together[0] == alone[0]
        assert torch.allclose(together[1], alone[1], atol=1e-2)
        assert torch.equal(together[2], alone[2])


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_eval_shows_every_sample_exactly_once(tmp_path, resize, batch_size):
    store = noisy(tmp_path, MIXED)
    batches = list(evaluated(store, resize=resize, batch_size=batch_size))
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(MIXED)))
    assert all(1 <= len(batch.indices) <= batch_size for batch in batches)
    if resize != "crop":
        assert all(batch.image.shape[2:] == (32, 40) for batch in batches)


def test_eval_shows_the_chosen_samples_only_and_in_their_order(tmp_path):
    store = noisy(tmp_path, MIXED)
    assert joined(list(evaluated(store, indices=[5, 0, 3, 6], batch_size=3)))[0] == [5, 0, 3, 6]


def test_eval_can_be_repeated(tmp_path):
    batches = evaluated(noisy(tmp_path, MIXED))
    first, second = joined(list(batches)), joined(list(batches))
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])


def test_eval_crops_show_the_whole_image_pixel_on_pixel(tmp_path):
    sizes = [(40, 48), (64, 34), (101, 71), (40, 48)]
    store = noisy(tmp_path, sizes)
    for batch in evaluated(store, resize="crop"):
        for i, index in enumerate(batch.indices):
            assert torch.allclose(batch.image[i], store.image(index).permute(2, 0, 1).float(), atol=1e-2)
            assert torch.equal(batch.mask[i], store.mask(index).long())


def test_half_as_large_is_the_mean_of_four_and_targets_stay(tmp_path):
    store = noisy(tmp_path, [(80, 96), (64, 128)])
    batches = EvalBatches(Pixels(store, CLASSES, CPU), range(2), Canvas((32, 40), "crop", 0.5), 4)
    for batch in batches:
        for i, index in enumerate(batch.indices):
            means = torch.nn.functional.avg_pool2d(store.image(index).permute(2, 0, 1)[None].float(), 2)[0]
            assert torch.allclose(batch.image[i], means, atol=0.51)  # rounded to whole numbers
            assert torch.equal(batch.targets[i], store.mask(index).long())


def test_zoomed_training_crops_are_of_the_zoomed_image(tmp_path):
    image = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8), 2, 0), 2, 1)
    store = stored(tmp_path, [image], [image[..., 0] % 3])
    pixels = Pixels(store, CLASSES, CPU)
    batches = TrainBatches(pixels, [0], Canvas((32, 40), "crop", 0.5), Sampling(4, passes=8, foreground=0.5))
    small = torch.from_numpy(image[::2, ::2]).permute(2, 0, 1).float()
    patches = small.unfold(1, 32, 1).unfold(2, 40, 1).flatten(1, 2)
    exact = [(patches - crop[:, None]).abs().amax((0, 2, 3)).min() < 0.51 for crop in everything(batches)[1]]
    assert any(exact)  # those that begin at an even pixel
    assert not all(exact)  # others lie between


def test_eval_crops_take_fewer_large_images_at_once(tmp_path):
    store = noisy(tmp_path, [(32, 40)] * 8 + [(64, 80)] * 8)
    numbers = {batch.image.shape[2:]: len(batch.indices) for batch in evaluated(store, resize="crop", batch_size=8)}
    assert numbers == {(32, 40): 8, (64, 80): 2}


@pytest.mark.parametrize(("n", "batch_size"), [(8, 4), (9, 4), (4, 4), (5, 1), (13, 6)])
def test_every_epoch_shows_every_sample_and_every_batch_is_full(tmp_path, n, batch_size):
    batches = trained(noisy(tmp_path, [(32, 40)] * n), batch_size=batch_size)
    for number in range(3):
        steps = epoch(batches, number)
        assert len(steps) == len(batches) == -(-n // batch_size)
        assert all(len(joined(step)[0]) == batch_size for step in steps)
        shown = [i for step in steps for i in joined(step)[0]]
        assert sorted(shown[:n]) == list(range(n))


@pytest.mark.parametrize("batch_size", [4, 5, 16])
def test_an_epoch_of_several_passes_shows_every_sample_in_each(tmp_path, batch_size):
    batches = trained(noisy(tmp_path, [(32, 40)] * 6), batch_size=batch_size, passes=3)
    steps = epoch(batches, 1)
    assert len(steps) == len(batches) == -(-18 // batch_size)
    shown = [i for step in steps for i in joined(step)[0]]
    passes = [shown[start : start + 6] for start in (0, 6, 12)]
    assert all(sorted(one) == list(range(6)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_a_batch_may_be_larger_than_the_set(tmp_path):
    ((batch,),) = epoch(trained(noisy(tmp_path, [(32, 40)] * 3), batch_size=8))
    counts = np.bincount(batch.indices)
    assert sorted(counts.tolist()) == [2, 3, 3]


def test_training_shows_the_chosen_samples_only(tmp_path):
    batches = trained(noisy(tmp_path, [(32, 40)] * 9), indices=[1, 4, 7, 8])
    assert set(everything(batches)[0]) == {1, 4, 7, 8}


def test_the_same_epoch_gives_the_same_batches_whatever_came_before(tmp_path):
    store = noisy(tmp_path, [(40, 48)] * 10)
    settings = {"augmentation": GEOMETRY | COLOUR | {"blur": 1.0, "noise": 0.1}, "resize": "crop", "seed": 7}
    one, two = trained(store, **settings), trained(store, **settings)
    for number in range(3):
        everything(one, number)
    first, second = everything(one, 2), everything(two, 2)
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[2], second[2])


def test_batches_do_not_touch_the_global_generators(tmp_path):
    store = noisy(tmp_path, [(40, 48)] * 4)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    everything(trained(store, augmentation=GEOMETRY | COLOUR | {"noise": 0.1}))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


@pytest.mark.parametrize("changed", [{"number": 1}, {"seed": 1}])
def test_another_epoch_or_seed_gives_another_order_and_other_draws(tmp_path, changed):
    store = noisy(tmp_path, [(32, 40)] * 40)
    number, seed = changed.get("number", 0), changed.get("seed", 0)
    plain = everything(trained(store, augmentation=GEOMETRY))
    other = everything(trained(store, augmentation=GEOMETRY, seed=seed), number)
    assert plain[0] != other[0]
    of_plain, of_other = (dict(zip(found[0], found[1], strict=True)) for found in (plain, other))
    assert not any(torch.allclose(of_plain[i], of_other[i], atol=1) for i in of_plain)


def test_every_step_has_its_own_draws(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3)).astype(np.uint8)
    store = stored(tmp_path, [image] * 12, [np.ones((32, 40), np.uint8)] * 12)
    _, images, _ = everything(trained(store, augmentation={"rotate": 30, "scale": 0.5}))
    assert len(torch.unique(images.flatten(1).round(), dim=0)) == 12


def same_samples(ones, others, atol=1e-2):
    """The two lists of micro-batches hold the same samples with the same pixels, in whatever order."""
    for step, other in zip(ones, others, strict=True):
        left, right = (
            sorted(zip(*joined(s), strict=True), key=lambda each: (each[0], float(each[1].sum())))
            for s in (step, other)
        )
        assert [each[0] for each in left] == [each[0] for each in right]
        for (_, image, mask), (_, other_image, other_mask) in zip(left, right, strict=True):
            assert torch.allclose(image, other_image, atol=atol)
            assert torch.equal(mask, other_mask)


SPREAD = [{}, GEOMETRY | COLOUR, {"blur": 1.5}]


@pytest.mark.parametrize("augmentation", SPREAD, ids=["plain", "warped", "blurred"])
@pytest.mark.parametrize("sizes", [[(40, 48)] * 10, [*MIXED, (90, 90)]], ids=["one-size", "mixed"])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_batch_of_one_process(tmp_path, augmentation, sizes, world):
    store = noisy(tmp_path, sizes)
    whole = epoch(trained(store, augmentation=augmentation))
    ranks = [epoch(trained(store, augmentation=augmentation, world=member)) for member in members(world)]
    assert {len(joined(step)[0]) for rank in ranks for step in rank} == {4 // world}
    same_samples(whole, [[b for part in parts for b in part] for parts in zip(*ranks, strict=True)], 0.05)


@pytest.mark.parametrize("augmentation", SPREAD, ids=["plain", "warped", "blurred"])
@pytest.mark.parametrize("grad_accum", [2, 4])
def test_micro_batches_make_up_the_batch(tmp_path, augmentation, grad_accum):
    store = noisy(tmp_path, MIXED)
    whole = epoch(trained(store, augmentation=augmentation))
    cut = epoch(trained(store, augmentation=augmentation, grad_accum=grad_accum))
    assert all(len(step) == grad_accum for step in cut)
    assert {len(batch.indices) for step in cut for batch in step} == {4 // grad_accum}
    same_samples(whole, cut, 0.05)


@pytest.mark.parametrize(("size", "grad_accum"), [(2, 1), (3, 1), (6, 1), (2, 3)])
def test_processes_take_the_micro_batches_of_one_to_the_last_bit(tmp_path, size, grad_accum):
    store = noisy(tmp_path, [*MIXED, (90, 90)])
    settings = {"augmentation": GEOMETRY | COLOUR | {"blur": 1.0, "noise": 0.1}, "batch_size": 7, "resize": "crop"}
    settings["foreground"] = 0.5
    whole = epoch(trained(store, grad_accum=size * grad_accum, **settings), 2)
    each = [epoch(trained(store, grad_accum=grad_accum, world=member, **settings), 2) for member in members(size)]
    shared = [[batch for part in parts for batch in part] for parts in zip(*each, strict=True)]
    for ones, others in zip(whole, shared, strict=True):
        for one, other in zip(ones, others, strict=True):
            assert one.indices == other.indices
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.mask, other.mask)


def test_ranks_and_micro_batches_have_noise_of_their_own(tmp_path):
    image = np.full((32, 40, 3), 128, np.uint8)
    store = stored(tmp_path, [image] * 16, [np.ones((32, 40), np.uint8)] * 16)
    settings = {"augmentation": {"noise": 0.1}, "batch_size": 16, "grad_accum": 2}
    images = torch.cat([everything(trained(store, world=member, **settings))[1] for member in members(2)]).flatten(1)
    noisy_ones = images[images.std(1) > 1].numpy()
    assert len(noisy_ones) > 3
    assert np.abs(np.corrcoef(noisy_ones) - np.eye(len(noisy_ones))).max() < 0.2


# Crops laid over the foreground.

BINARY = labels({0: 1, 1: 1})
SPOTS = [(0, 0), (0, 119), (89, 0), (89, 119), (45, 60), (0, 60), (45, 119), (31, 39)]
TALL = [(90, 120), (90, 120), (90, 120), (90, 120), (90, 120), (50, 61), (46, 200), (32, 40)]


def spotted(root, sizes=TALL, spots=SPOTS, value=1, beside=()):
    """Images with one foreground pixel each, in a corner or elsewhere; and void all over `beside`."""
    masks = []
    for size, (y, x) in zip(sizes, spots, strict=True):
        mask = np.zeros(size, np.uint8)
        for part in beside:
            mask[part] = 255
        mask[min(y, size[0] - 1), min(x, size[1] - 1)] = value
        masks.append(mask)
    rng = np.random.default_rng(0)
    return stored(root, [rng.integers(0, 256, (*mask.shape, 3)).astype(np.uint8) for mask in masks], masks)


def cropped(store, meaning=BINARY, **given):
    return trained(store, meaning, **({"resize": "crop", "foreground": 1.0} | given))


def shown(batches, epochs=range(1)):
    """Index, mask and placement of every canvas."""
    for number in epochs:
        for step in epoch(batches, number):
            for batch in step:
                yield from zip(batch.indices, batch.mask, batch.placements, strict=True)


@pytest.mark.parametrize("flips", [{}, {"hflip": 0.5, "vflip": 0.5}], ids=["plain", "flipped"])
def test_every_crop_of_an_image_with_foreground_holds_some(tmp_path, flips):
    store = spotted(tmp_path)
    found = list(shown(cropped(store, augmentation=flips), range(25)))
    assert len(found) == 25 * 8
    assert all((mask == 1).any() for _, mask, _ in found)
    plain = list(shown(cropped(store, foreground=0.0), range(25)))
    assert sum(bool((mask == 1).any()) for _, mask, _ in plain) < 0.6 * len(plain)


def test_crops_over_the_foreground_lie_on_the_image_pixel_on_pixel(tmp_path):
    store = spotted(tmp_path)
    for index, mask, placement in shown(cropped(store), range(10)):
        assert not (mask == VOID).any()
        corner = placement.center - (20, 16)
        assert np.array_equal(placement.linear, np.eye(2))
        assert np.array_equal(corner, corner.round())
        assert (corner >= 0).all()
        assert (corner + np.array((40, 32)) <= TALL[index][::-1]).all()
        x, y = corner.astype(int)
        assert torch.equal(mask, store.mask(index)[y : y + 32, x : x + 40].long())


def test_the_foreground_may_lie_anywhere_in_its_crop(tmp_path):
    store = spotted(tmp_path, [(200, 200)], [(100, 100)])
    places = [(mask == 1).nonzero()[0].tolist() for _, mask, _ in shown(cropped(store, batch_size=1), range(200))]
    y, x = np.array(places).T
    for where, length in ((y, 32), (x, 40)):
        assert (where.min(), where.max()) < (3, length)
        assert where.max() > length - 4
        assert abs(where.mean() - (length - 1) / 2) < 0.1 * length
    assert abs(np.corrcoef(y, x)[0, 1]) < 0.2


def test_every_foreground_pixel_may_be_the_one(tmp_path):
    pixels = [(5, 5), (5, 150), (150, 5), (150, 150)]
    mask = np.zeros((160, 160), np.uint8)
    for y, x in pixels:
        mask[y, x] = 1
    store = stored(tmp_path, [mask * 200], [mask])
    seen = np.zeros(4)
    for _, _, placement in shown(cropped(store, batch_size=1), range(80)):
        seen += [(np.abs(placement.center - (x + 0.5, y + 0.5)) <= (20, 16)).all() for y, x in pixels]
    assert seen.sum() == 80
    assert seen.min() > 8


def test_a_crops_place_is_not_lost_in_rounding(tmp_path):
    """Of n + 1 places, the floats of i / (n + 1) * (n + 1) fall below i for these n and i."""
    rounded = [(21, 15), (22, 13), (25, 15), (38, 31), (42, 23), (43, 15), (44, 26)]
    store = spotted(tmp_path, [(32, 40 + n) for n, _ in rounded], [(16, i + 39) for _, i in rounded])
    assert all((mask == 1).any() for _, mask, _ in shown(cropped(store, batch_size=7), range(60)))


def test_images_smaller_than_the_crop_are_shown_whole(tmp_path):
    sizes = [(20, 30), (20, 100), (100, 30), (31, 39)]
    store = spotted(tmp_path, sizes, [(19, 29), (0, 99), (99, 0), (3, 3)])
    for index, mask, _ in shown(cropped(store), range(10)):
        height, width = sizes[index]
        assert (mask != VOID).sum() == min(height, 32) * min(width, 40)
        assert (mask == 1).sum() == 1


def test_images_without_foreground_are_cropped_as_before(tmp_path):
    store = spotted(tmp_path, value=0)
    for one, other in zip(shown(cropped(store)), shown(cropped(store, foreground=0.0)), strict=True):
        assert one[0] == other[0]
        assert np.array_equal(one[2].center, other[2].center)


def test_void_is_no_foreground(tmp_path):
    meaning = labels({0: 1, 1: 1, 255: 1})
    store = spotted(tmp_path, [(90, 120)] * 4, [(0, 0)] * 4, beside=[np.s_[60:, 80:]])
    assert all((mask == 1).any() for _, mask, _ in shown(cropped(store, meaning), range(10)))


def test_an_image_of_void_alone_is_cropped_as_before(tmp_path):
    store = spotted(tmp_path, [(90, 120)] * 4, [(0, 0)] * 4, value=255, beside=[np.s_[:, :]])
    meaning = labels({0: 1, 1: 1, 255: 1})
    for one, other in zip(shown(cropped(store, meaning)), shown(cropped(store, meaning, foreground=0.0)), strict=True):
        assert np.array_equal(one[2].center, other[2].center)


@pytest.mark.parametrize(("counts", "share"), [((), 0.5), ((9, 10, 0, 30), 0.75)])
def test_the_fewer_pixels_a_class_has_the_likelier_is_a_crop_over_it(tmp_path, counts, share):
    """Two far single pixels in a sea of background, which no crop is laid over."""
    mask = np.zeros((300, 300), np.uint8)
    mask[10, 10], mask[290, 280] = 1, 3
    batches = cropped(stored(tmp_path, [mask], [mask]), CLASSES, batch_size=1, counts=counts)
    found = [set(mask.unique().tolist()) for _, mask, _ in shown(batches, range(300))]
    assert sum(1 in each for each in found) / 300 == pytest.approx(share, abs=0.1)
    assert all((1 in each) != (3 in each) for each in found)


@pytest.mark.parametrize("foreground", [0.3, 0.7])
def test_the_share_of_crops_over_the_foreground_is_what_was_asked_for(tmp_path, foreground):
    """The others are those that there were without."""
    store = spotted(tmp_path, [(400, 500)] * 8, [(399, 499)] * 8)
    plain, some = (list(shown(cropped(store, foreground=f), range(40))) for f in (0.0, foreground))
    assert [i for i, _, _ in plain] == [i for i, _, _ in some]
    moved = [not np.array_equal(a.center, b.center) for (_, _, a), (_, _, b) in zip(plain, some, strict=True)]
    assert all((mask == 1).any() for (_, mask, _), here in zip(some, moved, strict=True) if here)
    assert abs(np.mean(moved) - foreground) < 0.1


def test_more_foreground_moves_the_same_crops_and_then_more(tmp_path):
    store = spotted(tmp_path, [(400, 500)] * 8, [(399, 499)] * 8)
    none, few, many = (
        [p.center.tolist() for _, _, p in shown(cropped(store, foreground=f), range(5))] for f in (0.0, 0.4, 1.0)
    )
    assert all(b in (a, c) for a, b, c in zip(none, few, many, strict=True))
    assert few not in (none, many)


def test_without_foreground_the_draws_are_as_before(tmp_path):
    store = noisy(tmp_path, [(90, 120)] * 6)
    settings = {"resize": "crop", "augmentation": GEOMETRY | COLOUR | {"noise": 0.1}}
    plain, none = everything(trained(store, **settings)), everything(trained(store, foreground=0.0, **settings))
    assert plain[0] == none[0]
    assert torch.equal(plain[1], none[1])
    assert torch.equal(plain[2], none[2])


def test_crops_over_the_foreground_leave_all_other_draws_alone(tmp_path):
    store = noisy(tmp_path, [(32, 40)] * 8, classes=2)  # one crop is possible
    settings = {"resize": "crop", "augmentation": {**GEOMETRY, **COLOUR, "noise": 0.1, "blur": 1.0}}
    plain, over = (everything(cropped(store, foreground=f, **settings)) for f in (0.0, 1.0))
    assert plain[0] == over[0]
    assert torch.equal(plain[1], over[1])
    assert torch.equal(plain[2], over[2])


@pytest.mark.parametrize(("size", "grad_accum"), [(2, 1), (4, 1), (1, 2), (2, 2)])
def test_any_split_of_the_batch_shows_the_same_crops_over_the_foreground(tmp_path, size, grad_accum):
    store = spotted(tmp_path)
    settings = {"augmentation": GEOMETRY | COLOUR, "foreground": 0.6}
    whole = epoch(cropped(store, **settings), 3)
    ranks = [epoch(cropped(store, world=w, grad_accum=grad_accum, **settings), 3) for w in members(size)]
    same_samples(whole, [[b for part in parts for b in part] for parts in zip(*ranks, strict=True)], 0.05)


def test_crops_over_the_foreground_are_the_same_whatever_epochs_came_before(tmp_path):
    store = spotted(tmp_path)
    one, two = (cropped(store, foreground=0.6, seed=7) for _ in range(2))
    for number in range(3):
        everything(one, number)
    first, second = everything(one, 3), everything(two, 3)
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[2], everything(two, 4)[2])
    assert not torch.equal(first[2], everything(cropped(store, foreground=0.6, seed=8), 3)[2])


def test_crops_over_the_foreground_do_not_touch_the_global_generators(tmp_path):
    store = spotted(tmp_path)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    everything(cropped(store))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_few_steps_are_prepared_ahead(tmp_path, monkeypatch):
    store = noisy(tmp_path, [(32, 40)] * 40)
    cut = []
    pair = store.pair
    monkeypatch.setattr(store, "pair", lambda index: cut.append(index) or pair(index))
    batches = trained(store, batch_size=2, workers=2)
    with closing(batches.epoch(0)) as steps:
        assert not cut
        next(next(steps))
        next(next(steps))
    assert 4 <= len(cut) <= 2 * (2 + 2 + 1)  # two steps, and one more than there are threads ahead


def test_what_a_thread_runs_into_is_raised(tmp_path, monkeypatch):
    store = noisy(tmp_path, [(32, 40)] * 8)
    monkeypatch.setattr(store, "pair", None)
    with pytest.raises(TypeError):
        list(evaluated(store))
    with closing(trained(store).epoch(0)) as steps, pytest.raises(TypeError):
        next(next(steps))


@pytest.mark.parametrize("workers", (1, 2, 5))
def test_threads_change_nothing(tmp_path, workers):
    store = noisy(tmp_path, [(32, 40), (50, 33), (20, 64)] * 4)
    alone, together = (everything(trained(store, workers=n, grad_accum=2)) for n in (1, workers))
    assert alone[0] == together[0]
    assert torch.equal(alone[1], together[1])
    assert torch.equal(alone[2], together[2])


def test_a_part_of_a_shrunk_image_shows_what_the_whole_one_shows():
    """Blocks are averaged before the warp, the same ones wherever a window begins: tiles agree with each other."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (66, 66, 3)).astype(np.uint8))
    mask, linear = torch.zeros(66, 66, dtype=torch.uint8), 3.3 * np.eye(2)

    def seen(center, side):
        placement = Placement(linear, np.array([center, center]), (side, side))
        cut = windows.stack([windows.cut(image, mask, placement)], 3)
        return windows.warped(*cut.on(CPU), windows.centres((side, side), CPU))[0]

    assert torch.allclose(seen(39.6, 10), seen(33.0, 20)[..., 7:17, 7:17], atol=1e-3)


def test_bright_squares_are_the_foreground(pairs):
    store = open_store(folder.find(DataConfig(root=str(pairs(6, grey=True)))).samples, workers=1)
    (first, *_) = evaluated(store, labels(store.counts()), size=(40, 48))
    assert set(first.mask.unique().tolist()) == {0, 1}
    assert torch.equal(first.image[0, 0] >= 120, first.mask[0] == 1)


def test_a_batch_holds_the_pixels_of_the_files(pairs):
    samples = folder.find(DataConfig(root=str(pairs(3)))).samples
    (batch,) = evaluated(open_store(samples, workers=1), size=(40, 48))
    for i, index in enumerate(batch.indices):
        assert np.allclose(batch.image[i].permute(1, 2, 0), read_image(samples[index].image), atol=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("resident", (True, False), ids=("on the device", "pinned"))
def test_a_gpu_makes_the_same_batches(tmp_path, resident):
    """Noise apart, which is drawn on the device."""
    gpu = torch.device("cuda")
    store = noisy(tmp_path, [(32, 40), (50, 33), (20, 64)] * 4)
    given = {
        "hflip": 0.5,
        "rotate": 20,
        "scale": 0.2,
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.2,
        "hue": 0.1,
    }
    given["blur"] = 1.0
    expected = everything(trained(store, augmentation=given))
    found = everything(trained(store.to(gpu) if resident else store, augmentation=given, device=gpu))
    assert found[0] == expected[0]
    assert torch.allclose(found[1].cpu(), expected[1], atol=0.05)
    assert (found[2].cpu() != expected[2]).float().mean() < 1e-3  # a point may lie on the border of two pixels


@pytest.mark.gpu
@pytest.mark.parametrize("resident", (True, False), ids=("on the device", "pinned"))
def test_a_side_stream_makes_the_same_batches(tmp_path, resident):
    gpu = torch.device("cuda")
    store = noisy(tmp_path, [(320, 400), (500, 330), (200, 640)] * 8)
    given = {"augmentation": {"rotate": 20, "blur": 1.0, "noise": 0.1}, "size": (256, 256), "grad_accum": 2}
    batches = trained(store.to(gpu) if resident else store, device=gpu, **given)
    busy = torch.randn(4096, 4096, device=gpu)

    def used(batches):
        """What a training reads while the next batch is made; the memory of each batch is free again after that."""
        found = []
        for number in range(3):
            for step in batches.epoch(number):
                for batch in step:
                    torch.mm(busy, busy)  # so that the side stream is ahead of what reads the batch
                    found.append((batch.indices, batch.image.clone(), batch.mask.clone()))
        torch.cuda.synchronize()
        return found

    for one, other in zip(used(batches), used(replace(batches, side_stream=True)), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])
        assert torch.equal(one[2], other[2])


def test_a_side_stream_orders_what_is_made_and_what_is_used(tmp_path, monkeypatch):
    """Without a GPU: streams, events and records of use are noted, and are as CUDA's rules ask."""
    said = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            said.append(f"{self.name} waits for all of {other.name}")

        def wait_event(self, event):
            said.append(f"{self.name} waits for {event}")

        def record_event(self):
            return f"batch {sum(line.startswith('made') for line in said) - 1}"

    main, side = Stream("main"), Stream("side")
    running = [main]

    @contextmanager
    def on(stream):
        running.append(stream)
        yield
        running.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: running[-1])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: said.append(f"kept for {stream.name}"))
    augmented = TrainBatches._augmented

    def noted(self, *given):
        said.append(f"made on {running[-1].name}")
        return augmented(self, *given)

    monkeypatch.setattr(TrainBatches, "_augmented", noted)
    batches = trained(noisy(tmp_path, [(32, 40)] * 8), grad_accum=2)
    expected = everything(batches)
    said.clear()
    found = everything(replace(batches, side_stream=True))
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[2], expected[2])
    used = [["main waits for batch " + str(i), "kept for main", "kept for main"] for i in range(4)]
    made = "made on side"
    assert said == ["side waits for all of main", made, made, *used[0], made, *used[1], made, *used[2], *used[3]]


def test_rarity_shows_samples_as_often(pairs):
    store = open_store(folder.find(DataConfig(root=str(pairs(8)))).samples)
    rarity = [1, 1, 1, 1, 1, 1, 2, 8]
    settings = {"meaning": labels(store.counts()), "size": (32, 32), "resize": "pad", "rarity": rarity}
    batches = trained(store, **settings)
    shown = np.zeros(8)
    epochs = 40
    for number in range(epochs):
        seen = [i for step in batches.epoch(number) for batch in step for i in batch.indices]
        assert len(seen) == 8
        counts = np.bincount(seen, minlength=8)
        assert (abs(counts - 8 * np.array(rarity) / 16) < 1).all()
        shown += counts
    assert shown / epochs == pytest.approx(8 * np.array(rarity) / 16, abs=0.2)
    seen = [i for step in trained(store, passes=40, **settings).epoch(0) for batch in step for i in batch.indices]
    assert np.bincount(seen, minlength=8) / 40 == pytest.approx(8 * np.array(rarity) / 16, abs=0.2)


def stored_as(root, kind, sizes=MIXED):
    """Images of mixed sizes, some of them grey where the type has grey and colour."""
    rng = np.random.default_rng(1)
    colour = kind == "uint8"
    images = [
        (rng.random((*size, 3) if colour and i % 3 else size) * (250 if colour else 60_000)).astype(kind)
        for i, size in enumerate(sizes)
    ]
    return stored(root, images, [blobs(size, 3, i) for i, size in enumerate(sizes)])


def micro_batches(batches):
    return [batch for step in epoch(batches, 1) for batch in step]


@pytest.fixture
def on_device(monkeypatch):
    """The pixels are where a GPU's would be: they are gathered, not cut one by one."""
    return lambda: monkeypatch.setattr(Store, "on_device", property(lambda self: True))


@pytest.mark.parametrize("kind", ("uint8", "uint16", "float32"))
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("size", ((32, 40), (16, 12)), ids=str)  # the second shrinks by whole factors, too
def test_what_is_gathered_on_a_device_is_what_is_cut_on_the_host(tmp_path, on_device, kind, resize, size):
    store, how = stored_as(tmp_path, kind), {"augmentation": GEOMETRY, "batch_size": 7, "size": size, "resize": resize}
    cut = micro_batches(trained(store, **how))
    whole = list(evaluated(store, size=size, resize=resize))
    on_device()
    for expected, found in zip(
        (*cut, *whole),
        (*micro_batches(trained(store, **how)), *evaluated(store, size=size, resize=resize)),
        strict=True,
    ):
        assert expected.indices == found.indices
        assert torch.equal(expected.mask, found.mask)
        # Beyond a window's edges lie zeros in the one, the edge in the other: coordinates are rounded.
        assert torch.allclose(expected.image, found.image, rtol=1e-4, atol=1e-6)
        assert all(torch.equal(one, other) for one, other in zip(expected.targets, found.targets, strict=True))
        assert len(expected.targets) == len(found.targets)


def test_gathering_in_parts_is_gathering_at_once(tmp_path, on_device, monkeypatch):
    store = stored_as(tmp_path, "uint8")
    on_device()
    how = {"augmentation": GEOMETRY, "batch_size": 7, "resize": "pad", "size": (16, 12)}
    (whole,) = micro_batches(trained(store, **how))
    monkeypatch.setattr(windows, "AT_ONCE", 5000)
    (parts,) = micro_batches(trained(store, **how))
    assert torch.equal(whole.image, parts.image)
    assert torch.equal(whole.mask, parts.mask)


def test_sizes_of_canvases_are_counted(tmp_path):
    store = noisy(tmp_path, [(40, 48), (32, 40), (40, 48)])
    assert [evaluated(store, resize=resize).sizes for resize in ("crop", "pad", "squash")] == [2, 1, 1]


def test_windows_and_targets_that_go_to_a_gpu_lie_in_pinned_memory(tmp_path, monkeypatch):
    """From other memory a copy waits. Here nothing is pinned, only remembered."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self.shape) or self)
    store = noisy(tmp_path, [(40, 48), (40, 48), (32, 40)])
    pixels, canvas = Pixels(store, CLASSES, torch.device("cuda")), Canvas((32, 40), "pad")
    pixels.cut(range(3), [canvas.place(pixels.size(i)) for i in range(3)], whole=True)
    assert len(pinned) == 5, "images, masks and numbers of the windows"
    assert pinned[3:] == [(2, 40, 48), (1, 32, 40)]


def test_calls_do_not_grow_with_the_batch(tmp_path, on_device, calls):
    store = noisy(tmp_path, [(40, 48)] * 16)
    on_device()
    found = []
    pixels, canvas = Pixels(store, CLASSES, CPU), Canvas((32, 40), "crop")
    for n in (4, 4, 16):  # the first finds a canvas's pixel centres
        with calls() as counted:
            pixels.made(pixels.cut(range(n), [canvas.place((40, 48)) for _ in range(n)]), labelled)
        found.append(counted.total)
    assert found[1] == found[2]
