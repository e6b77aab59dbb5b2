"""What frozen features are worth for a segmentation: a ridge regression on pixels, and how far apart classes lie.

Pure functions of features `n d`, a row for each pixel that was drawn. All that is learnt or averaged here comes from
the rows that are given, which are the training split's.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

ALPHAS = (1e-2, 1e-1, 1.0, 10.0)  # penalties that are tried, as shares of a feature's variance
CONSTANT = 1e-7  # share of its mean below which a feature's spread is the rounding of float32
COMPONENTS = 64  # principal components in which classes are compared, as Pándy et al. have it
COMPARED = 4096  # pixels that their distances are computed from


def ridge(
    features: Tensor, targets: Tensor, weights: Tensor, alphas: Sequence[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Fit targets by weighted ridge regressions on standardized features, with intercepts that are not penalized.

    The same as scikit-learn's `Ridge(alpha * weights.sum())` behind its `StandardScaler`, both with sample weights.

    Args:
        features: `n d`.
        targets: `n k`.
        weights: `n`, of each row, above 0.
        alphas: penalties, as shares of a feature's variance.

    Yields:
        for each penalty the coefficients of the features as they came, `d k`, and the intercepts, `k`; float64.
    """
    shares = (weights.double() / weights.sum())[:, None]
    x, y = features.double(), targets.double()
    mean, center = (shares * x).sum(0), (shares * y).sum(0)
    x = x - mean
    spread = (shares * x.square()).sum(0).sqrt()
    spread = torch.where(spread > CONSTANT * mean.abs(), spread, 1.0)
    x = x / spread
    gram, product = x.T @ (shares * x), x.T @ (shares * (y - center))
    for alpha in alphas:
        factor = torch.linalg.cholesky(gram + alpha * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        coefficients = torch.cholesky_solve(product, factor) / spread[:, None]
        yield coefficients, center - mean @ coefficients


def fitted(
    features: Tensor, targets: Tensor, weights: Tensor, folds: Tensor, alphas: Sequence[float] = ALPHAS
) -> tuple[Tensor, Tensor, float]:
    """Fit targets by the ridge regression with the penalty that does best in a cross-validation over `folds`, `n`.

    Returns:
        coefficients and intercepts as `ridge` has them, of all rows, and the penalty.
    """
    errors = torch.zeros(len(alphas), dtype=torch.float64)
    for fold in torch.unique(folds).tolist():
        out = folds == fold
        if out.all():
            continue
        x, y, w = features[out].double(), targets[out].double(), weights[out].double()[:, None]
        for i, (coefficients, intercepts) in enumerate(ridge(features[~out], targets[~out], weights[~out], alphas)):
            errors[i] += (w * (x @ coefficients + intercepts - y).square()).sum().cpu()
    alpha = alphas[int(errors.argmin())] if errors.any() else alphas[-1]
    ((coefficients, intercepts),) = ridge(features, targets, weights, [alpha])
    return coefficients, intercepts, alpha


def balanced(classes: Tensor, shares: Sequence[float]) -> Tensor:
    """Weigh pixels, `n`, so that each class counts by the square root of its share of all pixels.

    Between counting alike, where rare classes are found too often, and counting as often as they occur, where a linear
    layer never finds them.
    """
    drawn = torch.bincount(classes, minlength=len(shares)).double()
    wanted = torch.tensor(shares, dtype=torch.float64, device=classes.device).sqrt()
    return (wanted / drawn.clamp(min=1))[classes]


def class_separability(features: Tensor, classes: Tensor) -> float:
    """Return the Gaussian Bhattacharyya coefficient of the classes: 0 where they are apart; lower where they overlap.

    GBC (Pándy et al. 2022, https://arxiv.org/abs/2111.12780), with features `n d` in their first principal components
    and a diagonal covariance for each class: minus the sum, over ordered pairs of classes, of exp(-distance). NaN where
    fewer than two classes have two pixels.
    """
    x = features.double() - features.double().mean(0)
    spread = x.square().mean(0).sqrt()
    x = x / torch.where(spread > CONSTANT * features.double().mean(0).abs(), spread, 1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, _, axes = torch.pca_lowrank(x, min(COMPONENTS, *x.shape), center=False)
    x = x @ axes
    parts = [x[classes == k] for k in torch.unique(classes).tolist()]
    known = [(part.mean(0), part.var(0, correction=0) + 1e-6) for part in parts if len(part) > 1]
    if len(known) < 2:
        return float("nan")
    pairs = [(a, b) for i, a in enumerate(known) for b in known[i + 1 :]]
    return -2 * sum(float(torch.exp(-_distance(*a, *b))) for a, b in pairs)


def _distance(mean: Tensor, variance: Tensor, other: Tensor, others: Tensor) -> Tensor:
    """Return the Bhattacharyya distance of two Gaussians with diagonal covariances."""
    pooled = (variance + others) / 2
    apart = ((mean - other).square() / pooled).sum() / 8
    return apart + (pooled.log() - (variance.log() + others.log()) / 2).sum() / 2
