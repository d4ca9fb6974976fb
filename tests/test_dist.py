"""What the ranks agree on, without processes: two of them in turns, their exchange by hand."""

from typing import Any

import pytest
import torch

from distae import dist


class Round:
    """Every rank's box becomes the largest of both, when the second one has come."""

    def __init__(self) -> None:
        self.boxes: list[torch.Tensor] = []

    def wait(self) -> None:
        assert len(self.boxes) == 2, "a rank waits for one that has not come"


class Exchange:
    def __init__(self) -> None:
        self.rounds = [Round()]

    def __call__(self, box: torch.Tensor, *how: Any, **more: Any) -> Round:
        here = self.rounds[-1]
        here.boxes.append(box)
        if len(here.boxes) == 2:
            largest = torch.maximum(*here.boxes)
            for each in here.boxes:
                each.copy_(largest)
            self.rounds.append(Round())
        return here


@pytest.mark.parametrize(("seconds", "rounds", "latest"), [(1.0, 200, 1), (0.03, 70, 6), (1e-4, 20, 32)])
def test_a_vote_is_read_by_all_ranks_at_the_same_call(seconds, rounds, latest, monkeypatch):
    """Rank 1 is asked to stop at call 100; its calls take `seconds`, those of rank 0 a third."""
    exchange, now = Exchange(), [0.0]
    monkeypatch.setattr(dist.td, "all_reduce", exchange)
    monkeypatch.setattr(dist.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(dist, "_current", dist.World(0, 2, torch.device("cpu"), control=exchange))  # type: ignore[arg-type]
    votes, clocks, heard = (dist.Vote(), dist.Vote()), [0.0, 0.0], [[], []]
    for call in range(200):
        for rank in (0, 1):
            clocks[rank] += seconds if rank else seconds / 3
            now[0] = clocks[rank]
            heard[rank].append(votes[rank].cast(15 if rank and call >= 100 else 0))
    assert heard[0] == heard[1]
    assert 100 < heard[0].index(15) <= 100 + latest
    assert len(exchange.rounds) - 1 <= rounds
