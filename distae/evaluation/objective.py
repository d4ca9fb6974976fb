"""What training minimises, on a whole split."""

from distae.evaluation.evaluation import Evaluation
from distae.evaluation.exact import evaluate
from distae.evaluation.metrics import Figure, register_metric


@register_metric("objective", task="objective", unit="nats per sample, and as docs/metrics.md says", better=None)
def objective(e: Evaluation) -> dict[str, Figure]:
    """The terms of the model, and the metrics of every evaluation: as the run's rows `val/...` and `test/...`."""
    found = evaluate(e.model, e.loaders[e.split], e.chunk, e.seed)
    assert found is not None
    return {name: Figure(value, protocol={"binarize": e.run.data.binarize}) for name, value in found.items()}
