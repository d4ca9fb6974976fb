"""What the ranks agree on, without processes: two alternate in one, and the test exchanges for them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from distae import distributed as dist


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


Slowness = Callable[[int], float]


def hear(seconds: Slowness, at_once: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Rank 1 is asked to stop at call 100 of 200. The call at which both hear of it, and the number of rounds.

    A call takes rank 1 as many `seconds` as are said for its number, and rank 0 a third.
    """
    exchange, now = Exchange(), [0.0]
    monkeypatch.setattr("torch.distributed.all_reduce", exchange)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    votes, clocks = (dist.Consensus(), dist.Consensus()), [0.0, 0.0]
    heard: tuple[list[int], list[int]] = ([], [])
    with dist.use(dist.World(0, 2, torch.device("cpu"), control=exchange)):  # type: ignore[arg-type]
        for call in range(200):
            for rank in (0, 1):
                clocks[rank] += seconds(call) if rank else seconds(call) / 3
                now[0] = clocks[rank]
                heard[rank].append(votes[rank].post(15 if rank and call >= 100 else 0, at_once(call)))
    assert heard[0] == heard[1]
    return heard[0].index(15), len(exchange.rounds) - 1


@pytest.mark.parametrize(("seconds", "rounds", "latest"), [(1.0, 200, 101), (0.03, 70, 106), (1e-4, 20, 132)])
def test_a_consensus_is_read_by_all_ranks_at_the_same_call(seconds, rounds, latest, monkeypatch):
    heard, taken = hear(lambda call: seconds, lambda call: False, monkeypatch)
    assert 100 < heard <= latest
    assert taken <= rounds


def test_a_round_at_once_is_heard_at_the_next(monkeypatch):
    """Fast steps, then the chunks of an evaluation."""
    assert hear(lambda call: 1e-4 if call < 95 else 1.0, lambda call: call >= 95, monkeypatch)[0] == 101


def test_a_host_that_runs_ahead_of_its_gpu_is_not_taken_for_fast(monkeypatch):
    """A step of 0.1 s that is queued in no time, and awaited at every 20th."""
    heard, taken = hear(lambda call: 1e-4 if call % 20 else 2.0, lambda call: False, monkeypatch)
    assert heard <= 104
    assert taken > 100
