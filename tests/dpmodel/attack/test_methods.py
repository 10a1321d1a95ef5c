"""Each attack against its formula, computed example by example, and against closed forms."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from dpmodel.attack import ATTACKS, RMIA, LabelOnlySampling, LiRA, LossThreshold, OfflineLiRA, RocCurve
from dpmodel.attack.evidence import Evidence, class_logits
from dpmodel.attack.methods import PER_EXAMPLE, normals
from monitors.errors import DataError

from .simulated import evidence_of, pool_of


def simulated(references, distance, pool, seed=0):
    """Logits that are normal with a mean of each example, and ``distance`` higher if it was trained on."""
    draw = np.random.default_rng(seed)
    included = draw.integers(0, 2, (references, pool.size)).astype(bool)
    means = draw.normal(0.0, 3.0, len(pool.data))
    values = means + draw.normal(0.0, 1.0, (references + 1, len(pool.data)))
    values[1:, : pool.size] += distance * included
    values[0, : pool.train] += distance
    return values[0], values[1:], included


def curve(scores, pool):
    return RocCurve(scores[pool.members], scores[~pool.members])


def test_logits_of_probabilities_are_exact_near_one():
    scores = torch.tensor([[2.0, -1.0, 0.5], [40.0, 0.0, -3.0]], dtype=torch.float64)
    found = class_logits(scores, torch.tensor([1, 0]))
    p = scores.softmax(dim=1)[0, 1].item()
    assert found[0] == pytest.approx(np.log(p / (1 - p)))
    assert found[1] == pytest.approx(40.0 - np.log(1 + np.exp(-3.0)))  # 1 - p is 0 in float64
    damaged = class_logits(torch.tensor([[torch.nan, 0.0], [torch.inf, 0.0]]), torch.tensor([0, 0]))
    assert np.isfinite(damaged).all()


def test_lira_is_the_likelihood_ratio_of_each_example():
    pool = pool_of(30, 30)
    found, known, included = simulated(8, 1.0, pool)
    included[:2] = [np.ones(60, bool), np.zeros(60, bool)]
    scores = LiRA().scores(evidence_of(pool, found, known, included))
    for kinds in (included, ~included):
        assert kinds.sum(axis=0).min() >= 1
    deviations = []
    for chosen in (included, ~included):
        residuals, freedom = 0.0, 0
        for example in range(60):
            values = known[chosen[:, example], example]
            residuals += ((values - values.mean()) ** 2).sum()
            freedom += len(values) - 1
        deviations.append(np.sqrt(residuals / freedom))
    for example in range(60):
        inside, outside = known[included[:, example], example], known[~included[:, example], example]
        expected = stats.norm(inside.mean(), deviations[0]).logpdf(found[example])
        expected -= stats.norm(outside.mean(), deviations[1]).logpdf(found[example])
        assert scores[example] == pytest.approx(expected, abs=1e-9)
    offline = OfflineLiRA().scores(evidence_of(pool, found, known, included))
    example = 7
    mean = known[~included[:, example], example].mean()
    assert offline[example] == pytest.approx((found[example] - mean) / deviations[1])


@pytest.mark.parametrize("references", [16, PER_EXAMPLE + 100])
def test_lira_reaches_the_best_possible_area_for_normal_logits(references):
    pool = pool_of(2000, 2000)
    found, known, included = simulated(references, 1.5, pool)
    best = stats.norm.cdf(1.5 / np.sqrt(2))
    online = curve(LiRA().scores(evidence_of(pool, found, known, included)), pool)
    assert best - 0.05 < online.auc < best + 0.02
    alone = curve(LossThreshold().scores(evidence_of(pool, found)), pool)
    assert alone.auc < online.auc - 0.1  # the loss alone does not know which examples are difficult


def test_few_values_share_a_variance_and_many_have_their_own():
    draw = np.random.default_rng(0)
    spread = np.array([1.0, 5.0])
    few = normals(draw.normal(0, spread, (10, 2)), np.ones((10, 2), bool))[1]
    many = normals(draw.normal(0, spread, (4000, 2)), np.ones((4000, 2), bool))[1]
    assert few[0] == few[1]
    assert many == pytest.approx(spread, rel=0.1)
    single = normals(np.array([[1.0, 3.0]]), np.ones((1, 2), bool))
    assert (single[0].tolist(), single[1].tolist()) == ([1.0, 3.0], [1.0, 1.0])


@pytest.mark.parametrize("references", [1, 4])
def test_rmia_is_the_part_of_the_population_that_an_example_dominates(references):
    pool = pool_of(20, 20, population=15)
    found, known, included = simulated(references, 1.0, pool)
    scores = RMIA(gamma=1.5).scores(evidence_of(pool, found, known, included))
    p, q = (1 / (1 + np.exp(-values)) for values in (found, known))
    ratios, shares = [], []
    for example in range(pool.size):
        kinds = [q[chosen[:, example], example] for chosen in (included, ~included)]
        ratios.append(p[example] / np.mean([values.mean() for values in kinds if len(values)]))
        population = [p[z] / q[:, z].mean() for z in range(pool.size, len(pool.data))]
        shares.append(np.mean([ratios[-1] / ratio >= 1.5 for ratio in population]))
    assert scores == pytest.approx(np.array(shares), abs=1 / len(population))
    assert (np.round(np.floor(scores * 15 + 1e-6)) == np.round(np.array(shares) * 15)).all()
    assert (np.argsort(scores) == np.argsort(ratios)).all()  # with one population, its order is that of the ratios


def test_rmia_succeeds_with_two_references():
    pool = pool_of(1000, 1000, population=200)
    found, known, included = simulated(2, 2.0, pool)
    included[1] = ~included[0]
    known[1, : pool.size] = known[1, : pool.size] + 2.0 * included[1]
    assert curve(RMIA().scores(evidence_of(pool, found, known, included)), pool).auc > 0.65


def test_loss_threshold_takes_small_losses_for_members_and_bears_infinite_ones():
    pool = pool_of(20, 20)
    outputs = torch.randn(40, 2)
    outputs[3] = torch.nan
    evidence = Evidence(pool, outputs, nn.CrossEntropyLoss(), lambda: None)
    scores = LossThreshold().scores(evidence)
    for row in range(40):
        if row != 3:
            expected = nn.functional.cross_entropy(outputs[row : row + 1], pool.targets[row : row + 1])
            assert scores[row] == pytest.approx(-float(expected), abs=1e-5)
    assert scores[3] == scores.min()


class Boundary(nn.Module):
    """The class is the sign of the first number."""

    def forward(self, x):
        return torch.stack([-x[:, 0], x[:, 0]], dim=1)


def test_labels_alone_tell_examples_far_from_the_boundary():
    pool = pool_of(60, 60)
    sides = torch.where(pool.targets == 1, 1.0, -1.0)
    pool.data.x[:, 0] = sides * torch.where(torch.arange(120) < 60, 3.0, 0.2)
    evidence = evidence_of(pool, np.zeros(120), network=Boundary())
    scores = LabelOnlySampling(queries=100).scores(evidence)
    assert scores.shape == (120,)
    assert curve(scores, pool).auc > 0.9
    assert np.abs(scores).max() <= 1.0


@pytest.mark.parametrize("name", ATTACKS.names())
def test_numbers_to_predict_are_refused_except_for_the_loss(name):
    pool = pool_of(20, 20, population=10)
    pool.data.y = torch.randn(50, 1)
    if name == "loss_threshold":
        ATTACKS.create(name).require_fits(pool, torch.zeros(2, 1))
        return
    with pytest.raises(DataError, match="one score per class"):
        ATTACKS.create(name).require_fits(pool, torch.zeros(2, 1))


def test_tokens_take_no_noise_and_rmia_needs_a_population():
    pool = pool_of(20, 20)
    with pytest.raises(DataError, match="no held-out examples are set aside"):
        RMIA().require_fits(pool, torch.zeros(2, 2))
    pool.data.x = torch.ones(40, 3, dtype=torch.int64)
    with pytest.raises(DataError, match="adds noise to the inputs"):
        LabelOnlySampling().require_fits(pool, torch.zeros(2, 2))
