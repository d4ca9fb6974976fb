"""Time from launch to the first step, and memory of a run: ours against a bare script, in separate processes, alternating.

    python benchmarks/startup.py --root data

bare  imports torch and torchvision, reads MNIST through torchvision, and trains on a tensor in memory
ours  `python -m distae.train --data mnist --tracking none` with the same network, batch and steps

Seconds are from the start of the interpreter to the end of the first step; bytes are the peak of resident memory at the end of the
steps. A figure is the median over rounds of ours / bare in the same round. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 200
BARE = """
import resource, sys, time
import torch, torchvision
from torch import nn
torch.set_num_threads(1)
torch.set_flush_denormal(True)
images = torchvision.datasets.MNIST(sys.argv[1], train=True).data
def mlp(*sizes):
    return [m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), nn.ReLU())][:-1]
model = nn.Sequential(*mlp(784, 256, 64, 20), *mlp(20, 64, 256, 784))
optimizer = torch.optim.Adam(model.parameters(), fused=True)
for step in range(int(sys.argv[2])):
    x = images[torch.randint(0, len(images), (128,))].flatten(1) / 255
    optimizer.zero_grad()
    nn.functional.binary_cross_entropy_with_logits(model(x), x).backward()
    optimizer.step()
    if step == 0:
        print(time.time())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
OURS = (
    "-m distae.train --model ae --model.latent-dim 20 --net.hidden 256 64 --data mnist --data.val-fraction 0 "
    "--global-batch-size 128 --tracking none --device cpu --threads 1 --save-every 100000 --fresh"
)


def bare(root: str, steps: int) -> tuple[float, float]:
    """Seconds to the first step, and bytes."""
    started = time.time()
    done = subprocess.run([sys.executable, "-c", BARE, root, str(steps)], capture_output=True, text=True, check=True)
    first, peak = map(float, done.stdout.split())
    return first - started, peak


def ours(root: str, steps: int, folder: Path) -> tuple[float, float]:
    """The same for a run of distae; its last row is written after the last step, before the last save and evaluation."""
    run_dir = folder / "run"
    argv = [*OURS.split(), "--data.root", root, "--steps", str(steps), "--run-dir", str(run_dir)]
    started = time.time()
    subprocess.run([sys.executable, *argv, "--log-every", "1"], capture_output=True, check=True)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "train/loss" in row]
    return trained[0]["time"] - started, trained[-1]["train/peak_memory_bytes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder with MNIST")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    report: dict[str, list[float]] = {"seconds": [], "bytes": [], "bare_seconds": [], "bare_bytes": []}
    with tempfile.TemporaryDirectory(prefix="distae-startup-") as folder:
        for counts in [False] + [True] * args.rounds:  # the first round fills the page cache
            (theirs, their_bytes), (mine, my_bytes) = bare(args.root, STEPS), ours(args.root, STEPS, Path(folder))
            if counts:
                for name, value in zip(report, (mine / theirs, my_bytes / their_bytes, theirs, their_bytes), strict=True):
                    report[name].append(value)
    figures = {name: [statistics.median(v), min(v), max(v)] for name, v in report.items()}
    for name, bar in (("seconds", 1.3), ("bytes", 1.2)):
        median, least, most = figures[name]
        print(f"{name}: ours {median:.2f} of a bare script ({least:.2f} to {most:.2f}); target: at most {bar}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
