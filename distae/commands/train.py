"""Train an autoencoder.

    python -m distae.train --model vae --data mnist --epochs 10
    torchrun --standalone --nproc_per_node=4 -m distae.train --config recipes/vae_mnist.toml

`run` neither parses nor exits; `main` maps its outcome to an exit code:
0 done, 1 failed, 2 a user's mistake, 75 stopped after a save.
"""

import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distae.commands.session import refuse, run_in_turn
from distae.config import TrainConfig, check, parse, write_toml
from distae.config.cli import parser_of
from distae.errors import DistaeError
from distae.runtime.environment import Environment, environment
from distae.runtime.outcome import Outcome

SWITCHES = {
    "smoke": "Every phase once, in a temporary folder: steps, evaluation, pictures, save, resume.",
    "print-config": "Print the resolved settings as TOML and exit.",
}


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae.train") -> int:
    env = Environment()
    try:
        env = environment()
        command = parse(TrainConfig, sys.argv[1:] if argv is None else argv, SWITCHES, prog)
        cfg = check(command.settings, env.world_size)
        if "print-config" in command.flags:
            if env.rank == 0:
                sys.stdout.write(write_toml(replace(cfg, run_dir=command.settings.run_dir)))
            return 0
        return (smoke if "smoke" in command.flags else run)(cfg, env).exit_code
    except DistaeError as error:
        return refuse(error, env)


def arguments(prog: str, words: Sequence[str] = ()) -> ArgumentParser:
    """What may follow `words`: the options of the variants that they choose. Raises UserError."""
    return parser_of(TrainConfig, words, SWITCHES)


def run(cfg: TrainConfig, env: Environment) -> Outcome:
    """Train as `cfg` (checked) says, resuming what is in its run folder. Raises UserError before any training starts.

    `--fresh` is for the first start: a launcher that repeats the command means the run which that began.
    """
    return run_in_turn([replace(cfg, fresh=cfg.fresh and env.first_start)], env)


def smoke(cfg: TrainConfig, env: Environment) -> Outcome:
    """Four steps of `cfg` beside its run folder, in two runs of which the second resumes the first."""
    short = replace(
        cfg, epochs=None, steps=4, run_dir=f"{cfg.run_dir}.smoke", tracking="none", log_every=1, eval_every=2, save_every=1,
        data=replace(cfg.data, limit=max(2 * cfg.global_batch_size, cfg.eval_batch_size)),
    )  # fmt: skip
    try:
        outcome = run_in_turn([replace(short, steps=2, fresh=True), replace(short, fresh=False)], env)
    finally:
        if env.rank == 0:
            for folder in Path(f"{cfg.run_dir}.smoke").parent.glob(f"{Path(f'{cfg.run_dir}').name}.smoke*"):
                shutil.rmtree(folder)
    if env.rank == 0:
        sys.stderr.write(f"smoke: {outcome.outcome} at step {outcome.step} of 4\n")
    return outcome
