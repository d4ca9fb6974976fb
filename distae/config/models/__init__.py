"""Settings of every model variant. The class in distae/models bound to one by @register holds its equations."""

from distae.config.registry import import_all

# In the order of --help.
# isort: off
from distae.config.models.base import ModelConfig
from distae.config.models.ae import AEConfig, DenoisingAEConfig, LinearAEConfig, SparseAEConfig
from distae.config.models.sparse_dictionary import (
    BatchTopKSAEConfig,
    GatedSAEConfig,
    JumpReLUSAEConfig,
    L1SAEConfig,
    MatryoshkaSAEConfig,
    TopKSAEConfig,
)
from distae.config.models.smooth import ContractiveAEConfig, RAEGPConfig, RAEL2Config
from distae.config.models.masked import MaskedAEConfig
from distae.config.models.quantized import BSQVAEConfig, FSQVAEConfig, LFQVAEConfig, RQVAEConfig, VQVAEConfig
from distae.config.models.vae import BetaTCVAEConfig, BetaVAEConfig, CapacityVAEConfig, DIPVAEConfig, InfoVAEConfig, VAEConfig
from distae.config.models.conditional import CVAEConfig
from distae.config.models.importance import CIWAEConfig, IWAEConfig, MIWAEConfig, PIWAEConfig
from distae.config.models.vamp import VampVAEConfig
from distae.config.models.flow import IAFVAEConfig, LinNFVAEConfig
from distae.config.models.sphere import SVAEConfig
from distae.config.models.hierarchy import HVAEConfig
from distae.config.models.categorical import CategoricalVAEConfig
from distae.config.models.similarity import MSSSIMVAEConfig
from distae.config.models.wasserstein import SWAEConfig, WAEMMDConfig
from distae.config.models.adversarial import AAEConfig, FactorVAEConfig, VAEGANConfig, WAEGANConfig
from distae.config.models.tokenizer import TokenizerConfig
# isort: on

__all__ = [
    "AAEConfig",
    "AEConfig",
    "BSQVAEConfig",
    "BatchTopKSAEConfig",
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
    "GatedSAEConfig",
    "HVAEConfig",
    "IAFVAEConfig",
    "IWAEConfig",
    "InfoVAEConfig",
    "JumpReLUSAEConfig",
    "L1SAEConfig",
    "LFQVAEConfig",
    "LinNFVAEConfig",
    "LinearAEConfig",
    "MIWAEConfig",
    "MSSSIMVAEConfig",
    "MaskedAEConfig",
    "MatryoshkaSAEConfig",
    "ModelConfig",
    "PIWAEConfig",
    "RAEGPConfig",
    "RAEL2Config",
    "RQVAEConfig",
    "SVAEConfig",
    "SWAEConfig",
    "SparseAEConfig",
    "TokenizerConfig",
    "TopKSAEConfig",
    "VAEConfig",
    "VAEGANConfig",
    "VQVAEConfig",
    "VampVAEConfig",
    "WAEGANConfig",
    "WAEMMDConfig",
]

import_all(__name__)
