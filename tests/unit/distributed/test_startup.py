"""Before the first step: the ranks report errors to each other and compare settings and data. Ranks are threads here."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import images, settings, splits
from torch import distributed as td

from distae import data
from distae import distributed as dist
from distae.config.check import shared_settings
from distae.data import Split, Transform
from distae.distributed.startup import Rendezvous
from distae.errors import TrainingError, UserError
from distae.runtime.environment import Environment

Work = Callable[[int], Any]


def meet(work: Work, ranks: int = 3, timeout: float = 20.0, one_node: bool = False) -> list[Any]:
    """What each rank's `work` gave, or what it raised."""
    store, ends = td.HashStore(), list[Any]([None] * ranks)

    def one(rank: int) -> None:
        try:
            env = Environment(rank, ranks, rank, ranks) if one_node else Environment(rank, ranks)
            ends[rank] = Rendezvous(env, store, timeout).prepare(lambda: work(rank))
        except Exception as error:
            ends[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return ends


def said(ends: list[Any], kind: type[Exception] = UserError) -> list[str]:
    assert [isinstance(end, kind) for end in ends] == [True] * len(ends), ends
    return [str(end) for end in ends]


def test_ranks_that_agree_start() -> None:
    assert meet(lambda rank: (rank, {"seed": 0})) == [0, 1, 2]


def test_a_rejection_of_one_rank_ends_all_within_seconds() -> None:
    begun = time.monotonic()

    def work(rank: int) -> Any:
        if rank == 2:
            raise UserError("--data.path: no file x.npy")
        time.sleep(0.1 * rank)
        return None, {}

    ends = said(meet(work, timeout=600))
    assert time.monotonic() - begun < 5
    assert ends[2] == "--data.path: no file x.npy"
    assert ends[0] == ends[1]
    assert ends[0].startswith("rank 2 (")
    assert ends[0].endswith("): --data.path: no file x.npy")


def test_a_rank_that_fails_in_another_way_is_heard_too() -> None:
    def work(rank: int) -> Any:
        if rank == 0:
            raise OSError(5, "Input/output error")
        return None, {}

    ends = meet(work, timeout=600)
    assert isinstance(ends[0], OSError)
    assert "Input/output error" in said(ends[1:], TrainingError)[0]


@pytest.mark.slow
def test_a_rank_that_never_comes_is_named() -> None:
    """Killed while it loads its data."""
    ends = meet(lambda rank: time.sleep(2) if rank == 1 else (None, {}), timeout=1.0)
    for end in said([ends[0], ends[2]], TrainingError):
        assert end.endswith("lost contact with rank 1: not ready within 1 s (--timeout)")


def test_one_rank_of_a_node_is_first() -> None:
    """Also the second time; where it does not come, the others are."""
    seen: list[str] = []

    def work(rank: int) -> Any:
        for name in "abc" if rank else "ab":
            with dist.first_in_node() as is_first:
                time.sleep(0 if rank else 0.2)
                seen.append(f"{name}{rank}{' first' if is_first else ''}")
        return None, {}

    assert meet(work, one_node=True) == [None] * 3
    assert seen[0] == "a0 first"
    assert sorted(seen) == ["a0 first", "a1", "a2", "b0 first", "b1", "b2", "c1 first", "c2 first"]
    seen.clear()
    assert meet(work) == [None] * 3
    assert all("first" in one for one in seen)


def test_what_fails_in_the_first_rank_ends_all_that_wait_for_it() -> None:
    def work(rank: int) -> Any:
        with dist.first_in_node():
            raise UserError("no folder x" if rank == 0 else "not reached")

    ends = said(meet(work, one_node=True, timeout=600))
    assert ends[0] == "no folder x"
    assert ends[1] == ends[2]
    assert ends[1].endswith("): no folder x")


@pytest.mark.slow
def test_a_first_rank_that_does_not_end() -> None:
    def work(rank: int) -> Any:
        with dist.first_in_node():
            time.sleep(0 if rank else 3)
        return None, {}

    ends = said(meet(work, one_node=True, timeout=1.0)[1:], TrainingError)
    assert all("lost contact with local rank 0 of " in end and end.endswith("not ready within 1 s (--timeout)") for end in ends)


def together(*identities: dict[str, Any]) -> list[str]:
    return said(meet(lambda rank: (None, identities[rank]), ranks=len(identities), timeout=600))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim": {"lr": 0.5}}, "optim.lr is 0.01 on rank 0 and 0.5 here"),
        ({"seed": 4}, "seed is 3 on rank 0 and 4 here"),
        ({"net": {"dropout": 0.1}}, "net.dropout is 0.0 on rank 0 and 0.1 here"),
        ({"steps": 21}, "steps is 20 on rank 0 and 21 here"),
        ({"log_every": 5}, "log_every is 7 on rank 0 and 5 here"),
    ],
)
def test_other_settings_on_one_rank(changes: dict[str, Any], words: str) -> None:
    same = shared_settings(settings())
    ends = together(same, same, shared_settings(settings(**changes)))
    assert ends[2] == f"settings and data must be the same on all ranks: {words}"
    assert ends[0] == ends[1]
    assert ends[0].startswith("rank 2 (")
    assert words in ends[0]


def test_what_belongs_to_a_node_may_differ() -> None:
    one, other = (shared_settings(settings(threads=n, data={"name": "mnist", "root": f"/node{n}"})) for n in (1, 2))
    assert one == other


def changed(what: str) -> dict[str, Split]:
    train = images(197, 1)
    x, label, transform = train.x, train.label, train.transform
    assert label is not None
    if what == "values":
        x[100, 0, 3, 3] ^= 1
    if what == "labels":
        label[5] = 0
    if what == "dtype":
        x = x.float()
    if what == "scale":
        transform = Transform()
    if what == "shape":
        x = x.view(-1, 1, 4, 16)
    train = Split.of(x, label, transform)
    return splits() | {"train": train.take(slice(196)) if what == "samples" else train}


@pytest.mark.parametrize("what", ["values", "labels", "dtype", "scale", "samples", "shape"])
def test_other_data_on_one_rank(what: str) -> None:
    same = data.identity(splits())
    assert f"train.{what} is " in together(same, data.identity(changed(what)))[1]


def test_a_copy_is_the_same_data() -> None:
    train = images(197, 1)
    strided = Split.of(torch.stack([train.x, train.x], 1)[:, 0], train.label, train.transform)
    assert data.identity(splits() | {"train": strided}) == data.identity(splits())
    twice = Split.of(train.x.repeat_interleave(2, 0), torch.arange(197).repeat_interleave(2) % 10, train.transform)
    picked = twice.take(torch.arange(0, 394, 2))
    assert data.identity(splits() | {"train": picked}) == data.identity(splits())


def test_blocks_of_what_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change is seen where it is in a block that is looked at; the number of samples always is."""
    monkeypatch.setattr(data.source, "BLOCK_BYTES", 64 * 10)
    monkeypatch.setattr(data.source, "WHOLE_BYTES", 197 * 64 // 2)
    differ = []
    for row in (0, 10, 20, 30):
        train = images(197, 1)
        x = train.x
        x[row, 0, 0, 0] ^= 1
        differ.append(data.identity(splits() | {"train": Split.of(x, train.label, train.transform)}) != data.identity(splits()))
    assert differ == [True, False, True, False]
