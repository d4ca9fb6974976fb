"""distae explore RUN: a local page to look into a trained model.

distae explore runs/a
distae explore runs/a --port 0 --limit 2000
"""

import getpass
import platform
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distae.commands.trained import Trained, serve
from distae.commands.trained import arguments as shared
from distae.errors import UserError

if TYPE_CHECKING:
    from distae.report.explorer.server import Server

PORT = 8765
SPLITS = ("test", "val", "train")


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae explore") -> int:
    return serve(argv, arguments(prog), explore, reads_data=False)


def arguments(prog: str, words: Sequence[str] = ()) -> ArgumentParser:
    """The parser of the command's own options."""
    about = "Serve a page on this machine alone: sliders of the code, a map, images of your own, samples; until Ctrl-C."
    parser = shared(prog, about)
    parser.add_argument("--port", type=int, default=PORT, metavar="P", help=f"of the page; 0: any free one (default: {PORT})")
    parser.add_argument("--limit", type=int, default=5000, metavar="N", help="samples of a split to encode (default: 5000)")
    return parser


def explore(run: Trained) -> None:
    """Serve until Ctrl-C. Raises UserError where the port is taken."""
    from distae.config.evaluation import EvaluationConfig
    from distae.report.explorer.answers import Explorer
    from distae.report.explorer.page import page
    from distae.report.explorer.server import Server

    options = run.options
    if run.world_size > 1:
        raise UserError(f"explore: one process serves the page, not {run.world_size}")
    if options.limit < 3:
        raise UserError(f"--limit {options.limit}: expected 3 or more")
    if options.split is None and not run.has_other_data:
        options.split = next((name for name in SPLITS if len(run.splits[name])), SPLITS[0])
    evaluation = run.evaluation(EvaluationConfig(limit=options.limit))
    try:
        explorer = Explorer(evaluation)
        title = f"Explore {run.run.resolve().name}"
        about = f"{run.saved.model.cfg.name} on {run.settings.data.name}, step {run.step}."
        with Server(explorer, page(explorer, title, about), options.port) as server:
            _serve(run, server)
    finally:
        evaluation.close()


def _serve(run: Trained, server: "Server") -> None:
    run.say(server.url)
    run.say(f"of a remote machine, first on yours: ssh -N -L {server.port}:127.0.0.1:{server.port} {_address()}")
    run.say("Ctrl-C ends it")
    sys.stdout.flush()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        run.say("ended")


def _address() -> str:
    """USER@HOST of this machine."""
    try:
        return f"{getpass.getuser()}@{platform.node()}"
    except (KeyError, OSError):  # a user without a name
        return platform.node()
