"""distae launch BACKEND [OPTION ...] [-- TRAIN OPTION ...]: start a training run with many processes.

distae launch local --nproc 4 -- --config recipe:vae_mnist
distae launch slurm --nodes 2 --gpus-per-node 4 --time 4:00:00 -- --config recipe:vae_mnist --run-dir runs/a
distae launch --backend mine --plugin my_launcher.py -- --config recipe:vae_mnist
"""

import argparse
import sys
from collections.abc import Sequence

from distae.config import plugin
from distae.errors import UserError
from distae.runtime.backends import BACKENDS

from . import backends as _shipped  # noqa: F401 - binds local and slurm


def main(argv: Sequence[str] | None = None, prog: str = "python -m launch.start") -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    at = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(prog, add_help=False, allow_abbrev=False)
    parser.add_argument("--backend")
    parser.add_argument("--plugin")
    mine, rest = parser.parse_known_args(argv[:at])
    try:
        if mine.plugin:
            plugin.load(mine.plugin)
        name = mine.backend or (rest.pop(0) if rest and not rest[0].startswith("-") else None)
        if name is None and {"-h", "--help"} & {*rest}:
            sys.stdout.write(overview(prog))
            return 0
        if name is None or name not in BACKENDS:
            unknown = f"unknown backend {name!r}" if name else "which backend?"
            raise UserError(f"{prog}: {unknown}; valid: {', '.join(BACKENDS)}")
        return BACKENDS[name]().submit([*rest, *argv[at:]], f"{prog} {name}")
    except UserError as error:
        sys.stderr.write(f"distae: {error}\n")
        return 2


def arguments(prog: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """What may follow the name of a backend that comes with distae, or the names of all."""
    from . import local, slurm

    if words:
        return local.arguments(prog) if words[0] == "local" else slurm.arguments(prog, words[1:])
    parser = argparse.ArgumentParser(prog, add_help=False)
    parser.add_argument("backend", choices=[*BACKENDS])
    return parser


def overview(prog: str) -> str:
    """The help of `distae launch` itself."""
    rows = [f"  {name:<12}{(backend.__doc__ or '').splitlines()[0]}" for name, backend in BACKENDS.items()]
    head = [f"usage: {prog} BACKEND [--plugin FILE.py] [OPTION ...] [-- TRAIN OPTION ...]", "", "backends:"]
    foot = ["", f"{prog} BACKEND --help    a backend's options", "distae train --help      the options after --", ""]
    return "\n".join([*head, *rows, *foot])


if __name__ == "__main__":
    sys.exit(main())
