"""The jobs of benchmarks/gpu.py: workloads with their networks by hand, the shape of their samples, and their precision."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pythae_net
import torch
from tokenizer_step import ByHand, by_hand
from torch import Tensor, nn
from workloads import PLUGIN, WORKLOADS, Coder, Workload

from distae.config import TrainConfig, parse
from distae.nn import build_decoder, build_encoder

SMALL, LARGE = {"replay": 0.9, "pythae": 10.0}, {"limit": 0.95}


class VQCoder(nn.Module):
    """pythae's VQ-VAE by hand: 16 vectors of 32 values, 256 codes that follow as moving averages (van den Oord 2017, app. A.1)."""

    counts: Tensor
    totals: Tensor
    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Sequential(*pythae_net.resnet_down(32)), nn.Sequential(*pythae_net.resnet_up(32))
        codes = torch.empty(256, 32).uniform_(-1 / 256, 1 / 256)
        for name, value in {"counts": torch.ones(256), "totals": codes, "codes": codes.clone()}.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x).view(-1, 32)
        with torch.no_grad():
            nearest = torch.cdist(z, self.codes).argmin(1)
            quantized = self.codes[nearest]
            seen = torch.zeros_like(self.counts).index_add_(0, nearest, torch.ones_like(z[:, 0]))
            self.counts.lerp_(seen, 0.01)
            self.totals.lerp_(torch.zeros_like(self.codes).index_add_(0, nearest, z), 0.01)
            self.codes.copy_(self.totals / self.counts.clamp_min(1e-5)[:, None])
        recon = self.decoder((z + (quantized - z).detach()).view(len(x), -1))
        return (0.5 * (x - recon).square().sum() + 0.25 * (quantized - z).square().sum()) / len(x)


class Plain(nn.Module):
    """A network of ours without noise."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x, None)
        return out


def resnet_coder(argv: str, shape: tuple[int, ...]) -> Coder:
    """The network of the settings `argv` in the loop by hand: what is measured is the loop around it."""
    cfg = parse(TrainConfig, argv.split(), {}, "").settings
    encoder = build_encoder(cfg.net, shape, 2 * cfg.model.latent_dim)
    return Coder(Plain(encoder), Plain(build_decoder(cfg.net, shape, cfg.model.latent_dim)), variational=True, logits=False)


@dataclass(frozen=True)
class Job:
    """A workload, the shape of its samples, and its precision."""

    workload: Workload
    shape: tuple[int, ...] = (1, 28, 28)
    bf16: bool = False
    variants: tuple[str, ...] = ()
    """Options of more of ours; a job that has some is too large for pythae and for a graph of its step."""

    def autocast(self, device: str) -> Any:
        return torch.autocast(device, torch.bfloat16, enabled=self.bf16)


def kl_f8(tiny: bool) -> dict[str, Job]:
    """The tokenizer of recipe:tokenizers/kl_f8 without LPIPS, before and after its discriminator's start; its networks as a VAE, as
    a tokenizer does not compile."""
    small, large = "--net.channels 8 --net.multipliers 1 2 --net.blocks 1", "--net.channels 128 --net.multipliers 1 2 4 4"
    net = f"--net image {small if tiny else large} --precision bf16 --model.latent-dim 4"
    shape = (3, 16, 16) if tiny else (3, 256, 256)

    def job(argv: str, make: Callable[..., Coder | ByHand], *variants: str) -> Job:
        return Job(Workload(8, 16, 4, partial(make, argv, shape), argv, LARGE), shape, bf16=True, variants=variants)

    start, last, memory = f"{net} --model tokenizer --model.discriminator-start", "--channels-last", "--checkpoint-activations"
    return {
        "kl_f8-256px": job(f"{start} 1000000", tokenizer_by_hand, last, memory, f"{last} {memory}"),
        "kl_f8-after-256px": job(f"{start} 0", tokenizer_by_hand, last),
        "kl_f8-vae-256px": job(f"{net} --model vae --model.likelihood gaussian", resnet_coder, "--compile", f"--compile {last}"),
    }


def tokenizer_by_hand(argv: str, shape: tuple[int, ...]) -> ByHand:
    return by_hand(parse(TrainConfig, argv.split(), {}, "").settings, shape)


def jobs(tiny: bool) -> dict[str, Job]:
    """All jobs; `tiny` makes batches of 8, few steps and a small large one."""
    found = {name: Job(replace(w, steps=60_000 // w.batch // 20 * 20, warm=20, bars=SMALL)) for name, w in WORKLOADS.items()}
    vq = f"{PLUGIN} --net pythae_resnet --model vq_vae --model.latent-dim 512 --model.dim 32 --model.codebook-size 256"
    vq += " --model.likelihood gaussian --model.restart-below 0"
    found["vq-256"] = Job(Workload(256, 220, 20, VQCoder, vq, SMALL))
    channels, shape = ("8 16", (3, 16, 16)) if tiny else ("64 128 256 512", (3, 128, 128))
    large = f"--net resnet --net.channels {channels} --net.blocks 3 --net.norm group --model vae --model.latent-dim 128"
    large += " --model.likelihood gaussian --precision bf16"
    found["resnet-128px"] = Job(Workload(64, 64, 8, partial(resnet_coder, large, shape), large, LARGE), shape, bf16=True)
    found |= kl_f8(tiny)
    if tiny:
        found = {name: replace(job, workload=replace(job.workload, batch=8, steps=4, warm=2)) for name, job in found.items()}
    return found
