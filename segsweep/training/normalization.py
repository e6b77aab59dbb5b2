"""Normalization of pixels for an encoder."""

from collections.abc import Sequence

from segsweep.config.settings import Normalization
from segsweep.data.store import Store
from segsweep.nn.unet import encoder_statistics

OUTLIERS = 0.5  # percent of the pixels cut off at either end, as nnU-Net does (https://arxiv.org/abs/1904.08128)


def choose(
    how: str, store: Store, train: Sequence[int], encoder: str, window: Sequence[float] | None = None
) -> Normalization:
    """Choose what is subtracted from the pixels, and what they are divided by.

    Args:
        how: "encoder": the values' range is mapped to 0..1, then the mean and std the encoder was trained with;
            "dataset": mean and std of the training split; "percentile" and "window": as encoder, but from and to the
            0.5th and 99.5th percentile of the training split's channels, or the window; pixels beyond are clipped.
        train: indices of the training split.
        window: lowest and highest value, on the scale of the files.
    """
    if how == "dataset":
        mean, std = store.statistics(train)
        return Normalization(tuple(mean), tuple(std))
    if how == "encoder":
        low, high = ([edge] * store.channels for edge in store.range)
    elif how == "window" and window:
        low, high = ([edge] * store.channels for edge in window)
    else:
        lowest, low, high, highest = store.percentiles(train, 0, OUTLIERS, 100 - OUTLIERS, 100)
        for channel, (bottom, top) in enumerate(zip(low, high, strict=True)):
            if bottom == top:  # a few bright pixels on black: what looks like outliers is all there is
                low[channel], high[channel] = lowest[channel], highest[channel]
    own_mean, own_std = encoder_statistics(encoder, store.channels)
    widths = [((top - bottom) or 1.0) / 255 for bottom, top in zip(low, high, strict=True)]
    return Normalization(
        mean=tuple(bottom + m * w for bottom, m, w in zip(low, own_mean, widths, strict=True)),
        std=tuple(s * w for s, w in zip(own_std, widths, strict=True)),
        clip=None if how == "encoder" else (tuple(low), tuple(high)),
    )
