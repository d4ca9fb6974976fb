"""distae COMMAND, or python -m distae COMMAND: each command is `main(argv, prog) -> int` of a module, imported late."""

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from distae.errors import UserError
from distae.runtime import console
from distae.runtime.signals import leave


class Command(NamedTuple):
    """One command: where it is, and what it does."""

    module: str
    doc: str


COMMANDS = {
    "train": Command("distae.commands.train", "train a model on this process, or under torchrun on many"),
    "data": Command("distae.commands.data", "inspect data without training: shape, range, classes, what training would do"),
    "prepare": Command("distae.commands.prepare", "write images, tables or other data as shards that are memory-mapped"),
    "evaluate": Command("distae.commands.evaluate", "metrics of a trained model and of baselines"),
    "encode": Command("distae.commands.encode", "codes of data, in one file"),
    "reconstruct": Command("distae.commands.reconstruct", "reconstructions of images, arrays and tables"),
    "denoise": Command("distae.commands.reconstruct", "the same for a model that was trained on noisy inputs"),
    "detect": Command("distae.commands.detect", "anomalies, by the reconstruction error"),
    "compress": Command("distae.commands.compress", "compress images or arrays to one small file of codes"),
    "decompress": Command("distae.commands.decompress", "decode such a file to images or arrays"),
    "generate": Command("distae.commands.generate", "new samples, interpolations and traversals of a trained model's codes"),
    "plot": Command("distae.commands.plot", "draw the losses and terms of runs"),
    "compare": Command("distae.commands.compare", "a table of runs: what differs, metrics, mean and spread over seeds"),
    "report": Command("distae.commands.report", "one HTML file of a run or several: curves, pictures, codes, figures, settings"),
    "export": Command("distae.commands.export", "write a model for other programs: safetensors, ONNX, torch.export, Hugging Face"),
    "launch": Command("launch.start", "start a training run with many processes: on this machine, on Slurm, or by a plugin"),
    "sweep": Command("launch.sweep", "train every combination of some settings: on this machine, or on Slurm"),
    "status": Command("launch.status", "show the state of a run or a job"),
    "checkpoint": Command("distae.commands.checkpoint", "list, verify or export a run's checkpoints"),
    "sync": Command("distae.commands.tracking", "upload a run that had no network to Weights & Biases"),
    "completion": Command("distae.commands.completion", "completion of commands and options in bash, zsh or fish"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names; returns its exit code."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(overview())
        return 0
    if name == "--version":
        from distae import __version__

        sys.stdout.write(f"distae {__version__}\n")
        return 0
    try:
        module = load(name)
    except UserError as error:
        sys.stderr.write(f"distae: {error}\n")
        return 2
    return int(module.main(rest, f"distae {name}"))


def overview() -> str:
    """The help of `distae` itself."""
    rows = [f"  {name:<12}{command.doc}" for name, command in COMMANDS.items()]
    head = ["usage: distae COMMAND [OPTION ...]", "", "Train autoencoders on one CPU, one GPU or many GPUs.", "", "commands:"]
    foot = ["", "distae COMMAND --help    a command's options", "distae --version         the version", ""]
    return "\n".join([*head, *rows, *foot])


def load(name: str):  # type: ignore[no-untyped-def]
    """The module of a command. Raises UserError if there is no such command."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"unknown command {name!r}{meant}; valid: {', '.join(COMMANDS)}")
    module = COMMANDS[name].module
    return importlib.import_module(module if module.startswith("distae.") else beside(module))


def beside(module: str) -> str:
    """A module of `launch`, which is `distae.launch` in a wheel, and next to distae in a checkout. Raises UserError."""
    if importlib.util.find_spec("distae.launch"):
        return f"distae.{module}"
    found = importlib.util.find_spec("launch")
    root = Path(__file__).parents[1]
    if found is None or Path(found.origin or "").parents[1] != root:
        where = found.origin if found else "nowhere"
        raise UserError(f"the module `launch` is {where}, not {root / 'launch'}: put {root} first on PYTHONPATH")
    return module


def entry() -> None:
    """The console command."""
    if "_ARGCOMPLETE" in os.environ:
        from distae.commands.completion import complete

        complete(COMMANDS, load)
    console.ignore_closed_streams()
    leave(console.exit_code(main))


if __name__ == "__main__":
    entry()
