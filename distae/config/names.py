"""Valid names in settings, known before torch is imported; plugins add theirs when they are loaded."""

from typing import Annotated, Any, Literal, NamedTuple

from distae.config.fields import OneOf
from distae.config.registry import Registry


class Traits(NamedTuple):
    """What is known of a likelihood before torch is imported."""

    scaled: bool = False
    """Whether it has --model.scale and --model.learn-scale."""
    support: Literal["real", "unit", "counts", "onehot"] = "real"
    """Values that data may have: any, those in [0, 1], integers from 0 on, or one 1 per sample and else 0."""
    plain: bool = False
    """Whether the decoder gives one output per value and values are independent: it then works for parts of a sample too."""


TRAITS: dict[str, Traits] = {
    "bernoulli": Traits(support="unit", plain=True),
    "continuous_bernoulli": Traits(support="unit", plain=True),
    "gaussian": Traits(scaled=True, plain=True),
    "gaussian_per_value": Traits(),
    "sigmoid_gaussian": Traits(scaled=True, support="unit", plain=True),
    "laplace": Traits(scaled=True, plain=True),
    "logistic_mixture": Traits(support="unit"),
    "categorical": Traits(support="onehot"),
    "mixed": Traits(scaled=True),
    "poisson": Traits(support="counts"),
    "nb": Traits(support="counts"),
    "zinb": Traits(support="counts"),
    "multinomial": Traits(support="counts"),
}
"""Traits of each likelihood that ships with distae."""
LIKELIHOODS: Registry[str, Any] = Registry("likelihood", TRAITS)
METRICS: Registry[str, Any] = Registry("metric", (
    "mse",
    "reconstruction_mse", "reconstruction_mae", "psnr", "ssim", "ms_ssim", "lpips", "rfid", "pca_relative_error",
    "elbo", "iwae_bound", "bits_per_dim", "denoising_mse", "denoising_psnr", "code_use", "code_perplexity",
    "knn_accuracy", "linear_probe", "cluster_accuracy", "cluster_nmi", "cluster_ari", "auroc", "average_precision",
    "ndcg_100", "recall_20", "recall_50", "mig", "modularity", "sap", "factor_vae_score",
    "dci_disentanglement", "dci_completeness", "dci_informativeness",
    "frechet_distance", "fid", "precision", "recall", "density", "coverage", "copies",
    "bits_per_pixel", "compression_psnr", "coding_overhead",
    "trustworthiness", "continuity", "interpolation_jump", "completeness", "active_units", "aggregate_kl", "aggregate_mmd",
    "scaling_factor",
    "l0", "explained_variance", "fvu", "dead_share", "shrinkage", "latent_density", "max_cosine", "uniqueness", "mcc", "f1",
    "loss_recovered",
))  # fmt: skip
"""Metrics that an evaluation reports besides the model's terms."""


def metric_of(best_metric: str) -> str:
    """The registered name in `val/NAME`, or in `val/NAME/SUFFIX` of a metric of several figures."""
    return best_metric.removeprefix("val/").partition("/")[0]


SINKS: Registry[str, Any] = Registry("sink", ("wandb", "tensorboard", "trackio", "none"))
"""Where rows go besides the files of the run folder; `none` is nowhere."""
PERCEPTUAL: Registry[str, Any] = Registry("perceptual network", ("none", "lpips", "msssim"))
"""Perceptual distances of --model tokenizer; those of plugins are functions that make a network."""
LikelihoodName = Annotated[str, OneOf(LIKELIHOODS)]
PerceptualName = Annotated[str, OneOf(PERCEPTUAL)]
SinkName = Annotated[str, OneOf(SINKS)]
