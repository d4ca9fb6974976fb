"""Posteriors by normalising flows."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from distae.config.fields import Count
from distae.config.models.vae import WeighedKLConfig


@dataclass(frozen=True, kw_only=True)
class LinNFVAEConfig(WeighedKLConfig):
    """VAE with planar or radial flows (Rezende & Mohamed 2015)."""

    name: ClassVar[str] = "lin_nf_vae"

    flow: Literal["planar", "radial"] = "planar"
    """Kind of flow."""
    flows: Count = 8
    """Number of flows, one after the other."""


@dataclass(frozen=True, kw_only=True)
class IAFVAEConfig(WeighedKLConfig):
    """VAE with inverse autoregressive flows (Kingma 2016)."""

    name: ClassVar[str] = "iaf_vae"

    flows: Count = 2
    """Number of flows; every second one reverses the order of the dimensions."""
    flow_hidden: Count = 128
    """Hidden size of each flow's masked network."""
