"""dictionary_learning's trainers (pip install dictionary-learning) on the same batches: their `update`, without logs and saves."""

import json
from pathlib import Path
from typing import Any

import torch
from dictionary_learning.trainers import BatchTopKTrainer, JumpReluTrainer, StandardTrainer, TopKTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from safetensors.torch import save_file
from torch import Tensor

from distae.config.models import MatryoshkaSAEConfig
from distae.config.weights import at


def made(cfg: Any, values: int, lr: float, steps: int, seed: int, warmup: int) -> Any:
    """What dictionary_learning has for a variant of ours. Its squared error is not halved, so weights of a penalty are doubled.

    The learning rate is constant, as here, and the threshold's average begins within the run.
    """
    of: dict[str, Any] = {
        "steps": steps,
        "activation_dim": values,
        "dict_size": cfg.latent_dim,
        "layer": 0,
        "lm_name": "",
        "lr": lr,
    }
    of |= {"seed": seed, "device": "cpu", "warmup_steps": 0}
    if cfg.name == "l1_sae":
        return StandardTrainer(**of, l1_penalty=2 * at(cfg.weight, None), sparsity_warmup_steps=warmup or None)
    if cfg.name == "jumprelu_sae":
        penalty = {"sparsity_penalty": 2 * at(cfg.weight, None), "sparsity_warmup_steps": warmup or None}
        return JumpReluTrainer(**of, **penalty, target_l0=cfg.k, bandwidth=cfg.bandwidth)
    of |= {"k": cfg.k, "threshold_start_step": steps // 2}
    if isinstance(cfg, MatryoshkaSAEConfig):
        shares = [(b - a) / cfg.latent_dim for a, b in zip((0, *cfg.widths), cfg.widths, strict=False)]
        return MatryoshkaBatchTopKTrainer(**of, group_fractions=shares)
    return (TopKTrainer if cfg.name == "topk_sae" else BatchTopKTrainer)(**of)


class Trainer:
    """One step at a time of a variant; `warmup` of a penalty's weight."""

    def __init__(self, cfg: Any, x: Tensor, batch: int, lr: float, steps: int, seed: int = 0, warmup: int = 0) -> None:
        torch.manual_seed(seed)
        self.name, self.x, self.batch, self.pool = cfg.name, x, batch, len(x) // batch
        self.trainer = made(cfg, x.shape[1], lr, steps, seed, warmup)

    def __call__(self, number: int) -> None:
        self.trainer.update(number, self.x[number % self.pool * self.batch :][: self.batch])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Encoder and decoder `[L, D]`, their biases, and thresholds `[L]`, as views of the parameters."""
        ae = self.trainer.ae
        found = {"threshold": ae.threshold} if self.name == "jumprelu_sae" else {}
        if hasattr(ae, "W_enc"):
            return found | {"encoder": ae.W_enc.T, "decoder": ae.W_dec, "encoder_bias": ae.b_enc, "bias": ae.b_dec}
        bias = ae.bias if self.name == "l1_sae" else ae.b_dec
        return found | {"encoder": ae.encoder.weight, "decoder": ae.decoder.weight.T, "encoder_bias": ae.encoder.bias, "bias": bias}

    def save(self, folder: Path) -> None:
        """In the files of SAELens. Its jumprelu encoder does not subtract the decoder's bias."""
        t, values = self.tensors, self.x.shape[1]
        tensors = {"W_enc": t["encoder"].T, "W_dec": t["decoder"], "b_enc": t["encoder_bias"], "b_dec": t["bias"]}
        cfg: dict[str, Any] = {"architecture": {"l1_sae": "standard", "topk_sae": "topk"}.get(self.name, "jumprelu")}
        cfg |= {"d_in": values, "d_sae": len(t["decoder"]), "apply_b_dec_to_input": self.name != "jumprelu_sae"}
        if cfg["architecture"] == "topk":
            cfg["k"] = int(self.trainer.k)
        elif cfg["architecture"] == "jumprelu":
            tensors["threshold"] = t.get("threshold", torch.as_tensor(self.trainer.ae.threshold)).expand(len(t["decoder"]))
        save_file({name: x.detach().contiguous().clone() for name, x in tensors.items()}, folder / "sae_weights.safetensors")
        (folder / "cfg.json").write_text(json.dumps(cfg))
