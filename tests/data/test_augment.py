"""Draws, colour, blur and noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from segsweep.config.schema import AugmentationConfig
from segsweep.data.augment import LUMA, Draws, Effects, draw

EVERYTHING = {
    "hflip": 0.5,
    "vflip": 0.5,
    "transpose": 0.5,
    "rotate": 30,
    "scale": 0.5,
    "shear": 10,
    "translate": 0.1,
    "brightness": 0.3,
    "contrast": 0.3,
    "saturation": 0.4,
    "hue": 0.05,
    "blur": 1.0,
    "noise": 0.03,
}
# Which field of the draws an argument is about.
FIELD = {"translate": "shift"} | dict.fromkeys(("hflip", "vflip", "transpose", "rotate", "scale", "shear"), "linear")


def drawn(n=200, seed=0, **arguments):
    return draw(np.random.default_rng(seed), n, AugmentationConfig(**arguments))


def identical(n, **changed):
    """Draws that change nothing but what is given."""
    return Draws(**(vars(drawn(n)) | {name: np.full(n, value) for name, value in changed.items()}))


def recolor(image, draws, low, high):
    """Colours alone."""
    return applied(image, draws, low, high, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1)


def applied(image, draws, low, high, seed=0, **on):
    effects = Effects(AugmentationConfig(**on), image.shape[1], low, high)
    noise = effects.noise(image.shape, image.device, seed)
    return effects(image, torch.from_numpy(effects.numbers(draws)), noise)


def blurred(image, sigma, largest=9.0):
    return applied(image, replace(identical(len(image)), blur=sigma), 0.0, 255.0, blur=largest)


def noised(image, sd, low, high, seed):
    return applied(image, replace(identical(len(image)), noise=sd), low, high, seed, noise=1.0)


def pictures(n=3, c=3, size=(24, 31)):
    return torch.rand(n, c, *size, generator=torch.Generator().manual_seed(0)) * 255


def test_nothing_switched_on_changes_nothing():
    draws = drawn()
    assert np.array_equal(draws.linear, np.tile(np.eye(2), (200, 1, 1)))
    for name in ("brightness", "contrast", "saturation"):
        assert (getattr(draws, name) == 1).all()
    for name in ("shift", "hue", "blur", "noise"):
        assert (getattr(draws, name) == 0).all()


def test_windows_lie_evenly_in_the_unit_square():
    window = drawn(2000).window
    assert window.shape == (2000, 2)
    assert window.min() >= 0
    assert window.max() < 1
    assert np.allclose(window.mean(0), 0.5, atol=0.03)
    assert np.allclose(window.std(0), 1 / np.sqrt(12), atol=0.02)


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_argument_does_something_and_only_to_its_own_field(name):
    off, on = drawn(), drawn(**{name: EVERYTHING[name]})
    for field in vars(off):
        changed = not np.array_equal(getattr(off, field), getattr(on, field))
        assert changed == (field == FIELD.get(name, name))


@pytest.mark.parametrize("name", EVERYTHING)
def test_draws_do_not_depend_on_what_else_is_switched_on(name):
    field = FIELD.get(name, name)
    everything, without = drawn(**EVERYTHING), drawn(**{k: v for k, v in EVERYTHING.items() if k != name})
    for other in vars(everything):
        if other != field:
            assert np.array_equal(getattr(everything, other), getattr(without, other))


def test_the_same_generator_gives_the_same_draws_and_another_others():
    one, two, other = (vars(drawn(seed=seed, **EVERYTHING)) for seed in (1, 1, 2))
    for field in one:
        assert np.array_equal(one[field], two[field])
        assert not np.array_equal(one[field], other[field])


def test_every_image_has_its_own_draw():
    for name, values in vars(drawn(20, **EVERYTHING)).items():
        distinct = len(np.unique(values.reshape(20, -1), axis=0))
        assert distinct > (5 if name in ("blur", "noise") else 19)


def test_rows_of_draws_are_draws():
    draws = drawn(10, **EVERYTHING)
    rows = draws[np.array([7, 2])]
    for field, values in vars(rows).items():
        assert np.array_equal(values, getattr(draws, field)[[7, 2]])


@pytest.mark.parametrize("name", ["hflip", "vflip", "transpose"])
def test_flips_are_certain_at_one_and_undo_themselves(name):
    linear = drawn(**{name: 1.0}).linear
    assert (linear == linear[0]).all()
    assert not np.array_equal(linear[0], np.eye(2))
    assert np.array_equal(linear[0] @ linear[0], np.eye(2))


def test_flips_turn_the_axes_they_are_named_after():
    point = np.array([3.0, 5.0])
    expected = {"hflip": (-3.0, 5.0), "vflip": (3.0, -5.0), "transpose": (5.0, 3.0)}
    for name, mapped in expected.items():
        assert np.array_equal(drawn(1, **{name: 1.0}).linear[0] @ point, mapped)


@pytest.mark.parametrize("chance", [0.0, 0.2, 0.5, 1.0])
def test_flips_come_as_often_as_was_said(chance):
    flipped = drawn(4000, hflip=chance).linear[:, 0, 0] < 0
    assert abs(flipped.mean() - chance) < 0.03


def test_flips_are_independent_of_each_other():
    linear = drawn(4000, hflip=0.5, vflip=0.5).linear
    both = np.stack([linear[:, 0, 0], linear[:, 1, 1]])
    assert abs(np.corrcoef(both)[0, 1]) < 0.05


def test_rotations_are_orthogonal_and_within_the_angle():
    linear = drawn(2000, rotate=30).linear
    assert np.allclose(linear @ linear.swapaxes(1, 2), np.eye(2))
    assert np.allclose(np.linalg.det(linear), 1)
    angle = np.rad2deg(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    assert 29 < np.abs(angle).max() <= 30
    assert abs(angle.mean()) < 2


def test_zooms_are_isotropic_and_as_often_in_as_out():
    linear = drawn(4000, scale=0.5).linear
    zoom = linear[:, 0, 0]
    assert np.allclose(linear, zoom[:, None, None] * np.eye(2))
    assert 1 / 1.5 <= zoom.min() < 0.68
    assert 1.48 < zoom.max() <= 1.5
    assert abs(np.log(zoom).mean()) < 0.02


def test_shears_keep_areas_and_stay_within_the_angle():
    linear = drawn(2000, shear=10).linear
    assert np.allclose(np.linalg.det(linear), 1)
    off = np.rad2deg(np.arctan(linear - np.eye(2)))
    assert 9.8 < np.abs(off).max() <= 10 + 1e-9


def test_the_determinant_is_the_zoom_squared_up_to_its_sign():
    zoom = drawn(scale=0.5).linear[:, 0, 0]
    flips = drawn(hflip=0.5, vflip=0.5, transpose=0.5).linear
    linear = drawn(**EVERYTHING).linear
    assert np.allclose(np.linalg.det(linear), np.linalg.det(flips) * zoom**2)
    assert len(set(np.sign(np.linalg.det(linear)))) == 2


def test_what_is_drawn_for_an_image_is_drawn_independently():
    draws = drawn(4000, **{k: v for k, v in EVERYTHING.items() if k not in ("hflip", "vflip", "transpose", "shear")})
    linear = draws.linear
    zoom, angle = np.linalg.det(linear), np.arctan2(linear[:, 1, 0], linear[:, 0, 0])
    others = [values for name, values in vars(draws).items() if name != "linear"]
    columns = np.column_stack([zoom, angle, *others])
    assert columns.shape[1] == 12
    assert np.abs(np.corrcoef(columns.T) - np.eye(12)).max() < 0.08


def test_shifts_and_factors_stay_in_their_ranges():
    draws = drawn(4000, **EVERYTHING)
    assert 0.09 < np.abs(draws.shift).max() <= 0.1
    assert 0.29 < np.abs(draws.brightness - 1).max() <= 0.3
    assert 0.29 < np.abs(draws.contrast - 1).max() <= 0.3
    assert 0.39 < np.abs(draws.saturation - 1).max() <= 0.4
    assert 0.3 < np.abs(draws.hue).max() <= 0.05 * 2 * np.pi
    for name in ("brightness", "contrast", "saturation"):
        assert abs(getattr(draws, name).mean() - 1) < 0.02


@pytest.mark.parametrize(("name", "largest"), [("blur", 2.0), ("noise", 0.1)])
def test_half_of_the_images_have_no_blur_and_no_noise(name, largest):
    values = getattr(drawn(4000, **{name: largest}), name)
    assert abs((values == 0).mean() - 0.5) < 0.03
    assert 0.98 * largest < values.max() <= largest
    assert values.min() == 0


@pytest.mark.parametrize("c", [1, 3])
def test_factors_of_one_change_no_colour(c):
    image = pictures(c=c)
    assert torch.allclose(recolor(image, identical(3), 0, 255), image, atol=1e-3)


@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-2.0, 3.0), (100.0, 40000.0)])
@pytest.mark.parametrize("c", [1, 3])
def test_colours_stay_in_the_range(c, low, high):
    image = pictures(50, c, (6, 7)) / 255 * (high - low) + low
    strong = drawn(50, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5)
    found = recolor(image, strong, low, high)
    tolerance = 1e-5 * (high - low)
    assert found.min() >= low - tolerance
    assert found.max() <= high + tolerance


def test_colours_move_with_the_range():
    image, draws = pictures(20, 3, (6, 7)), drawn(20, brightness=0.3, contrast=0.3, saturation=0.4, hue=0.1)
    scaled = recolor(image * 100 - 7, draws, -7, 25493)
    assert torch.allclose(scaled, recolor(image, draws, 0, 255) * 100 - 7, atol=0.5)


def test_grey_stays_grey_whatever_the_hue_and_the_saturation():
    image = pictures(50, 1, (6, 7)).expand(-1, 3, -1, -1)
    found = recolor(image, drawn(50, hue=0.5, saturation=0.9), 0, 255)
    assert torch.allclose(found, image, atol=1e-2)


def test_no_saturation_is_grey_of_the_same_luma():
    found = recolor(pictures(), identical(3, saturation=0.0), 0, 255)
    luma = torch.einsum("bchw,c->bhw", pictures(), torch.tensor(LUMA))
    assert torch.allclose(found, luma[:, None].expand_as(found), atol=1e-2)


def test_saturation_keeps_the_luma():
    image = 100 + pictures() / 10
    found = recolor(image, identical(3, saturation=1.4), 0, 255)
    luma = [torch.einsum("bchw,c->bhw", i, torch.tensor(LUMA)) for i in (image, found)]
    assert torch.allclose(*luma, atol=1e-2)
    assert not torch.allclose(image, found, atol=1)


def test_a_third_of_a_turn_of_the_hue_permutes_the_channels():
    image = pictures()
    found = recolor(image, identical(3, hue=2 * np.pi / 3), 0, 255)
    assert torch.allclose(found, image.roll(1, 1), atol=1e-2)


def test_hues_add_up():
    image = 110 + pictures() / 10
    twice = recolor(recolor(image, identical(3, hue=0.3), 0, 255), identical(3, hue=0.4), 0, 255)
    assert torch.allclose(twice, recolor(image, identical(3, hue=0.7), 0, 255), atol=1e-2)


def test_saturation_comes_after_the_hue():
    image = 110 + pictures() / 10
    one_by_one = recolor(recolor(image, identical(3, hue=0.7), 0, 255), identical(3, saturation=0.3), 0, 255)
    assert torch.allclose(recolor(image, identical(3, hue=0.7, saturation=0.3), 0, 255), one_by_one, atol=1e-2)


@pytest.mark.parametrize("c", [1, 3])
def test_brightness_multiplies(c):
    image = pictures(c=c) / 2
    assert torch.allclose(recolor(image, identical(3, brightness=1.5), 0, 255), image * 1.5, atol=1e-2)


def test_brightness_is_the_same_with_and_without_other_colours():
    image = pictures() / 4
    first = recolor(image, identical(3, brightness=1.5), 0, 255)
    assert torch.allclose(recolor(image, identical(3, brightness=1.5, hue=1e-9), 0, 255), first, atol=1e-2)


@pytest.mark.parametrize("c", [1, 3])
def test_contrast_keeps_the_mean_and_scales_the_spread(c):
    image = 100 + pictures(c=c) / 10
    found = recolor(image, identical(3, contrast=1.7), 0, 255)
    assert torch.allclose(found.mean((1, 2, 3)), image.mean((1, 2, 3)), atol=1e-2)
    assert torch.allclose(found.std((1, 2, 3)), 1.7 * image.std((1, 2, 3)), atol=1e-2)


def test_each_image_is_coloured_by_its_own_draw():
    image, draws = pictures(6), drawn(6, brightness=0.3, contrast=0.3, saturation=0.4, hue=0.1)
    together = recolor(image, draws, 0, 255)
    alone = torch.cat([recolor(image[i : i + 1], draws[i : i + 1], 0, 255) for i in range(6)])
    assert torch.allclose(together, alone, atol=1e-2)


def test_no_blur_is_the_identity():
    image = pictures()
    assert torch.equal(blurred(image, np.zeros(3)), image)


def test_an_image_without_blur_is_left_alone_among_blurred_ones():
    image = pictures()
    found = blurred(image, np.array([0.0, 2.0, 0.0]))
    assert torch.allclose(found[[0, 2]], image[[0, 2]], atol=1e-3)
    assert not torch.allclose(found[1], image[1], atol=10)


@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("sigma", [0.2, 0.6, 1.0, 2.3])
def test_blur_is_the_gaussian_filter_of_scipy(c, sigma):
    image = pictures(2, c)
    found = blurred(image, np.array([sigma, sigma]))
    axes = {"sigma": (0, 0, sigma, sigma), "mode": "nearest", "truncate": 5}
    assert np.abs(found.numpy() - ndimage.gaussian_filter(image.numpy(), **axes)).max() < 0.01 * 255


def test_blur_of_a_constant_image_is_that_image():
    found = blurred(torch.full((2, 3, 20, 25), 77.0), np.array([0.5, 3.0]))
    assert torch.allclose(found, torch.tensor(77.0), atol=1e-3)


def test_blur_keeps_the_mean_and_lessens_the_spread():
    image = torch.full((1, 3, 61, 61), 50.0)
    image[..., 20:41, 20:41] = pictures(1, 3, (21, 21))
    found = blurred(image, np.array([2.0]))
    assert torch.allclose(found.mean((2, 3)), image.mean((2, 3)), atol=1e-2)
    assert found.std() < image.std()


def test_blur_commutes_with_flips():
    image, sigma = pictures(), np.array([0.5, 1.0, 2.0])
    assert torch.allclose(blurred(image.flip(-1), sigma), blurred(image, sigma).flip(-1), atol=1e-2)


def test_blur_larger_than_the_image_is_no_error():
    assert blurred(pictures(1, 3, (4, 5)), np.array([9.0])).shape == (1, 3, 4, 5)


def test_blur_of_an_image_does_not_depend_on_the_others():
    image, sigma = pictures(3), np.array([0.7, 1.4, 3.1])
    together = blurred(image, sigma)
    alone = torch.cat([blurred(image[i : i + 1], sigma[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=0.05)


def test_no_noise_is_the_identity():
    image = pictures()
    assert torch.equal(noised(image, np.zeros(3), 0, 255, 0), image)


def test_noise_depends_on_the_seed_only():
    image, sd = pictures(), np.full(3, 0.05)
    one, two, other = (noised(image, sd, 0, 255, seed) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_noise_leaves_other_generators_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    noised(pictures(), np.full(3, 0.05), 0, 255, 1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-1.0, 3.0)])
def test_noise_has_the_standard_deviation_that_was_said(low, high):
    image = torch.full((3, 3, 100, 100), (low + high) / 2)
    sd = np.array([0.0, 0.02, 0.1])
    added = noised(image, sd, low, high, 0) - image
    assert np.allclose(added.std((1, 2, 3)).numpy(), sd * (high - low), rtol=0.03)
    assert np.allclose(added.mean((1, 2, 3)).numpy(), 0, atol=0.002 * (high - low))
    assert (added[0] == 0).all()


def test_noise_differs_from_pixel_to_pixel_and_channel_to_channel():
    added = noised(torch.full((2, 3, 50, 50), 128.0), np.full(2, 0.05), 0, 255, 0) - 128
    correlation = np.corrcoef(added.reshape(6, -1).numpy())
    assert np.abs(correlation - np.eye(6)).max() < 0.1


def test_noise_stays_in_the_range():
    image = torch.cat([torch.zeros(1, 3, 30, 30), torch.full((1, 3, 30, 30), 255.0)])
    found = noised(image, np.full(2, 0.3), 0, 255, 0)
    assert found.min() == 0
    assert found.max() == 255
