"""Samples made of known sparse features."""

import math
from dataclasses import replace

import pytest
import torch

from distae.config import TrainConfig, build
from distae.data import load, place
from distae.data.datasets.synthetic_features import Features, Generated, orthogonal
from distae.data.feature_trees import FeatureTrees
from distae.errors import UserError


def settings(**changes):
    return build(TrainConfig, {"data": {"name": "synthetic_features", **changes}}).data


def made(cfg):
    return Features(cfg).activations(torch.arange(cfg.samples))


def test_samples_follow_from_their_number_alone():
    few, more = settings(samples=100), settings(samples=5000)
    assert torch.equal(made(few), made(more)[:100])
    rows = torch.tensor([3, 70, 4095, 4096, 4999])
    assert torch.equal(Features(more).activations(rows), made(more)[rows])
    assert not torch.equal(made(settings(samples=100, seed=1)), made(few))


def test_features_are_active_at_their_rates_and_magnitudes():
    cfg = settings(samples=20000, features=64, active=3.0, zipf=1.0, magnitude=2.0, magnitude_std=0.5)
    z = made(cfg)
    rates = torch.tensor(cfg.rates)
    assert rates.sum() == pytest.approx(3)
    torch.testing.assert_close(rates[0] / rates[9], torch.tensor(10.0))
    error = ((z > 0).float().mean(0) - rates).abs() / (rates * (1 - rates) / cfg.samples).sqrt()
    assert error.max() < 5
    assert float(z[z > 0].mean()) == pytest.approx(2, abs=0.01)
    assert float(z[z > 0].std()) == pytest.approx(0.5, abs=0.01)


def test_correlated_features_are_of_one_group_and_keep_their_rates():
    cfg = settings(samples=20000, features=8, active=2.0, zipf=0.0, correlation=0.8, groups=4)
    active = (made(cfg) > 0).float()
    assert (active.mean(0) - 0.25).abs().max() < 0.02
    apart = torch.corrcoef(active.T)
    assert apart[0, 4] > 0.5
    assert apart[0, 1:4].abs().max() < 0.04


def test_samples_are_sums_of_the_vectors():
    cfg = settings(samples=500, features=40, dim=12, bias=3.0)
    splits = load(cfg)
    features = splits["test"].source.features
    assert features is not None
    assert splits["test"].rows is not None
    rows = splits["test"].rows_at(torch.arange(len(splits["test"])))
    sums = features.activations(rows) @ features.vectors + Features(cfg).bias
    torch.testing.assert_close(splits["test"].source.read(rows), sums)
    torch.testing.assert_close(features.vectors.norm(dim=1), torch.ones(40))
    assert float(Features(cfg).bias.norm()) == pytest.approx(3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"features": 10, "active": 9.0}, r"--data\.active 9"),
        ({"rate_range": (0.4, 0.1)}, r"--data\.rate-range 0\.4 0\.1"),
        ({"correlation": 0.5, "correlation_rank": 3}, r"--data\.correlation is of --data\.groups"),
        ({"features": 100, "roots": 101}, r"--data\.roots 101: valid up to --data\.features, which is 100"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, named):
    with pytest.raises(UserError, match=named):
        settings(**changes).shape()


TREES = {"features": 90, "dim": 16, "roots": 4, "children": 4, "depth": 2, "rate_range": (0.02, 0.4)}
"""84 features in trees, 6 outside."""


def parents(cfg):
    """The parent of each feature, -1 of roots and of those outside trees: written out once more."""
    of, before, level = [-1] * cfg.features, 0, cfg.roots
    for _ in range(cfg.depth):
        for j in range(min(level * cfg.children, cfg.features - before - level)):
            of[before + level + j] = before + j // cfg.children
        before, level = before + level, level * cfg.children
    return torch.tensor(of)


def test_children_are_active_only_with_their_parent_and_never_two_of_one():
    cfg = settings(samples=20000, **TREES)
    of, active = parents(cfg), made(cfg) > 0
    assert int((of >= 0).sum()) == 80
    child = of >= 0
    assert not (active[:, child] & ~active[:, of[child]]).any()
    siblings = torch.zeros(len(active), cfg.features).index_add_(1, of[child], active[:, child].float())
    assert siblings.max() == 1
    free = made(settings(samples=20000, exclusive=False, **TREES)) > 0
    assert torch.zeros(len(free), cfg.features).index_add_(1, of[child], free[:, child].float()).max() > 1


def test_rates_in_trees_are_those_of_the_closed_form():
    """Without exclusion rates are kept. Two siblings with q1 and q2, given their parent: q1 (1 - q2) + q1 q2 / 2."""
    cfg = settings(samples=60000, features=6, roots=2, children=2, depth=1, rate_range=(0.1, 0.5), exclusive=False)
    rates = torch.tensor(cfg.rates)
    assert ((made(cfg) > 0).float().mean(0) - rates).abs().max() < 0.01
    exclusive = replace(cfg, exclusive=True)
    q = FeatureTrees(exclusive).raised(rates)[2:].view(2, 2)
    expected = rates[:2, None] * q * (1 - q.flip(1) / 2)
    assert ((made(exclusive) > 0).float().mean(0) - torch.cat([rates[:2], expected.flatten()])).abs().max() < 0.01


def test_children_are_scaled_by_their_parent():
    cfg = settings(samples=3000, magnitude=2.0, magnitude_last=1.0, magnitude_std=0.5, **TREES)
    plain, scaled, of = made(cfg), made(replace(cfg, scale_children=True)), parents(cfg)
    child = of >= 0
    ratio = scaled[:, of[child]] / Features(cfg).mean[of[child]]
    torch.testing.assert_close(scaled[:, child], plain[:, child] * ratio)
    assert torch.equal(scaled[:, ~child], plain[:, ~child])


def test_magnitudes_have_a_mean_and_a_deviation_of_each_feature():
    cfg = settings(samples=20000, features=8, active=4.0, zipf=0.1, magnitude=5.0, magnitude_last=3.0, magnitude_std_std=0.5)
    z, features = made(cfg), Features(cfg)
    torch.testing.assert_close(features.mean, torch.linspace(5, 3, 8))
    assert features.std.unique().numel() == 8
    for i in range(8):
        size = z[:, i][z[:, i] > 0]
        assert float(size.mean()) == pytest.approx(float(features.mean[i]), abs=0.05)
        assert float(size.std()) == pytest.approx(float(features.std[i]), rel=0.05)


def test_magnitudes_below_zero_are_none():
    cfg = settings(samples=20000, features=4, active=2.0, zipf=0.0, magnitude=0.001, magnitude_std=1.0)
    shares = [float((made(replace(cfg, magnitude_below=below)) > 0).float().mean()) for below in ("folded", "zero")]
    assert shares == pytest.approx([0.5, 0.25], abs=0.01)


def test_correlations_by_factors_are_those_of_their_weights():
    """For normal variables above 0, the correlation of these events is 2 / pi asin of the variables' correlation."""
    cfg = settings(samples=40000, features=6, rate_range=(0.4999, 0.5001), correlation_rank=3, correlation_scale=0.4)
    weights = Features(cfg).weights
    active = (made(cfg) > 0).float()
    expected = 2 / math.pi * (weights @ weights.T).asin()
    assert (torch.corrcoef(active.T) - expected).fill_diagonal_(0).abs().max() < 0.025
    assert expected.fill_diagonal_(0).abs().max() > 0.15


def test_many_samples_are_made_as_they_are_read(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTAE_CACHE", str(tmp_path))
    cfg = settings(samples=9000, features=40, dim=12, roots=3)
    kept = load(cfg)
    monkeypatch.setattr("distae.data.datasets.synthetic_features.SMALL_BYTES", 0)
    monkeypatch.setattr("distae.data.datasets.synthetic_features.UNIT_BYTES", 200_000)
    streamed = load(cfg)
    assert isinstance(streamed["train"].source, Generated)
    assert streamed["train"].source.units is not None
    assert streamed["train"].source.units.tolist() == [4096, 4096, 808]
    copy = place(replace(cfg, storage="resident"), streamed, 1)  # a decoded copy has other row numbers
    for name in kept:
        at = torch.arange(0, len(kept[name]), 7)
        features = [splits[name].source.features for splits in (kept, streamed, copy)]
        rows = [splits[name].rows_at(at) for splits in (kept, streamed, copy)]
        for splits, known, of in zip((streamed, copy), features[1:], rows[1:], strict=True):
            assert torch.equal(splits[name].read(at)[0], kept[name].read(at)[0])
            assert known is not None
            assert features[0] is not None
            assert torch.equal(known.activations(of), features[0].activations(rows[0]))
    same, other = load(cfg), load(replace(cfg, seed=1))
    assert streamed["test"].identity == same["test"].identity != other["test"].identity


def test_an_orthogonal_dictionary_is_kept_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTAE_CACHE", str(tmp_path))
    vectors = torch.nn.functional.normalize(torch.randn(60, 20, generator=torch.Generator().manual_seed(0)), dim=1)
    found = orthogonal(vectors, 100)
    assert torch.equal(orthogonal(vectors, 100), found)
    assert torch.equal(orthogonal(vectors, 0), vectors)
    assert (found.norm(dim=1) - 1).abs().max() < 1e-5
    off = [(v @ v.T).fill_diagonal_(0).square().sum() for v in (found, vectors)]
    assert off[0] < 0.9 * off[1]
    dictionary = pytest.importorskip("sae_lens.synthetic.feature_dictionary")
    theirs = dictionary.orthogonalize_embeddings(vectors, num_steps=100, lr=3e-4, chunk_size=17)
    torch.testing.assert_close(found, theirs, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_statistics_are_those_of_sae_lens():
    """Its generator with the settings of its benchmark, reduced to 1,300 features: rates, L0, magnitudes, correlations."""
    synthetic = pytest.importorskip("sae_lens.synthetic")
    cfg = settings(
        samples=20000, features=1300, dim=8, rate_range=(5e-4, 0.4), magnitude=5.0, magnitude_last=4.0, magnitude_std=0.5,
        magnitude_std_std=0.5, magnitude_below="zero", correlation_rank=25, roots=10, children=4, depth=3, scale_children=True,
    )  # fmt: skip
    features = Features(cfg)
    trees = synthetic.generate_hierarchy(1300, synthetic.HierarchyConfig(10, 4, 3, 1.0, scale_children_by_parent=True))
    rates = synthetic.zipfian_firing_probabilities(1300, 0.5, 0.4, 5e-4)
    torch.testing.assert_close(torch.tensor(cfg.rates), rates)
    raised = (rates * trees.compute_probability_correction_factors(rates)).clamp(max=1)
    torch.testing.assert_close(features.trees.raised(rates), raised)
    correlation = features.weights, 1 - features.weights.square().sum(1)
    generator = synthetic.ActivationGenerator(1300, raised, features.std, features.mean, trees.modifier, correlation)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # it draws from torch's own generator
        theirs = generator.sample(cfg.samples)
    ours = made(cfg)
    counts = torch.stack([(z > 0).float().mean(0) for z in (ours, theirs)])
    spread = (counts.mean(0) * (1 - counts.mean(0)) * 2 / cfg.samples).sqrt().clamp_min(1e-4)
    assert ((counts[0] - counts[1]) / spread).abs().max() < 6  # of 1,300, some of them active in ten samples
    assert float(counts[0].sum()) == pytest.approx(float(counts[1].sum()), rel=0.01)
    for i in range(100):
        mine, other = (z[:, i][z[:, i] > 0] for z in (ours, theirs))
        error = (mine.var() / len(mine) + other.var() / len(other)).sqrt()
        assert (mine.mean() - other.mean()).abs() < 4.5 * error
    pairs = [torch.corrcoef((z > 0)[:, :40].float().T) for z in (ours, theirs)]
    assert (pairs[0] - pairs[1]).abs().max() < 0.05
    assert (pairs[0] - torch.eye(40)).abs().max() > 0.2
