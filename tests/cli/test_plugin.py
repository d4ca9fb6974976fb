"""A user's own variant and network, in a file of theirs."""

import json
import warnings
from pathlib import Path
from typing import Any

import gate
import pytest
import torch
from helpers import ROOT, fitted, settings, start

from distae import load
from distae.config import TrainConfig, parse, plugin
from distae.config.help import render
from distae.errors import UserError
from distae.models import build

EXAMPLE, NET = (str(ROOT / "examples" / name) for name in ("my_variant.py", "my_net.py"))
OPTIONS = [
    "--plugin", EXAMPLE, "--model", "noisy_code_ae", "--model.std", "0.2", "--net.hidden", "16",
    "--steps", "4", "--data.limit", "300", "--global-batch-size", "24", "--tracking", "none", "--device", "cpu", "--run-dir", "run",
]  # fmt: skip


def test_the_example_trains_under_torchrun_and_resumes(tmp_path: Path) -> None:
    for steps in ("4", "6"):
        end = start(*OPTIONS, "--steps", steps, nproc=2, cwd=tmp_path)
        assert end.returncode == 0, end.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 6
    plugin.load(EXAMPLE)
    assert type(load(tmp_path / "run").module).__name__ == "NoisyCodeAE"


def test_the_examples_pass_the_gates(tmp_path: Path) -> None:
    plugin.load(EXAMPLE)
    plugin.load(NET)
    cfg = settings(model={"name": "noisy_code_ae"}, net={"name": "tanh_net", "hidden": [12]}, steps=6, precision="fp64")
    gate.check(cfg, tmp_path)


def test_the_help_lists_it() -> None:
    plugin.load(EXAMPLE)
    text = render(TrainConfig, {}, "prog")
    assert "--model noisy_code_ae: Autoencoder with gaussian noise on the code" in text
    assert "--model.std X" in text


def test_a_file_beside_the_command_is_no_other_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m distae.train` has the working folder on its path."""
    (tmp_path / "beside_the_command.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    plugin.load(str(tmp_path / "beside_the_command.py"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent.py", None, "is not a Python file"),
        ("my-variant.py", "", "is not a Python file"),
        ("torch.py", "", "a module 'torch' exists already"),
        ("broken_plugin.py", "x = 1\ny = z\n", "line 2: NameError: name 'z' is not defined"),
    ],
)
def test_a_file_that_is_no_plugin_is_rejected(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"--plugin: .*{message}"):
        parse(TrainConfig, ["--plugin", str(tmp_path / name)], {}, "prog")


def test_the_net_is_chosen_by_its_name(tmp_path: Path) -> None:
    cfg = parse(TrainConfig, ["--plugin", NET, "--net", "tanh_net", "--net.hidden", "5"], {}, "prog").settings
    model: Any = build(cfg.model, cfg.net, (1, 8, 8))
    layers = model.encoder.layers
    assert [type(layer).__name__ for layer in layers] == ["Flatten", "Linear", "Tanh", "Linear"]
    assert layers[1].out_features == 5


def test_nothing_saved_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(f'plugin = "{EXAMPLE}"\n')
    with pytest.raises(UserError, match="unknown key 'plugin'"):
        parse(TrainConfig, ["--config", str(tmp_path / "a.toml")], {}, "prog")


OLD = """
from dataclasses import dataclass
from typing import ClassVar

from distae import dist
from distae.config.models import AEConfig
from distae.losses import wide
from distae.models import Turn, register
from distae.models.ae import AE


@dataclass(frozen=True, kw_only=True)
class OldConfig(AEConfig):
    name: ClassVar[str] = "written_for_0_1"


@register(OldConfig)
class Old(AE):
    def forward(self, batch, turn, noise):
        assert turn == "all" and batch.places.ndim == 1 and batch.population >= 0
        assert batch.held is None or batch.held.ndim == 1
        return super().forward(batch, "autoencoder", noise)

    def turns(self):
        return [Turn("all", list(self.parameters()))]
"""


def test_a_plugin_for_the_names_of_0_1_works_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "plugin_for_0_1.py").write_text(OLD)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plugin.load(str(tmp_path / "plugin_for_0_1.py"))
        fitted(settings(model={"name": "written_for_0_1"}, steps=3), tmp_path / "run")
    text = " ".join(str(w.message) for w in caught)
    for old in ("distae.dist ", "losses.wide", "models.Turn", "Old.turns()", "Batch.held", "Batch.places", "Batch.population"):
        assert old in text, old


OLD_CONTRACT = """
from dataclasses import dataclass
from typing import ClassVar

from distae.config.models import ModelConfig
from distae.models import Autoencoder, Codes, output, register
from distae.nn import build_encoder


@dataclass(frozen=True, kw_only=True)
class PlainConfig(ModelConfig):
    name: ClassVar[str] = "plain_of_0_1"


@register(PlainConfig)
class Plain(Autoencoder):
    def forward(self, batch, turn, noise):
        recon = self.decoder(self.encoder(batch.x, noise), noise)
        nll = self.likelihood(recon, batch.x)
        return output(nll, recon, {"recon": nll})

    def encode(self, x, label=None):
        return Codes(self.encoder(x, None))


@dataclass(frozen=True, kw_only=True)
class OwnNetworksConfig(ModelConfig):
    name: ClassVar[str] = "own_networks_of_0_1"


@register(OwnNetworksConfig)
class OwnNetworks(Plain):
    def __init__(self, cfg, net, shape):
        super().__init__(cfg, net, shape)
        self.encoder = build_encoder(net, shape, cfg.latent_dim + 1)

    def encode(self, x, label=None):
        return Codes(self.encoder(x, None)[:, 1:])
"""


def test_a_plugin_for_the_autoencoder_of_0_1_gets_its_networks(tmp_path: Path) -> None:
    (tmp_path / "contract_of_0_1.py").write_text(OLD_CONTRACT)
    with pytest.warns(DeprecationWarning, match=r"class Plain\(Autoencoder\) is now class Plain\(NetAutoencoder\)"):
        plugin.load(str(tmp_path / "contract_of_0_1.py"))
    x = torch.rand(5, 1, 8, 8)
    for name in ("plain_of_0_1", "own_networks_of_0_1"):
        cfg = settings(model={"name": name}, steps=3)
        model = build(cfg.model, cfg.net, (1, 8, 8))
        assert model.encode(x).z.shape == (5, *model.code_shape)
        assert model.reconstruct(x).shape == x.shape
        assert [part for part, _ in model.named_children()] == ["likelihood", "encoder", "decoder"]
    fitted(settings(model={"name": "plain_of_0_1"}, steps=3), tmp_path / "run")
