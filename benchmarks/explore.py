"""How long the page of distae explore waits for a decoded code: requests over HTTP, as its script sends them.

    python benchmarks/explore.py --requests 300

Models of the recipes' settings after one step on random images of 28x28, on one CPU thread; milliseconds. The last line is one JSON
object.
"""

import argparse
import http.client
import json
import statistics
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from distae.commands import train
from distae.commands.trained import opened
from distae.config.evaluation import EvaluationConfig
from distae.report.explorer.answers import Explorer
from distae.report.explorer.page import page
from distae.report.explorer.server import Server

RECIPES = ("vae_mnist", "vae_mnist_20", "ae_mnist_32", "ae_mnist_32_deep", "iwae_mnist_static", "denoising_ae_mnist")
RUN = "--steps 1 --tracking none --progress none --no-report --device cpu --threads 1"


def milliseconds(folder: Path, recipe: str, requests: int) -> list[float]:
    """Of each round trip, after ten."""
    data = f"--data array --data.path {folder / 'x.npy'}"
    assert train.main([*f"--config recipe:{recipe} {data} {RUN} --run-dir {folder / recipe}".split()]) == 0
    trained = opened(folder / recipe, None, ["--device", "cpu", "--threads", "1"])
    evaluation = trained.evaluation(EvaluationConfig(limit=1000))
    explorer = Explorer(evaluation)
    with Server(explorer, page(explorer, recipe, "")) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with closing(http.client.HTTPConnection("127.0.0.1", server.port)) as connection:
            path = f"/{server.token}/decode"
            found = [_round_trip(connection, path, explorer.start.tolist(), i) for i in range(requests + 10)][10:]
        server.shutdown()
    evaluation.close()
    return found


def _round_trip(connection: http.client.HTTPConnection, path: str, code: list[float], number: int) -> float:
    """Of one code, a slider of which has moved, over a connection that is kept."""
    code[number % len(code)] += 0.01
    start = time.perf_counter()
    connection.request("POST", path, json.dumps({"code": code}), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert json.loads(answer.read())["shown"]["picture"]
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    args = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.save(folder / "x.npy", np.random.default_rng(0).integers(0, 256, (2000, 28, 28), dtype=np.uint8))
        for recipe in args.recipes:
            found = milliseconds(folder, recipe, args.requests)
            cuts = statistics.quantiles(found, n=20)
            figures[recipe] = {
                "median": round(statistics.median(found), 2),
                "p95": round(cuts[18], 2),
                "largest": round(max(found), 2),
            }
            print(f"{recipe:<22} median {figures[recipe]['median']:6.2f} ms, 95% {figures[recipe]['p95']:6.2f} ms")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
