"""CONTRIBUTING.md: a section for each registry, with an example that is a plugin and works by the command above it."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, metrics, spy

from distae.__main__ import main
from distae.config.names import TRAITS
from distae.config.registry import REGISTRIES, Registry
from distae.runtime.backends import BACKENDS
from distae.training.trainer import Trainer
from launch import backends

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = dict(re.findall(r"^## Add an? ([\w ]+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
SMALL = "--steps 2 --data.limit 100 --global-batch-size 20 --eval-batch-size 50 --tracking none --device cpu --threads 1"


@pytest.fixture
def only_here():
    """Registries of names as they were before: a callback or a metric would be part of other tests' runs."""
    before, scaled = {what: dict(registry) for what, registry in REGISTRIES.items()}, dict(TRAITS)
    yield
    for what, registry in REGISTRIES.items():
        if all(isinstance(key, str) for key in registry):
            dict.clear(registry)
            dict.update(registry, before[what])
    TRAITS.clear()
    TRAITS.update(scaled)


def command_of(what: str) -> list[str]:
    """The first command of a section, in words, with its plugin where it is."""
    line = re.search(r"^    distae (.*)$", SECTIONS[what], re.MULTILINE)
    assert line
    return shlex.split(line[1].replace("examples/", f"{ROOT}/examples/"))


def test_every_registry_has_a_section_and_every_section_a_registry():
    assert backends.Local in BACKENDS.values()  # importing the trainer and the launchers, all registries are there
    assert sorted(SECTIONS) == sorted(REGISTRIES)


@pytest.mark.parametrize("what", SECTIONS)
def test_the_example_is_the_file(what):
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS[what], re.DOTALL)
    command = command_of(what)
    assert code == Path(command[command.index("--plugin") + 1]).read_text()


@pytest.mark.usefixtures("only_here")
@pytest.mark.parametrize("what", [what for what in SECTIONS if "launch" not in what])
def test_the_command_trains_and_the_example_takes_part(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained: list[Trainer] = []
    monkeypatch.setattr(Trainer, "close", spy(Trainer.close, trained.append))
    monkeypatch.setattr("sys.path", [*sys.path])
    command, *words = command_of(what)
    assert main([command, *SMALL.split(), "--run-dir", "run", *words]) == 0
    shown: dict[str, Any] = {
        "variant": lambda: type(trained[0].train_step.model).__name__ == "NoisyCodeAE",
        "network": lambda: "Tanh" in str(trained[0].train_step.model.encoder),
        "data set": lambda: trained[0].loaders["train"].split.shape == (1, 5, 5),
        "likelihood": lambda: type(trained[0].train_step.model.likelihood).__name__ == "Cauchy",
        "perceptual network": lambda: {"val/perceptual", "test/perceptual"} <= set().union(*metrics(tmp_path / "run")),
        "metric": lambda: {"val/max_error", "test/max_error"} <= set().union(*metrics(tmp_path / "run")),
        "sink": lambda: (tmp_path / "run" / "metrics.csv").read_text().count("val/loss") == 1,
        "callback": lambda: json.loads((tmp_path / "run" / "summary.json").read_text())["best"].keys() == {"val", "test"},
    }
    assert shown[what]()


@pytest.mark.usefixtures("only_here")
def test_the_launcher_starts_the_run(monkeypatch, capsys):
    class Started:
        pid = 7

        def __init__(self, command: list[str], **how: object) -> None:
            assert command[1:] == ["-m", "distae", "train", "--model", "ae"]

    monkeypatch.setattr(subprocess, "Popen", Started)
    assert main(command_of("launcher backend")) == 0
    assert capsys.readouterr().out == "process 7\n"


def test_a_name_is_registered_once():
    registry: Registry[str, int] = Registry("test")
    try:
        registry.register("a")(1)
        with pytest.raises(ValueError, match="a is already registered"):
            registry.register("a")(2)
    finally:
        del REGISTRIES["test"]


UNBOUND = """
from dataclasses import dataclass
from typing import ClassVar
from distae.config.{module} import {base}

@dataclass(frozen=True, kw_only=True)
class Unbound({base}):
    name: ClassVar[str] = "unbound_{module}"
"""


@pytest.mark.parametrize(("module", "base", "flag"), [("data", "DigitsConfig", "--data"), ("nets", "MLPConfig", "--net")])
def test_settings_without_an_implementation_are_rejected(module, base, flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"unbound_{module}.py").write_text(UNBOUND.format(module=module, base=base))
    plugin = ["--plugin", f"unbound_{module}.py", flag, f"unbound_{module}"]
    assert main(["train", *plugin, *SMALL.split(), "--run-dir", "run"]) == 2
    assert f"{flag} unbound_{module}: no " in capsys.readouterr().err
