"""pythae's variants and ours: same network, MNIST split, epochs and seeds; reconstruction error and ELBO of both.

pip install pythae==0.1.2        # into a separate environment with distae: it pins other versions than we do
python benchmarks/peers/quality.py --root data
"""

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pythae import models as theirs
from pythae.data.datasets import BaseDataset
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import AdversarialTrainer, AdversarialTrainerConfig, BaseTrainer, BaseTrainerConfig
from torch import Tensor, nn

from distae import data, load
from distae import distributed as dist
from distae.commands import session
from distae.config import TrainConfig, build, check
from distae.runtime.environment import Environment
from distae.runtime.signals import StopRequest

LATENT, HIDDEN, BATCH, RATE = 16, 256, 100, 1e-3
DIMS = {"input_dim": (1, 28, 28), "latent_dim": LATENT}
SQUARES = {"likelihood": "gaussian", "scale": 0.5**0.5}
"""-log p(x|z) is then the squared error, as in pythae, up to a constant."""
VARIANTS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "vae": (theirs.VAE, theirs.VAEConfig(**DIMS, reconstruction_loss="bce"), {}),
    "beta_tc_vae": (theirs.BetaTCVAE, theirs.BetaTCVAEConfig(**DIMS, reconstruction_loss="bce", beta=2.0), {"beta": 2.0}),
    "wae_mmd": (theirs.WAE_MMD, theirs.WAE_MMD_Config(**DIMS, reg_weight=10.0, scales=[1.0]), {"weight": 10.0} | SQUARES),
    "vq_vae": (
        theirs.VQVAE, theirs.VQVAEConfig(**DIMS, num_embeddings=64, use_ema=True),
        {"latent_dim": 64, "dim": 4, "codebook_size": 64} | SQUARES,
    ),
    "aae": (
        theirs.Adversarial_AE, theirs.Adversarial_AE_Config(**DIMS, deterministic_posterior=True, reconstruction_loss="mse"),
        {"likelihood": "gaussian"},
    ),
}  # fmt: skip


class Encoder(BaseEncoder):
    """784-256-code, with a second head for the log-variance or, for VQ, 16 vectors of 4 values."""

    def __init__(self, kind: str) -> None:
        BaseEncoder.__init__(self)
        self.kind = kind
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, HIDDEN), nn.ReLU())
        self.mean = nn.Linear(HIDDEN, 64 if kind == "vq_vae" else LATENT)
        self.spread = nn.Linear(HIDDEN, LATENT) if kind in ("vae", "beta_tc_vae", "aae") else None

    def forward(self, x: Tensor) -> ModelOutput:
        h = self.body(x)
        mean = self.mean(h).view(-1, 4, 16, 1) if self.kind == "vq_vae" else self.mean(h)
        return ModelOutput(embedding=mean) if self.spread is None else ModelOutput(embedding=mean, log_covariance=self.spread(h))


class Decoder(BaseDecoder):
    """The mirror image, with a sigmoid for the binary cross-entropy."""

    def __init__(self, kind: str) -> None:
        BaseDecoder.__init__(self)
        size = 64 if kind == "vq_vae" else LATENT
        layers = [nn.Flatten(), nn.Linear(size, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 784), nn.Unflatten(1, (1, 28, 28))]
        self.body = nn.Sequential(*layers, *([nn.Sigmoid()] if kind in ("vae", "beta_tc_vae") else []))

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.body(z))


def fit_theirs(name: str, x: Tensor, epochs: int, seed: int, folder: str) -> Any:
    torch.manual_seed(seed)
    cls, cfg, _ = VARIANTS[name]
    images = BaseDataset(x, torch.zeros(len(x)))
    model = cls(cfg, encoder=Encoder(name), decoder=Decoder(name))
    shared = {"output_dir": folder, "num_epochs": epochs, "per_device_train_batch_size": BATCH, "seed": seed, "no_cuda": True}
    if name == "aae":
        rates = {"autoencoder_learning_rate": RATE, "discriminator_learning_rate": RATE}
        trainer = AdversarialTrainer(model, images, None, AdversarialTrainerConfig(**shared, **rates))
    else:
        trainer = BaseTrainer(model, images, None, BaseTrainerConfig(**shared, learning_rate=RATE, keep_best_on_train=True))
    with contextlib.redirect_stderr(io.StringIO()):
        trainer.train()
    return model.eval()


def fit_ours(name: str, root: str, limit: int, epochs: int, seed: int, folder: str) -> Any:
    table = {
        "model": {"name": name, "latent_dim": LATENT} | VARIANTS[name][2], "net": {"name": "mlp", "hidden": [HIDDEN]},
        "data": {"name": "mnist", "root": root, "limit": limit, "val_fraction": 0.0}, "optim": {"lr": RATE}, "epochs": epochs,
        "global_batch_size": BATCH, "seed": seed, "run_dir": folder, "tracking": "none", "device": "cpu", "save_every": 10**6,
    }  # fmt: skip
    cfg = check(build(TrainConfig, table), 1)
    splits = data.load(cfg.data)
    with contextlib.redirect_stderr(io.StringIO()):
        session.train_run(replace(cfg), splits, StopRequest(), 1)
    return load(folder)


@torch.no_grad()
def score(x: Tensor, recon: Tensor, mu: Tensor | None, logvar: Tensor | None, decode: Any) -> dict[str, float]:
    """Squared error per pixel of the reconstruction, and the negative ELBO in nats with 5 posterior samples."""
    found = {"mse": float((recon - x).square().mean())}
    if mu is not None and logvar is not None:
        generator = torch.Generator().manual_seed(0)
        draws = [mu + torch.randn(mu.shape, generator=generator) * torch.exp(0.5 * logvar) for _ in range(5)]
        nll = sum(float(F.binary_cross_entropy(decode(z).clamp(0, 1), x, reduction="sum")) for z in draws) / 5
        kl = float(0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum())
        found["-elbo"] = (nll + kl) / len(x)
    return found


@torch.no_grad()
def score_theirs(name: str, model: Any, x: Tensor) -> dict[str, float]:
    code = model.encoder(x)
    elbo = name in ("vae", "beta_tc_vae")
    recon = model.decoder(code.embedding).reconstruction if name != "vq_vae" else model.reconstruct(x)
    logvar = code.log_covariance if elbo else None
    return score(x, recon, code.embedding if elbo else None, logvar, lambda z: model.decoder(z).reconstruction)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data")
    parser.add_argument("--limit", type=int, default=5000, help="training images")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    dist.set_threads(1, Environment())
    table = {"name": "mnist", "root": args.root, "limit": args.limit, "val_fraction": 0.0}
    splits = data.load(build(TrainConfig, {"data": table}).data)
    x, test = (splits[k].x.float() / 255 for k in ("train", "test"))
    test = test[:2000]
    print("| variant | metric | pythae | distae |\n|---|---|---|---|", flush=True)
    for name in args.variants:
        rows: dict[str, list[dict[str, float]]] = {"pythae": [], "distae": []}
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                rows["pythae"].append(score_theirs(name, fit_theirs(name, x, args.epochs, seed, folder), test))
                Path(folder, "run").mkdir()
                ours = fit_ours(name, args.root, args.limit, args.epochs, seed, f"{folder}/run")
                with torch.no_grad():
                    codes = ours.codes(test)
                    rows["distae"].append(score(test, ours.reconstruct(test), codes.mu, codes.logvar, ours.decode))
        for metric in rows["pythae"][0]:
            values = {k: [r[metric] for r in v] for k, v in rows.items()}
            shown = [f"{statistics.mean(v):.5g} ({min(v):.5g} to {max(v):.5g})" for v in values.values()]
            print(f"| {name} | {metric} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
