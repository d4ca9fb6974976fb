"""The latents of a dictionary over several ranks, which exchange what one process would see."""

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from distae.nn.sharded_latents import Latents


class Group:
    """One of several ranks, for collectives that are played."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = (lambda: rank), (lambda: size)


def parts_of(width: int, ranks: int) -> list[Latents]:
    most = -(-width // ranks)
    return [Latents(range(r * most, min(width, (r + 1) * most)), width, Group(r, ranks)) for r in range(ranks)]  # type: ignore[arg-type]


def largest(x: Tensor, k: int, ranks: int) -> Tensor:
    """The mask `[B, L]` that all ranks find together."""
    latents, sent = parts_of(x.shape[1], ranks), []
    mine = [of.mine(x.T).T for of in latents]

    def sends(values: Tensor, group: Any) -> Tensor:
        sent.append(values)
        return torch.cat([values] * ranks)

    with mock.patch("distae.nn.sharded_latents.dist.rows_of", sends):
        for of, values in zip(latents, mine, strict=True):
            of.largest(values, k)
    with mock.patch("distae.nn.sharded_latents.dist.rows_of", return_value=torch.cat(sent)):
        return torch.cat([of.largest(values, k) for of, values in zip(latents, mine, strict=True)], 1)


@pytest.mark.parametrize(("ranks", "k"), [(2, 3), (3, 1), (3, 5), (4, 9), (4, 10)])
def test_the_largest_of_each_sample_are_those_of_one_process(ranks, k):
    x = torch.randn(50, 10, generator=torch.Generator().manual_seed(k))
    expected = torch.zeros(50, 10, dtype=torch.bool).scatter(1, x.topk(k, dim=1).indices, True)
    assert torch.equal(largest(x, k, ranks), expected)


def test_equal_values_are_taken_from_the_first_rank_on_and_never_more_than_k():
    x = torch.tensor([[1.0, 2.0, 2.0, 2.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert largest(x, 3, 3).view(2, 3, 2).sum(2).tolist() == [[1, 1, 1], [2, 1, 0]]


def test_parts_fit_together():
    x = torch.arange(10)
    latents = parts_of(10, 3)
    assert torch.equal(torch.stack([of.among_all(of.mine(x)) for of in latents]).sum(0), x)
    evened = [of.even(torch.ones(2, len(of.held))) for of in latents]
    assert [(of.shape[1], of.sum(1).tolist()) for of in evened] == [(4, [4.0, 4.0]), (4, [4.0, 4.0]), (4, [2.0, 2.0])]


def test_all_latents_are_one_part():
    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    of = Latents.of(torch.empty(10, 3))
    assert (of.parts, of.held) == (1, range(10))
    assert all(f(x) is x for f in (of.samples, of.summed, of.mine, of.among_all, of.even))
    assert torch.equal(of.largest(x, 3).sort(1).values, x.topk(3, dim=1).indices.sort(1).values)
