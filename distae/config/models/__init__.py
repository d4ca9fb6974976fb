"""Settings of every model variant. The class in distae/models bound to one by @register holds its equations."""

from distae.config.models.base import ModelConfig
from distae.config.models.deterministic import (
    AEConfig,
    ContractiveAEConfig,
    DenoisingAEConfig,
    LinearAEConfig,
    RAEGPConfig,
    RAEL2Config,
    SparseAEConfig,
)
from distae.config.models.variational import (
    BetaTCVAEConfig,
    BetaVAEConfig,
    CapacityVAEConfig,
    CIWAEConfig,
    CVAEConfig,
    DIPVAEConfig,
    InfoVAEConfig,
    IWAEConfig,
    MIWAEConfig,
    PIWAEConfig,
    VAEConfig,
)

__all__ = [
    "AEConfig",
    "BetaTCVAEConfig",
    "BetaVAEConfig",
    "CIWAEConfig",
    "CVAEConfig",
    "CapacityVAEConfig",
    "ContractiveAEConfig",
    "DIPVAEConfig",
    "DenoisingAEConfig",
    "IWAEConfig",
    "InfoVAEConfig",
    "LinearAEConfig",
    "MIWAEConfig",
    "ModelConfig",
    "PIWAEConfig",
    "RAEGPConfig",
    "RAEL2Config",
    "SparseAEConfig",
    "VAEConfig",
]
