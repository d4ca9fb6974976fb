"""The processes of a run and what they exchange."""

from distae import deprecation
from distae.distributed.collectives import (
    all_reduce,
    all_reduce_,
    broadcast,
    broadcast_in_node,
    gather,
    gather_rows,
    local_rows,
    on_main,
    rows_of,
    sum_rows,
)
from distae.distributed.consensus import LOST, Consensus, first_failure
from distae.distributed.parallelize import blocks_of
from distae.distributed.startup import Rendezvous, ends_within, first_in_node, rendezvous
from distae.distributed.world import World, memory_of, pick_device, session, set_tf32, set_threads, synchronize, use, world

__all__ = [
    "LOST",
    "Consensus",
    "Rendezvous",
    "World",
    "all_reduce",
    "all_reduce_",
    "blocks_of",
    "broadcast",
    "broadcast_in_node",
    "ends_within",
    "first_failure",
    "first_in_node",
    "gather",
    "gather_rows",
    "local_rows",
    "memory_of",
    "on_main",
    "pick_device",
    "rendezvous",
    "rows_of",
    "session",
    "set_tf32",
    "set_threads",
    "sum_rows",
    "synchronize",
    "use",
    "world",
]

__getattr__ = deprecation.renamed(__name__, {"my_rows": ("local_rows", local_rows), "sum_": ("all_reduce_", all_reduce_)})
