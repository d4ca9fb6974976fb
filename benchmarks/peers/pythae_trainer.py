"""pythae 0.1.2's trainer as a contestant: its epoch loop, progress bar included, without its evaluation and saves."""

import logging
from pathlib import Path
from typing import Any

from pythae.data.datasets import BaseDataset
from pythae.models import AE, VAE, VQVAE, AEConfig, VAEConfig, VQVAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.models.nn.benchmarks.mnist import (
    Decoder_Conv_AE_MNIST,
    Decoder_ResNet_VQVAE_MNIST,
    Encoder_Conv_VAE_MNIST,
    Encoder_ResNet_VQVAE_MNIST,
)
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor, nn
from workloads import Clock, Contestant, Rate, Workload, count, silence


class Encoder(BaseEncoder):
    """A network by hand; in a VAE, half of its output is the log-variance."""

    def __init__(self, body: nn.Module, variational: bool) -> None:
        BaseEncoder.__init__(self)
        self.body, self.variational = body, variational

    def forward(self, x: Tensor) -> ModelOutput:
        out = self.body(x)
        if not self.variational:
            return ModelOutput(embedding=out)
        mu, logvar = out.chunk(2, dim=1)
        return ModelOutput(embedding=mu, log_covariance=logvar)


class Decoder(BaseDecoder):
    """A network by hand, with a sigmoid if it returns logits: pythae's binary cross-entropy takes probabilities."""

    def __init__(self, body: nn.Module, logits: bool) -> None:
        BaseDecoder.__init__(self)
        self.body = nn.Sequential(body, nn.Sigmoid()) if logits else body

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.body(z))


def model(workload: Workload) -> Any:
    """The workload as pythae would have it: its own network for MNIST, or ours in its classes."""
    if "pythae_resnet" in workload.argv:
        quantized = VQVAEConfig((1, 28, 28), 32, use_ema=True, num_embeddings=256)
        return VQVAE(quantized, Encoder_ResNet_VQVAE_MNIST(quantized), Decoder_ResNet_VQVAE_MNIST(quantized))
    coder = workload.by_hand()
    if not coder.variational:
        return AE(AEConfig(latent_dim=20), Encoder(coder.encoder, False), Decoder(coder.decoder, False))
    config = VAEConfig(latent_dim=16, reconstruction_loss="bce" if coder.logits else "mse")
    if "pythae_conv" in workload.argv:
        return VAE(config, Encoder_Conv_VAE_MNIST(config), Decoder_Conv_AE_MNIST(config))
    return VAE(config, Encoder(coder.encoder, True), Decoder(coder.decoder, coder.logits))


class Ticks(TrainingCallback):
    """Ticks a clock at every step."""

    def __init__(self) -> None:
        self.clock = Clock(1)

    def on_train_step_end(self, training_config: Any, **kwargs: Any) -> None:
        self.clock.tick()


def trainer(made: Any, x: Tensor, batch: int, folder: Path, tuned: bool, device: str) -> BaseTrainer:
    """Its trainer with default settings, ready to train; `tuned` gives it torch's fused Adam."""
    logging.disable(logging.WARNING)
    config = BaseTrainerConfig(
        output_dir=str(folder), per_device_train_batch_size=batch, learning_rate=1e-3, no_cuda=device == "cpu", seed=0,
        optimizer_params={"fused": True} if tuned else None,
    )  # fmt: skip
    with silence():
        ready = BaseTrainer(made, BaseDataset(x, x.new_zeros(len(x))), None, config, [Ticks()])
        ready.prepare_training()
    return ready


def contestant(workload: Workload, x: Tensor, steps: int, folder: Path, tuned: bool, device: str = "cpu") -> Contestant:
    """Each call is an epoch over the first rows of `x` `[N, C, H, W]`, `steps` batches; weights and optimizer are kept from call
    to call."""
    made = model(workload)
    assert count(made) == workload.parameters
    ready = trainer(made, x[: steps * workload.batch], workload.batch, folder, tuned, device)
    ticks = next(c for c in ready.callback_handler.callbacks if isinstance(c, Ticks))

    def run() -> Rate:
        ticks.clock = Clock(workload.warm)
        with silence():
            ready.callback_handler.on_epoch_begin(training_config=ready.training_config, epoch=1)
            ready.train_step(1)
            ready.callback_handler.on_epoch_end(training_config=ready.training_config)
        return ticks.clock.rate(workload.batch)

    return run
