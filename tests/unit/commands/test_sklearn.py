"""`distae.sklearn.Autoencoder`: scikit-learn's own checks, and what its users do with an estimator."""

import pickle
import warnings
from typing import Any
from unittest import SkipTest

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from distae.errors import UserError
from distae.sklearn import Autoencoder

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 2)) @ RNG.normal(size=(2, 6))
SMALL: dict[str, Any] = {"epochs": 3, "hidden": (8,), "device": "cpu", "settings": {"threads": 1}}


@pytest.fixture(scope="module")
def fitted() -> Autoencoder:
    return Autoencoder(**SMALL).fit(X)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_scikit_learns_own_checks():
    failed = []
    for estimator, check in estimator_checks_generator(Autoencoder(**SMALL | {"epochs": 2, "hidden": (4,)})):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                check(estimator)
            except SkipTest:  # of the array API, unless a variable asks for it
                continue
            except Exception as error:
                failed.append(f"{check.func.__name__}: {error}")
    assert not failed


def test_codes_and_back(fitted):
    z = fitted.transform(X)
    assert (z.shape, z.dtype, fitted.n_features_in_) == ((200, 2), np.float64, 6)
    assert fitted.inverse_transform(z).shape == X.shape
    np.testing.assert_allclose(fitted.inverse_transform(z), fitted.model_.reconstruct(X), rtol=1e-12)
    assert fitted.get_feature_names_out().tolist() == ["autoencoder0", "autoencoder1"]
    assert fitted.history_[-1]["train/loss"]


def test_the_input_gives_the_precision():
    single = Autoencoder(**SMALL).fit(X.astype(np.float32))
    assert single.model_.dtype.itemsize == 4
    assert single.transform(X.astype(np.float32)).dtype == np.float32


@pytest.mark.slow
def test_outliers(fitted):
    assert (fitted.predict(X) == -1).mean() == pytest.approx(0.1)
    np.testing.assert_allclose(fitted.score_samples(X), -((X - fitted.model_.reconstruct(X)) ** 2).mean(1), rtol=1e-9)
    np.testing.assert_allclose(fitted.decision_function(X), fitted.score_samples(X) - fitted.offset_)
    model = Autoencoder(**SMALL | {"epochs": 150, "lr": 0.01}).fit(X)
    assert (model.predict(X + 5 * RNG.normal(size=X.shape)) == -1).mean() > 0.9
    assert model.score(X) > 5 * fitted.score(X)


def test_copies_and_files(fitted, tmp_path):
    joblib = pytest.importorskip("joblib")  # of scikit-learn
    joblib.dump(fitted, tmp_path / "a.joblib")
    for copy in (pickle.loads(pickle.dumps(fitted)), joblib.load(tmp_path / "a.joblib"), clone(fitted).fit(X)):
        assert np.array_equal(copy.transform(X), fitted.transform(X))


@pytest.mark.slow
def test_pipelines_and_grids():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=list("abcdef"))
    pipeline = make_pipeline(StandardScaler(), Autoencoder(**SMALL))
    grid = GridSearchCV(pipeline, {"autoencoder__latent_dim": [1, 2]}, cv=2).fit(frame)
    assert grid.best_params_["autoencoder__latent_dim"] in (1, 2)
    best = grid.best_estimator_[-1]
    assert grid.transform(frame).shape == (200, best.latent_dim)
    assert list(best.get_feature_names_out()) == [f"autoencoder{i}" for i in range(best.latent_dim)]


@pytest.mark.slow
def test_variants_and_further_settings():
    made = Autoencoder("sparse_ae", latent_dim=4, **SMALL | {"settings": {"threads": 1, "sparsity": "topk", "k": 1}}).fit(X)
    assert ((made.transform(X) != 0).sum(1) <= 1).all()
    seeds = [Autoencoder(**SMALL, random_state=seed).fit(X).transform(X) for seed in (0, None, 1, np.random.RandomState(1))]
    assert np.array_equal(seeds[0], seeds[1])
    assert not np.array_equal(seeds[0], seeds[2])
    assert not np.array_equal(seeds[2], seeds[3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contamination": 0.9}, "contamination is 0.9; expected a share above 0, at most 0.5"),
        ({"model": "vea"}, r"model: unknown 'vea' \(did you mean 'vae'\?\)"),
        ({"settings": {"lerning_rate": 1}}, r"unknown setting 'lerning_rate' \(did you mean 'learning_rate'\?\)"),
    ],
)
def test_wrong_parameters_are_named(changes, message):
    with pytest.raises(UserError, match=f"^{message}"):
        Autoencoder(**SMALL | changes).fit(X)
