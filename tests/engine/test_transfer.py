"""Ridge regressions are scikit-learn's; the separability of classes follows its formula, and facts of algebra."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from segsweep.engine import transfer


@pytest.fixture
def drawn():
    """Features of three classes, with a column that never changes, and weights."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 200)
    features = rng.normal(size=(200, 12)) * rng.uniform(0.1, 30, 12) + 5 + classes[:, None] * rng.normal(size=12)
    features[:, 4] = 0
    return features, classes, rng.uniform(0.1, 3, 200)


def sklearns(features, targets, weights, alpha):
    scaler = StandardScaler().fit(features, sample_weight=weights)
    model = Ridge(alpha * weights.sum()).fit(scaler.transform(features), targets, sample_weight=weights)
    return lambda x: model.predict(scaler.transform(x))


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def test_a_ridge_regression_is_scikit_learns(drawn):
    features, classes, weights = drawn
    targets = np.eye(3)[classes]
    alphas = (1e-3, 0.5, 20.0)
    for alpha, (coefficients, intercepts) in zip(
        alphas, transfer.ridge(*tensors(features, targets, weights), alphas), strict=True
    ):
        theirs = sklearns(features, targets, weights, alpha)
        new = np.random.default_rng(1).normal(size=(50, 12)) * 10
        new[:, 4] = 0  # a constant column says nothing; scikit-learn's weight of it is 0, too
        ours = torch.from_numpy(new) @ coefficients + intercepts
        np.testing.assert_allclose(ours.numpy(), theirs(new), atol=1e-9)


def test_a_constant_feature_changes_nothing(drawn):
    features, classes, weights = drawn
    targets, constant = np.eye(3)[classes], features.copy()
    constant[:, 4] = 7.1
    for array in (constant, features):
        array[:] = array.astype(np.float32)
    ((ours, level),) = transfer.ridge(*tensors(constant, targets, weights), [1e-2])
    ((without, zero),) = transfer.ridge(*tensors(features, targets, weights), [1e-2])
    fitted = torch.from_numpy(constant) @ ours + level
    torch.testing.assert_close(fitted, torch.from_numpy(features) @ without + zero)
    separability = [transfer.class_separability(*tensors(array, classes)) for array in (constant, features)]
    assert separability[0] == pytest.approx(separability[1])


def test_the_penalty_is_the_one_that_does_best_on_other_images(drawn):
    features, classes, weights = drawn
    targets, folds = np.eye(3)[classes], np.arange(200) // 50 % 3
    alphas = (1e-3, 0.03, 1.0, 30.0)
    errors = []
    for alpha in alphas:
        missed = 0.0
        for fold in range(3):
            out = folds == fold
            model = sklearns(features[~out], targets[~out], weights[~out], alpha)
            missed += (weights[out, None] * (model(features[out]) - targets[out]) ** 2).sum()
        errors.append(missed)
    given = tensors(features, targets, weights, folds)
    coefficients, intercepts, alpha = transfer.fitted(*given, alphas)
    assert alpha == alphas[int(np.argmin(errors))]
    ours = torch.from_numpy(features) @ coefficients + intercepts
    np.testing.assert_allclose(ours.numpy(), sklearns(features, targets, weights, alpha)(features), atol=1e-9)


def test_with_one_image_there_is_nothing_to_choose_by(drawn):
    features, classes, weights = drawn
    given = tensors(features, np.eye(3)[classes], weights, np.zeros(200, int))
    assert transfer.fitted(*given)[2] == transfer.ALPHAS[-1]


def test_each_class_counts_by_the_root_of_its_share():
    classes = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    weights = transfer.balanced(classes, [0.9, 0.09, 0.01])
    sums = torch.stack([weights[classes == k].sum() for k in range(3)])
    torch.testing.assert_close(sums, torch.tensor([0.9, 0.09, 0.01], dtype=torch.float64).sqrt())


def gbc(features, classes):
    """The formula, with numpy and scikit-learn."""
    x = PCA(min(transfer.COMPONENTS, *features.shape), svd_solver="full").fit_transform(
        StandardScaler().fit_transform(features)
    )
    total = 0.0
    for a in np.unique(classes):
        for b in np.unique(classes):
            if a != b:
                (m, v), (n, w) = ((x[classes == k].mean(0), x[classes == k].var(0) + 1e-6) for k in (a, b))
                middle = (v + w) / 2
                apart = ((m - n) ** 2 / middle).sum() / 8 + np.log(middle / np.sqrt(v * w)).sum() / 2
                total -= np.exp(-apart)
    return total


def test_separability_is_the_papers_formula(drawn):
    features, classes, _ = drawn
    features = np.delete(features, 4, axis=1)  # without the constant
    ours = transfer.class_separability(*tensors(features, classes))
    assert ours == pytest.approx(gbc(features, classes), rel=1e-6)
    assert transfer.class_separability(*tensors(features * 1000 - 3, classes)) == pytest.approx(ours, rel=1e-6)


def test_separability_has_known_ends():
    rng = np.random.default_rng(0)
    features, classes = rng.normal(size=(3000, 5)), np.repeat([0, 1, 2], 1000)
    same = transfer.class_separability(*tensors(np.concatenate([features[:1000]] * 3), classes))
    assert same == pytest.approx(-6)  # three equal classes: each of the six ordered pairs is at no distance
    far = transfer.class_separability(*tensors(features + 100 * classes[:, None], classes))
    assert -1e-6 < far <= 0
    assert np.isnan(transfer.class_separability(*tensors(features, np.zeros(3000, int))))
