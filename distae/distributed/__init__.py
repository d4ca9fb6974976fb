"""The processes of a run and what they exchange."""

from distae.distributed.collectives import all_reduce, broadcast, gather, gather_rows, my_rows, sum_
from distae.distributed.consensus import Vote, first_failure
from distae.distributed.world import World, pick_device, session, set_tf32, set_threads, synchronize, use, world

__all__ = [
    "Vote",
    "World",
    "all_reduce",
    "broadcast",
    "first_failure",
    "gather",
    "gather_rows",
    "my_rows",
    "pick_device",
    "session",
    "set_tf32",
    "set_threads",
    "sum_",
    "synchronize",
    "use",
    "world",
]
