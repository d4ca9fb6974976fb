"""Use of discrete codes, against counts."""

import pytest
import torch
from evaluations import evaluation

from distae.config.names import METRICS
from distae.evaluation.metrics import Skip
from distae.models import Codes


def test_use_and_perplexity_of_known_frequencies():
    e = evaluation("vq_vae", latent_dim=4, dim=2, codebook_size=8)
    indices = torch.tensor([[0, 1], [2, 3]]).repeat(10, 1)
    e._codes["test"] = Codes(torch.zeros(20, 4), indices=indices)
    assert METRICS["code_use"].compute(e).value == 0.5
    assert METRICS["code_perplexity"].compute(e).value == pytest.approx(4)
    e._codes["test"] = Codes(torch.zeros(20, 4), indices=torch.where(indices == 3, 0, indices))
    assert METRICS["code_perplexity"].compute(e).value == pytest.approx(2**1.5)
    assert METRICS["code_perplexity"].compute(e).protocol == {"codes": 8, "samples": 20}


def test_a_continuous_code_has_none():
    with pytest.raises(Skip, match="no discrete codes"):
        METRICS["code_use"].compute(evaluation("vae"))
