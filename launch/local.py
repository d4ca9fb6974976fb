"""Start a job on this machine with torchrun.

    python -m launch.local --nproc 4 -- --config recipes/vae_mnist.toml --run-dir runs/a

torchrun maps every failure to exit code 1 and dies from signals it does not know; this forwards signals and returns the
job's own exit code: 0 done, 1 failed, 2 invalid input, 75 stopped after a save.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from distae.commands.train import SWITCHES
from distae.config import TrainConfig, check, parse
from distae.errors import UserError
from distae.runtime import console
from distae.runtime.outcome import FILE, read
from distae.runtime.signals import SIGNALS, heard


def main(argv: Sequence[str] | None = None, prog: str = "python -m launch.local") -> int:
    args = arguments(prog).parse_args(argv)
    train = args.train[1:] if args.train[:1] == ["--"] else args.train
    try:
        command = parse(TrainConfig, train, SWITCHES, "distae train")
        nproc = args.nproc or processes(command.settings.device)
        cfg = check(command.settings, nproc)
    except UserError as error:
        sys.stderr.write(f"distae: {error}\n")
        return 2
    run_dir = Path(cfg.run_dir or ".")
    before = _written(run_dir / FILE)
    code = _torchrun(nproc, args.max_restarts, train)
    outcome = read(run_dir) if _written(run_dir / FILE) != before else None
    return outcome.exit_code if outcome else code


def arguments(prog: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog, description="Start a job on this machine with torchrun.")
    parser.add_argument("--nproc", type=int, help="processes (default: one per GPU, or one per CPU core without a GPU)")
    parser.add_argument("--max-restarts", type=int, default=0, help="restarts of a crashed job, each from the newest checkpoint")
    parser.add_argument("train", nargs=argparse.REMAINDER, help="-- and the options of distae.train")
    return parser


def gpus() -> list[str]:
    """The GPUs that are visible, as CUDA_VISIBLE_DEVICES names them; without torch, which takes seconds to import."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [index for index in visible.split(",") if index.strip() not in ("", "-1")]
    return [str(i) for i, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def processes(device: str) -> int:
    """One for each GPU that is visible, else one for each CPU core."""
    return (len(gpus()) if device != "cpu" else 0) or os.cpu_count() or 1


def _written(path: Path) -> tuple[int, int] | None:
    """Identity of the file and its time: they change when it is rewritten."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns


def _torchrun(nproc: int, max_restarts: int, train: Sequence[str]) -> int:
    """Run torchrun in a session of its own, so that a terminal's Ctrl-C reaches it once, through us. A second one kills it."""
    command = [
        sys.executable, "-m", f"{__package__}.agent", "--standalone", f"--nproc-per-node={nproc}",
        f"--max-restarts={max_restarts}", f"--signals-to-handle={','.join(s.name for s in SIGNALS)}", "-m", "distae.train", *train,
    ]  # fmt: skip
    # Time for the last save (before torch 2.15 it is 30 s); a number of threads, for which torchrun would warn.
    env = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120", "OMP_NUM_THREADS": "1", **os.environ}
    with subprocess.Popen(command, env=env, start_new_session=True) as process:
        asked: list[int] = []

        def forward(signum: int, frame: FrameType | None) -> None:
            if asked and signum == signal.SIGINT:
                os.killpg(process.pid, signal.SIGKILL)
            elif not asked:
                process.send_signal(signum)
            asked.append(signum)

        for signum in heard():
            signal.signal(signum, forward)
        return process.wait()


if __name__ == "__main__":
    console.ignore_closed_streams()
    sys.exit(console.exit_code(main))
