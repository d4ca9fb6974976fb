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
from distae.config.models.masked import MaskedAEConfig
from distae.config.models.quantized import FSQVAEConfig, LFQVAEConfig, RQVAEConfig, VQVAEConfig
from distae.config.models.structured import (
    CategoricalVAEConfig,
    HVAEConfig,
    IAFVAEConfig,
    LinNFVAEConfig,
    MSSSIMVAEConfig,
    SVAEConfig,
    VampVAEConfig,
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
from distae.config.models.wasserstein import (
    AAEConfig,
    FactorVAEConfig,
    SWAEConfig,
    VAEGANConfig,
    WAEGANConfig,
    WAEMMDConfig,
)

__all__ = [
    "AAEConfig",
    "AEConfig",
    "BetaTCVAEConfig",
    "BetaVAEConfig",
    "CIWAEConfig",
    "CVAEConfig",
    "CapacityVAEConfig",
    "CategoricalVAEConfig",
    "ContractiveAEConfig",
    "DIPVAEConfig",
    "DenoisingAEConfig",
    "FSQVAEConfig",
    "FactorVAEConfig",
    "HVAEConfig",
    "IAFVAEConfig",
    "IWAEConfig",
    "InfoVAEConfig",
    "LFQVAEConfig",
    "LinNFVAEConfig",
    "LinearAEConfig",
    "MIWAEConfig",
    "MSSSIMVAEConfig",
    "MaskedAEConfig",
    "ModelConfig",
    "PIWAEConfig",
    "RAEGPConfig",
    "RAEL2Config",
    "RQVAEConfig",
    "SVAEConfig",
    "SWAEConfig",
    "SparseAEConfig",
    "VAEConfig",
    "VAEGANConfig",
    "VQVAEConfig",
    "VampVAEConfig",
    "WAEGANConfig",
    "WAEMMDConfig",
]
