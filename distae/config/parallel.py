"""Settings of how the ranks of a run hold its model."""

from dataclasses import dataclass
from typing import ClassVar

from distae.config.fields import Count, Variant


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(Variant):
    """How parameters, gradients and optimizer state are spread over the ranks."""

    divides: ClassVar[bool] = False
    """Whether several ranks hold a part each."""

    def parts(self, ranks: int) -> int:
        """Into how many parts these are divided."""
        return 1


@dataclass(frozen=True, kw_only=True)
class ReplicateConfig(ParallelConfig):
    """Each rank holds the whole model, and gradients are averaged (torch's DistributedDataParallel)."""

    name: ClassVar[str] = "ddp"


@dataclass(frozen=True, kw_only=True)
class ShardConfig(ParallelConfig):
    """Each rank holds a part of parameters, gradients and optimizer state, and gathers a block's parameters while it computes it
    (torch's fully_shard, FSDP2)."""

    name: ClassVar[str] = "fsdp"
    divides: ClassVar[bool] = True

    cpu_offload: bool = False
    """Keep parts in host memory and update them there; needs a GPU."""

    def parts(self, ranks: int) -> int:
        return ranks


@dataclass(frozen=True, kw_only=True)
class HybridShardConfig(ShardConfig):
    """Sharded over groups of shard_size consecutive ranks, such as those of a node, and replicated over the groups (HSDP)."""

    name: ClassVar[str] = "hsdp"

    shard_size: Count | None = None
    """Ranks of a group, a divisor of the number of ranks; required."""

    def parts(self, ranks: int) -> int:
        return self.shard_size or 1


@dataclass(frozen=True, kw_only=True)
class LatentShardConfig(ParallelConfig):
    """Each rank holds a part of a sparse autoencoder's latents, and computes them for the samples of all ranks, without gathering
    parameters (tensor parallelism)."""

    name: ClassVar[str] = "tp"
    divides: ClassVar[bool] = True

    shard_size: Count | None = None
    """Consecutive ranks that share the latents, such as those of a node, a divisor of the number of ranks; by default all."""

    def parts(self, ranks: int) -> int:
        return self.shard_size or ranks
