"""Agreement between ranks: on a stop, and on which rank failed first."""

import contextlib
import re
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as td

from distae.distributed.world import world


def first_failure(error: Exception, text: str) -> str:
    """Announce that this rank failed; returns the first announcement of any rank, which caused the others.

    Ranks that only lost contact give the failed rank a moment to announce itself. If the store is gone or frozen too, their own
    text is all there is.
    """
    rank = f"rank {world().rank}: "
    if world().group is None:
        return rank + text
    lost = isinstance(error, RuntimeError) and _LOST_CONTACT.search(str(error)) is not None
    return _announced(rank + (f"{LOST} ({text})" if lost else text), wait=lost)


def _announced(text: str, wait: bool) -> str:
    """The value in the store, read in a thread: if the server is a frozen process, torch's timeouts do not hold."""
    answer = [text]

    def ask() -> None:
        with contextlib.suppress(RuntimeError):
            store = td.distributed_c10d._get_default_store()
            if wait:
                with contextlib.suppress(td.DistStoreError):
                    store.wait(["distae/failure"], timedelta(seconds=2))
            answer[0] = bytes(store.compare_set("distae/failure", "", text)).decode()

    thread = threading.Thread(target=ask, name="first failure", daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answer[0]


LOST = "lost contact with another rank"
ANSWER_SECONDS = 4.0
_LOST_CONTACT = re.compile(r"gloo|nccl|connection (closed|reset|refused)|pair closure|broken pipe|tim(ed ?|e)out", re.IGNORECASE)
"""In what torch.distributed raises; a broken pipe of stdout is an OSError."""


class Consensus:
    """A number on which all ranks agree without waiting: posted in one round, read in the next.

    A round takes a tenth of the time of a very small step. Rounds are about PERIOD seconds apart, measured in calls (at most
    MOST_CALLS), because all ranks make the same number of calls.
    """

    PERIOD = 0.1
    MOST_CALLS = 16

    def __init__(self) -> None:
        self.box = torch.zeros(2, dtype=torch.int32)
        """The number, and minus the calls until the round after next: the ranks agree on the largest of each."""
        self.work: td.Work | None = None
        self.calls, self.interval = 0, 1
        self.began, self.seconds = time.perf_counter(), 0.0

    def post(self, value: int, at_once: bool = False) -> int:
        """Contribute `value` to the next round; returns the largest value of the previous round, or 0 between rounds.

        Called by all ranks together. `at_once` makes this call a round: for calls that take longer than those before.
        """
        if world().control is None:
            return value
        self.calls += 1
        if self.calls < self.interval and not at_once:
            return 0
        now = time.perf_counter()
        # The host of a GPU runs ahead until it reads a value: the duration of that call is kept for some rounds.
        self.seconds = max((now - self.began) / self.calls, 0.8 * self.seconds, 1e-6)
        result = self.wait()
        self.began, self.calls, self.interval = now, 0, max(1, -int(self.box[1]))
        self.box[0], self.box[1] = value, -max(1, min(int(self.PERIOD / self.seconds), self.MOST_CALLS))
        self.work = td.all_reduce(self.box, td.ReduceOp.MAX, group=world().control, async_op=True)
        return result

    def wait(self) -> int:
        """The result of the pending round, 0 if there is none."""
        if self.work is None:
            return 0
        self.work.wait()
        self.work = None
        return int(self.box[0])
