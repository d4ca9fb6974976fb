"""SAELens 6's trainer (pip install 'distae[peers]') on the same batches: its step, without its logs, evaluations and saves."""

from pathlib import Path
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from distae.config.models import MatryoshkaSAEConfig
from distae.config.weights import at


def made(cfg: Any, values: int, warmup: int) -> Any:
    """What SAELens has for a variant of ours. Its squared error is not halved, so weights of a penalty are doubled."""
    of: dict[str, Any] = {"d_in": values, "d_sae": cfg.latent_dim}
    if isinstance(cfg, MatryoshkaSAEConfig):
        return MatryoshkaBatchTopKTrainingSAE(MatryoshkaBatchTopKTrainingSAEConfig(**of, k=cfg.k, matryoshka_widths=[*cfg.widths]))
    if cfg.name == "batch_topk_sae":
        return BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**of, k=cfg.k))
    if cfg.name == "topk_sae":
        return TopKTrainingSAE(TopKTrainingSAEConfig(**of, k=cfg.k))
    weight = at(cfg.weight, None)
    if cfg.name == "gated_sae":
        return GatedTrainingSAE(GatedTrainingSAEConfig(**of, l1_coefficient=2 * weight, l1_warm_up_steps=warmup))
    if cfg.name == "l1_sae":
        return StandardTrainingSAE(StandardTrainingSAEConfig(**of, l1_coefficient=2 * weight, l1_warm_up_steps=warmup))
    return JumpReLUTrainingSAE(
        JumpReLUTrainingSAEConfig(
            **of, jumprelu_sparsity_loss_mode="quadratic", target_l0=cfg.k, l0_coefficient=weight / cfg.k,
            l0_warm_up_steps=warmup, jumprelu_init_threshold=cfg.threshold, jumprelu_bandwidth=cfg.bandwidth,
        )
    )  # fmt: skip


class Trainer:
    """One step at a time of a variant; `warmup` of a penalty's weight."""

    def __init__(self, cfg: Any, x: Tensor, batch: int, lr: float, steps: int, seed: int = 0, warmup: int = 0) -> None:
        torch.manual_seed(seed)
        self.x, self.batch, self.pool = x, batch, len(x) // batch
        self.sae = made(cfg, x.shape[1], warmup)
        settings = SAETrainerConfig(
            total_training_samples=steps * batch, train_batch_size_samples=batch, lr=lr, lr_end=lr,
            logger=LoggingConfig(log_to_wandb=False),
        )  # fmt: skip
        self.trainer: Any = SAETrainer(settings, self.sae, iter(()))

    def __call__(self, number: int) -> None:
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(self.x[number % self.pool * self.batch :][: self.batch])
        self.trainer.n_training_steps += 1

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Encoder and decoder `[L, D]`, their biases, and thresholds `[L]`, as views of the parameters."""
        sae = self.sae
        found = {"threshold": sae.threshold} if isinstance(sae, JumpReLUTrainingSAE) else {}
        bias = sae.b_gate if hasattr(sae, "b_gate") else sae.b_enc
        return found | {"encoder": sae.W_enc.T, "decoder": sae.W_dec, "encoder_bias": bias, "bias": sae.b_dec}

    def save(self, folder: Path) -> None:
        self.sae.save_inference_model(folder)
