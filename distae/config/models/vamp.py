"""The VampPrior."""

from dataclasses import dataclass
from typing import ClassVar

from distae.config.fields import Count
from distae.config.models.vae import WeighedKLConfig
from distae.config.nets import NetConfig
from distae.errors import UserError


@dataclass(frozen=True, kw_only=True)
class VampVAEConfig(WeighedKLConfig):
    """VampPrior (Tomczak & Welling 2018): the prior is the mean posterior of learned pseudo-inputs."""

    name: ClassVar[str] = "vamp_vae"
    prior: ClassVar[str] = "vamp"

    components: Count = 50
    """Number of pseudo-inputs."""

    def check(self, shape: tuple[int, ...], net: NetConfig) -> None:
        if net.norm == "batch":
            raise UserError("--net.norm batch: vamp_vae encodes its pseudo-inputs too; valid: none, group, layer")
