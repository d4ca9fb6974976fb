"""Settings of `distae evaluate`."""

from dataclasses import dataclass

from distae.config.fields import Count


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What defines the figures besides the model and the data."""

    tasks: tuple[str, ...] = ("all",)
    """Questions to answer, separated by commas; all: those that apply to the model and the data."""
    limit: Count = 10_000
    """Maximum number of samples of a split that metrics of codes keep in memory; means cover all samples."""
    importance_samples: Count = 128
    """Posterior samples K of the bound of log p(x)."""
    sampler: str | None = None
    """Where the evaluated samples come from, as in `distae generate`; default: the variant's prior."""
    lpips_weights: str | None = None
    """File of LPIPS' linear layers, such as alex.pth of the package lpips; the distance is skipped without."""
    lpips_backbone: str | None = None
    """File of torchvision's AlexNet or VGG16 of ImageNet that these layers are of, such as alexnet-owt-7be5be79.pth."""
    inception_weights: str | None = None
    """File of FID's Inception network, pt_inception-2015-12-05-6726825d.pth of pytorch-fid; FID and rFID are skipped without."""
    loss_function: str | None = None
    """FILE.py:FUNCTION of yours: (samples, row numbers) to the loss [N] of a network from these activations on;
    loss_recovered is skipped without."""
