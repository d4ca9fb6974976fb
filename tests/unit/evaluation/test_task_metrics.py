"""Metrics of features, anomaly, disentanglement and recommendation: against closed forms, published formulas, scikit-learn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import settings, splits
from sklearn import metrics as sklearn_metrics
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import KNeighborsClassifier

from distae.config.data.shapes import FACTORS, ShapesConfig
from distae.config.evaluation import EvaluationConfig
from distae.data import Split, Transform, load
from distae.evaluation import anomaly, disentanglement, features, intervals, recommendation
from distae.evaluation.disentanglement import Known
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import Skip
from distae.evaluation.relative_error import pca_relative_error
from distae.models import build
from distae.noise import Noise


def evaluation(sets: dict[str, Split] | None = None, split: str = "test", limit: int = 10_000, **changes) -> Evaluation:
    """Of a model with its initial weights, in float64."""
    data = sets or splits()
    cfg = settings(**changes)
    model = build(cfg.model, cfg.net, data["train"].shape, cfg.seed, dtype=torch.float64)
    return Evaluation(model, cfg, data, split, EvaluationConfig(limit=limit))


def of_digits(train: list[int] = [*range(10)]) -> dict[str, Split]:  # noqa: B006
    """scikit-learn's digits; the training split has some classes alone."""
    x, y = load_digits(return_X_y=True)
    images, labels = torch.tensor(x / 16).float().view(-1, 1, 8, 8), torch.tensor(y)
    known = torch.isin(labels[:1200], torch.tensor(train))
    parts = {"train": (images[:1200][known], labels[:1200][known]), "val": (images[1200:1400], labels[1200:1400])}
    parts["test"] = images[1400:], labels[1400:]
    return {name: Split.of(a, b, Transform()) for name, (a, b) in parts.items()}


def flat(e: Evaluation, split: str) -> np.ndarray:
    return e.values(split).flatten(1).double().numpy()


class TestFeatures:
    def test_knn_is_scikit_learns_on_codes_raw_values_and_pca(self):
        e = evaluation(of_digits())
        train, test = e.labels("train").numpy(), e.labels().numpy()
        pca = PCA(4, svd_solver="full").fit(flat(e, "train"))
        pairs = {
            "codes": (e.codes("train").z.numpy(), e.codes().z.numpy()),
            "raw values": (flat(e, "train"), flat(e, "test")),
            "pca": (pca.transform(flat(e, "train")), pca.transform(flat(e, "test"))),
        }
        expected = {k: KNeighborsClassifier(5).fit(a, train).score(b, test) for k, (a, b) in pairs.items()}
        found = features.knn_accuracy(e)
        assert found.value == pytest.approx(expected.pop("codes"), abs=1e-12)
        assert found.baselines == pytest.approx(expected, abs=1e-12)
        assert found.protocol["k"] == 5
        assert found.interval is not None
        assert found.interval[0] < found.value < found.interval[1]

    def test_a_linear_probe_finds_classes_that_lie_on_either_side_of_a_plane(self):
        x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        y = (x @ torch.tensor([1.0, -2, 3, 0, 1], dtype=torch.float64) > 0).long()
        data = {k: Split.of(x[s], y[s]) for k, s in {"train": slice(200), "val": slice(0), "test": slice(200, 300)}.items()}
        found = features.linear_probe(evaluation(data))
        assert found.baselines["raw values"] > 0.95
        assert found.value < found.baselines["raw values"]

    def test_clusters_are_matched_with_classes_one_to_one(self):
        labels, clusters = np.array([0, 0, 0, 1, 1, 2, 2, 2]), np.array([1, 1, 2, 0, 0, 2, 2, 1])
        assert features.matched_accuracy(labels, clusters) == 6 / 8  # 1-0, 0-1, 2-2

    @pytest.mark.slow
    def test_clustering_of_codes_apart_is_perfect(self):
        e = evaluation(of_digits())
        e._once_of_model["codes of test"] = e.codes()._replace(z=torch.eye(10, dtype=torch.float64)[e.labels()])
        for metric in (features.cluster_accuracy, features.cluster_nmi, features.cluster_ari):
            found = metric(e)
            assert found.value == pytest.approx(1.0)
            assert found.interval == pytest.approx((1.0, 1.0))
            assert 0.3 < found.baselines["raw values"] < 0.95

    def test_one_class_or_no_labels_is_skipped(self):
        with pytest.raises(Skip, match="one class"):
            features.knn_accuracy(evaluation(of_digits([3])))
        data = {k: Split.of(v.x, None, v.transform) for k, v in splits().items()}
        with pytest.raises(Skip, match="no labels"):
            features.cluster_nmi(evaluation(data))

    def test_the_first_samples_alone_count_where_there_are_more(self):
        whole, first = evaluation(of_digits()), evaluation(of_digits(), limit=130)
        torch.testing.assert_close(first.codes().z, whole.codes().z[:130])
        torch.testing.assert_close(first.reconstructions(), whole.reconstructions()[:130])
        assert len(first.labels()) == len(first.values()) == 130


class TestIntervals:
    def test_wilson_is_the_published_formula(self):
        assert intervals.wilson(0.15, 20) == pytest.approx((0.0524, 0.3604), abs=2e-4)  # Brown, Cai & DasGupta 2001: 3 of 20

    def test_the_bootstrap_of_a_mean_is_the_normal_interval(self):
        x = np.random.default_rng(0).normal(size=500)
        low, high = intervals.bootstrap(lambda rows: x[rows].mean(), 500, 0, 4000)
        half = 1.96 * x.std() / math.sqrt(500)
        assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.1 * half)


class TestAnomaly:
    def test_auroc_and_average_precision_are_scikit_learns_beside_pca_and_a_forest(self):
        e = evaluation(of_digits([0, 1, 2]))
        truth = e.labels().numpy() > 2
        error = (e.values() - e.reconstructions()).square().flatten(1).mean(1).numpy()
        pca = PCA(4, svd_solver="full").fit(flat(e, "train"))
        rest = ((flat(e, "test") - pca.inverse_transform(pca.transform(flat(e, "test")))) ** 2).mean(1)
        forest = -IsolationForest(random_state=e.seed).fit(flat(e, "train")).score_samples(flat(e, "test"))
        for metric, score in [
            (anomaly.auroc, sklearn_metrics.roc_auc_score), (anomaly.average_precision, sklearn_metrics.average_precision_score),
        ]:  # fmt: skip
            found = metric(e)
            assert found.value == pytest.approx(score(truth, error), abs=1e-6)
            assert found.baselines == pytest.approx({"pca": score(truth, rest), "isolation forest": score(truth, forest)}, abs=1e-6)
            assert found.protocol["number"] == truth.sum()
            assert found.interval is not None
            assert found.interval[0] < found.value < found.interval[1]

    @pytest.mark.parametrize(
        ("train", "labels", "expected"),
        [
            ([3, 3], [3, 5, 3], [0, 1, 0]),  # one class is normal
            ([0, 1, 2, 4], [4, 3, 1], [0, 1, 0]),  # one class is held out
            ([0, 0], [0, 1, 0], [0, 1, 0]),  # a table without its anomalies
            ([0, 1], [0, 1, 0], [0, 1, 0]),  # a table with them
            (None, [0, 1, 0], [0, 1, 0]),
            ([0, 1, 2], [0, 1, 2], None),
            ([0], [0, 0], None),
            ([0], [1, 1], None),
        ],
    )
    def test_which_samples_are_anomalies(self, train, labels, expected):
        known = None if train is None else torch.tensor(train)
        if expected is None:
            with pytest.raises(Skip):
                anomaly.anomalies(known, torch.tensor(labels))
        else:
            assert anomaly.anomalies(known, torch.tensor(labels))[0].tolist() == list(map(bool, expected))

    def test_missing_values_do_not_count(self):
        x, made = torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan]]), torch.tensor([[3.0, 9.0], [1.0, 1.0]])
        e = evaluation()
        e._values["test"] = x
        assert anomaly.errors_of(e, made).tolist() == [4.0, 0.0]


def known(codes: np.ndarray, factors: np.ndarray) -> Known:
    return Known(codes.astype(float), factors)


GRID = np.array([(a, b, c) for a in range(4) for b in range(4) for c in range(4)] * 10)
"""Three independent factors of four values."""


class TestDisentanglement:
    def test_a_dimension_for_each_factor_is_perfect(self):
        one = known(GRID, GRID)
        assert disentanglement.mig(one) == pytest.approx(1)
        assert disentanglement.modularity(one) == pytest.approx(1)
        assert disentanglement.factor_vae_score(one, 0) == pytest.approx(1)
        assert disentanglement.dci(one, one) == pytest.approx(
            dict.fromkeys(("disentanglement", "completeness", "informativeness"), 1), abs=0.02
        )

    def test_mig_of_a_factor_that_two_dimensions_hold_is_zero(self):
        assert disentanglement.mig(known(GRID[:, [0, 0, 1, 1, 2, 2]], GRID)) == pytest.approx(0)
        assert disentanglement.mig(known(GRID[:, [0, 0, 1, 2]], GRID)) == pytest.approx(2 / 3)

    def test_mig_is_the_formula_of_the_paper(self):
        """Against mutual information from a table of joint frequencies."""
        draws = np.random.default_rng(0)
        factors = draws.integers(3, size=(4000, 2))
        codes = factors @ draws.normal(size=(2, 3)) + 0.3 * draws.normal(size=(4000, 3))
        expected = []
        for factor in factors.T:
            p_v = np.bincount(factor) / 4000
            found = []
            for code in codes.T:
                joint = np.histogram2d(code, factor, bins=(20, 3))[0] / 4000
                p_z = joint.sum(1)
                terms = [p * math.log(p / (p_z[i] * p_v[j])) for (i, j), p in np.ndenumerate(joint) if p > 0]
                found.append(sum(terms))
            *_, second, first = sorted(found)
            expected.append((first - second) / -(p_v * np.log(p_v)).sum())
        assert disentanglement.mig(known(codes, factors)) == pytest.approx(np.mean(expected), rel=1e-9)

    def test_modularity_of_a_dimension_that_holds_two_factors(self):
        """One dimension holds factor 0; the other the pair of 1 and 2, as much of each: 1 - m^2 / (m^2 * (3 - 1))."""
        both = np.stack([GRID[:, 0], 4 * GRID[:, 1] + GRID[:, 2]], 1)
        assert disentanglement.modularity(known(both, GRID)) == pytest.approx((1 + 0.5) / 2, abs=0.01)

    def test_dci_of_given_importances(self):
        importances = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]])
        found = disentanglement.dci_of(importances)
        assert found["disentanglement"] == pytest.approx(0.5 * 1 + 0.5 * 0)
        entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(3)
        assert found["completeness"] == pytest.approx(0.75 * (1 - entropy) + 0.25 * 1)

    def test_sap_is_the_gap_of_accuracies(self):
        """A dimension tells a factor of two values apart, the others are noise or constant: 1 - about 1/2."""
        draws = np.random.default_rng(0)
        factors = draws.integers(2, size=(2000, 2))
        codes = np.stack([2.0 * factors[:, 0] - 1, 2.0 * factors[:, 1] - 1, 0 * factors[:, 0]], 1)
        assert disentanglement.sap(known(codes, factors), known(codes, factors)) == pytest.approx(0.5, abs=0.03)

    def test_the_factor_vae_score_of_noise_is_that_of_guessing(self):
        draws = np.random.default_rng(0)
        factors = draws.integers(4, size=(4000, 3))
        assert disentanglement.factor_vae_score(known(draws.normal(size=(4000, 5)), factors), 0) == pytest.approx(1 / 3, abs=0.08)

    def test_the_factors_are_those_of_the_samples(self):
        data = load(ShapesConfig(size=16, samples=300))
        e = evaluation(data, data={"name": "shapes", "size": 16, "samples": 300})
        found = disentanglement._known(e, disentanglement._codes, "test")
        column = {k: np.asarray(v)[data["test"].rows_at(torch.arange(30)).numpy()] for k, v in data["test"].source.columns.items()}
        assert found.factors.tolist() == np.stack([column[k] for k in FACTORS], 1).tolist()
        assert found.factors[:, 0].tolist() == e.labels().tolist()
        figure = disentanglement.mig_figure(e)
        assert figure.value == figure.baselines["random encoder"]  # both have their initial weights

    def test_data_without_factors_is_skipped(self):
        with pytest.raises(Skip, match="no known factors"):
            disentanglement.mig_figure(evaluation())


class TestRecommendation:
    def test_a_fifth_of_each_users_items_is_held_out(self):
        x = (torch.rand(200, 60, generator=torch.Generator().manual_seed(0)) < torch.linspace(0.02, 0.9, 200)[:, None]).double()
        given, held = recommendation.fold_in(x, Noise.seeded(0, 200))
        count = x.sum(1)
        assert held.sum(1).tolist() == [int(0.2 * n) if n >= 5 else 0 for n in count.tolist()]
        assert (given + held).equal(x)
        assert not recommendation.fold_in(x, Noise.seeded(1, 200)).held.equal(held)

    def test_ndcg_is_scikit_learns(self):
        draws = torch.Generator().manual_seed(0)
        scores, held = torch.rand(50, 200, generator=draws), torch.rand(50, 200, generator=draws) < 0.1
        for k in (10, 100, 500):
            expected = [
                sklearn_metrics.ndcg_score([h], [s], k=k) for h, s in zip(held.double().numpy(), scores.numpy(), strict=True)
            ]
            np.testing.assert_allclose(recommendation.ndcg(scores, held, k).numpy(), expected, rtol=1e-9)

    def test_recall_by_hand(self):
        scores = torch.tensor([[5.0, 4, 3, 2, 1]])
        held = torch.tensor([[True, False, False, True, True]])
        assert float(recommendation.recall(scores, held, 2)) == 1 / 2
        assert float(recommendation.recall(scores, held, 4)) == 2 / 3

    def test_ease_solves_its_equations_and_svd_is_numpys(self):
        """EASE: every column of B is the ridge regression of an item on the others."""
        x = (torch.rand(80, 7, generator=torch.Generator().manual_seed(0)) < 0.4).double()
        linear, eye = recommendation.Linear.of(x), torch.eye(7, dtype=torch.float64)
        weights = linear.ease(3.0)(eye).numpy()
        for item in range(7):
            others = [i for i in range(7) if i != item]
            a = x[:, others].numpy()
            expected = np.linalg.solve(a.T @ a + 3.0 * np.eye(6), a.T @ x[:, item].numpy())
            np.testing.assert_allclose(weights[others, item], expected, atol=1e-10)
            assert weights[item, item] == 0
        u, s, v = np.linalg.svd(x.numpy(), full_matrices=False)
        np.testing.assert_allclose(linear.svd(3)(x).numpy(), (u[:, :3] * s[:3]) @ v[:3], atol=1e-10)
        assert recommendation.popularity(x)(x)[0].tolist() == x.sum(0).tolist()

    def test_users_that_like_what_others_like_are_served_and_those_with_few_items_are_left_out(self):
        """Two groups of users and of items: EASE finds the group, popularity cannot."""
        draws = torch.Generator().manual_seed(0)
        group = torch.arange(300) % 2
        likes = torch.where(group[:, None] == (torch.arange(40) % 2)[None], 0.6, 0.02)
        x = (torch.rand(300, 40, generator=draws) < likes).float()
        x[-1] = 0
        data = {k: Split.of(x[s]) for k, s in {"train": slice(200), "val": slice(200, 250), "test": slice(250, 300)}.items()}
        e = evaluation(data)
        e.run = replace(e.run, data=type("Sparse", (), {"name": "sparse"})())
        found = recommendation.ndcg_100(e)
        assert found.baselines["ease"] > found.baselines["popularity"] + 0.1
        assert found.protocol["users"] == 49
        assert recommendation.recall_20(e).value <= 1

    def test_images_are_skipped(self):
        with pytest.raises(Skip, match="users of items"):
            recommendation.recall_50(evaluation())


@pytest.mark.slow
def test_pca_of_all_dimensions_is_no_baseline():
    """Its error is rounding, by which nothing is to be divided or ranked."""
    sets = of_digits([0, 1, 2])
    with pytest.raises(Skip, match="PCA of 64 dimensions has no error: a sample has 64 values"):
        pca_relative_error(evaluation(sets, model={"latent_dim": 64}))
    assert anomaly.auroc(evaluation(sets, model={"latent_dim": 64})).baselines.keys() == {"isolation forest"}
    assert anomaly.auroc(evaluation(sets, model={"latent_dim": 63})).baselines.keys() == {"isolation forest", "pca"}


def test_the_error_relative_to_pca():
    e = evaluation(of_digits())
    pca = PCA(4, svd_solver="full").fit(flat(e, "train"))
    rest = ((flat(e, "test") - pca.inverse_transform(pca.transform(flat(e, "test")))) ** 2).mean()
    mine = float((e.values() - e.reconstructions()).double().square().mean())
    assert pca_relative_error(e).value == pytest.approx(mine / rest, rel=1e-6)
