"""Code of your own at fixed points of a run: --plugin examples/my_callback.py."""

import json
from pathlib import Path

from distae.training.callbacks import Callback, register_callback


@register_callback("summary")
class Summary(Callback):
    """Keeps the best of each evaluation in RUN/summary.json, for a dashboard."""

    def on_start(self, trainer):
        self.path = Path(trainer.run_dir) / "summary.json" if trainer.world.is_main else None
        self.best = {}

    def on_evaluate(self, split, metrics):
        self.best[split] = min(metrics["loss"], self.best.get(split, metrics["loss"]))

    def on_end(self, finished):
        if self.path:  # every rank has a callback, one writes
            self.path.write_text(json.dumps({"finished": finished, "best": self.best}) + "\n")
