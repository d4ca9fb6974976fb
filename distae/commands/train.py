"""Train an autoencoder.

    python -m distae.train --model vae --data mnist --epochs 10
    torchrun --standalone --nproc_per_node=4 -m distae.train --config recipes/vae_mnist.toml

`run` neither parses nor exits; `main` maps its outcome to an exit code:
0 done, 1 failed, 2 invalid input, 75 stopped after a save.
"""

import shutil
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
    """The options that may follow `words`: those of the variants chosen there. Raises UserError."""
    return parser_of(TrainConfig, words, SWITCHES)


def run(cfg: TrainConfig, env: Environment) -> Outcome:
    """Train as `cfg` (checked) says, resuming what is in its run folder. Raises UserError before any training starts.

    `--fresh` counts at the first start only: a launcher that repeats the command resumes the run that it started.
    """
    cfg = replace(cfg, fresh=cfg.fresh and env.first_start)
    return run_in_turn(cfg, env, nullcontext([cfg]))


def smoke(cfg: TrainConfig, env: Environment) -> Outcome:
    """Four steps of `cfg` in a new folder next to its run folder, in two runs; the second resumes the first."""
    short = replace(
        cfg, epochs=None, steps=4, run_dir=f"{cfg.run_dir}.smoke", tracking="none", log_every=1, eval_every=2, save_every=1,
        data=replace(cfg.data, limit=max(2 * cfg.global_batch_size, cfg.eval_batch_size)), fresh=True,
    )  # fmt: skip
    outcome = run_in_turn(short, env, _smoke_runs(short))
    if env.rank == 0:
        sys.stderr.write(f"smoke: {outcome.outcome} at step {outcome.step} of 4\n")
    return outcome


@contextmanager
def _smoke_runs(short: TrainConfig) -> Iterator[list[TrainConfig]]:
    """Both runs, in a folder that rank 0 creates, and removes afterwards even if they fail."""
    from distae import distributed as dist

    main, run_dir = dist.world().is_main, Path(str(short.run_dir)).absolute()
    parent = next(p for p in run_dir.parents if p.is_dir())
    folder = dist.broadcast(tempfile.mkdtemp(prefix=f"{run_dir.name}-", dir=parent) if main else None)
    try:
        both = replace(short, run_dir=folder, fresh=False)
        yield [replace(both, steps=2), both]
    finally:
        if main:
            shutil.rmtree(folder, ignore_errors=True)  # a rank that failed may still write there
