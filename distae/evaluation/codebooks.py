"""How much of its discrete codes a model uses."""

import torch
from torch import Tensor

from distae.evaluation.evaluation import Evaluation
from distae.evaluation.metrics import Figure, Skip, register_metric


def frequencies_of(e: Evaluation) -> Tensor:
    """How often each code is used, `[codes]` float64 that sum to 1, over all places of the samples."""
    indices, size = e.codes().indices, e.model.num_codes
    if indices is None or size is None:
        raise Skip(f"{e.model.cfg.name} has no discrete codes")
    counts = torch.bincount(indices.flatten(), minlength=size).double()
    return counts / counts.sum()


def _figure(e: Evaluation, value: Tensor, frequencies: Tensor) -> Figure:
    return Figure(float(value), protocol={"codes": len(frequencies), "samples": len(e.codes().z)})


@register_metric("code_use", task="codebooks", unit="share of codes", better="higher")
def code_use(e: Evaluation) -> Figure:
    """The share of codes that some sample uses."""
    frequencies = frequencies_of(e)
    return _figure(e, (frequencies > 0).double().mean(), frequencies)


@register_metric("code_perplexity", task="codebooks", unit="codes", better="higher")
def code_perplexity(e: Evaluation) -> Figure:
    """exp of the entropy of the codes' frequencies: their number where all are used alike (van den Oord et al. 2017, sec. 4)."""
    frequencies = frequencies_of(e)
    return _figure(e, torch.special.entr(frequencies).sum().exp(), frequencies)
