"""distae as a scikit-learn estimator: in pipelines, grid searches and outlier detection."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, OutlierMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from distae.commands.fit import fit
from distae.errors import UserError

Array = np.ndarray[Any, Any]
FLOATS = (np.float64, np.float32)


class Autoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """An autoencoder: codes by `transform`, their reconstructions by `inverse_transform`, outliers by `predict`.

    The data are taken as they are: put a `StandardScaler` before it where columns have different units. float64 input is computed
    in float64, float32 in float32, and the same `random_state` gives the same result.

    Parameters
    ----------
    model : str, optional
        Name of the variant (`distae train --help`); by default that of `distae train`.
    latent_dim : int
        Number of values of the code.
    hidden : sequence of int
        Widths of the encoder's hidden layers; the decoder mirrors them.
    likelihood : str
        p(x|z); gaussian is the squared error, bernoulli is for values in [0, 1].
    lr : float
        Learning rate.
    epochs : int
        Passes over the data.
    batch_size : int
        Samples per step, at most the number of samples.
    contamination : float
        Share of the training samples that `predict` calls outliers, above 0 and at most 0.5.
    random_state : int, RandomState, optional
        Seed; None is seed 0.
    device : str
        auto, cpu or cuda.
    settings : dict, optional
        Other settings by name, as for `distae.fit`: `{"beta": 4.0, "norm": "layer"}`.

    Attributes
    ----------
    model_ : distae.Model
        The trained model.
    history_ : list of dict
        The run's rows of metrics.
    offset_ : float
        Value of `score_samples` below which samples are outliers.
    n_features_in_, feature_names_in_
        As in scikit-learn.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        latent_dim: int = 2,
        hidden: Sequence[int] = (64,),
        likelihood: str = "gaussian",
        lr: float = 2e-3,
        epochs: int = 100,
        batch_size: int = 128,
        contamination: float = 0.1,
        random_state: Any = None,
        device: str = "auto",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.latent_dim, self.hidden, self.likelihood = model, latent_dim, hidden, likelihood
        self.lr, self.epochs, self.batch_size = lr, epochs, batch_size
        self.contamination, self.random_state, self.device, self.settings = contamination, random_state, device, settings

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803 - scikit-learn's own name
        """Train on `X` `[N, n_features]`; `y` is ignored. Raises ValueError on invalid data, UserError on invalid parameters."""
        checked = validate_data(self, X, dtype=list(FLOATS))
        if not 0 < self.contamination <= 0.5:
            raise UserError(f"contamination is {self.contamination!r}; expected a share above 0, at most 0.5")
        run = fit(checked, progress=False, **self._asked(checked))
        self.model_, self.history_ = run.model, run._rows
        self.offset_ = float(np.quantile(-np.asarray(self.model_.score(checked)), self.contamination))
        return self

    def transform(self, X: Any) -> Array:  # noqa: N803
        """Codes `[N, n_codes]` of `X` `[N, n_features]`."""
        checked = self._checked(X)
        return np.asarray(self.model_.encode(checked))

    def inverse_transform(self, Z: Any) -> Array:  # noqa: N803
        """Samples `[N, n_features]` of codes `Z` `[N, n_codes]`."""
        check_is_fitted(self)
        return np.asarray(self.model_.decode(check_array(Z, dtype=list(FLOATS))))

    def score_samples(self, X: Any) -> Array:  # noqa: N803
        """The negative mean squared error of the reconstruction of each sample, `[N]`: the lower, the more abnormal."""
        checked = self._checked(X)
        return -np.asarray(self.model_.score(checked))

    def score(self, X: Any, y: Any = None) -> float:  # noqa: N803
        """The mean of `score_samples`, for `GridSearchCV`."""
        return float(self.score_samples(X).mean())

    def decision_function(self, X: Any) -> Array:  # noqa: N803
        """`score_samples(X) - offset_`, `[N]`: below 0 for outliers."""
        scores = self.score_samples(X)
        return scores - self.offset_

    def predict(self, X: Any) -> Array:  # noqa: N803
        """-1 for outliers, 1 for the others, `[N]`."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    @property
    def _n_features_out(self) -> int:
        return int(np.prod(self.model_.code_shape))

    def _asked(self, X: np.ndarray) -> dict[str, Any]:  # noqa: N803
        """The settings of the run."""
        given = self.settings or {}
        own: dict[str, Any] = {
            "latent_dim": self.latent_dim, "hidden": self.hidden, "likelihood": self.likelihood, "lr": self.lr,
            "epochs": self.epochs, "batch_size": min(self.batch_size, len(X)), "device": self.device, "seed": self._seed(),
            "data.val_fraction": 0.0,
            "precision": "fp64" if X.dtype == np.float64 else "fp32",
        }  # fmt: skip
        own |= {} if self.model is None else {"model": self.model}
        if "net" in given:  # other networks have other widths
            del own["hidden"]
        return own | dict(given)

    def _seed(self) -> int:
        if self.random_state is None:
            return 0
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _checked(self, X: Any) -> Array:  # noqa: N803
        check_is_fitted(self)
        return np.asarray(validate_data(self, X, dtype=list(FLOATS), reset=False))
