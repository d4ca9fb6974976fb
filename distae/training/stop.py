"""Agreement of all ranks on a stop that one of them was asked for."""

from distae import distributed as dist
from distae.runtime.signals import StopRequest


class StopAgreement:
    """Asked by all ranks at the same points of a run."""

    def __init__(self, request: StopRequest) -> None:
        self.request, self.consensus = request, dist.Consensus()
        self.signal = 0
        """The signal that all ranks know of."""

    def agreed(self, at_once: bool = False) -> bool:
        """Whether all ranks know that one of them was asked to stop (`at_once`: see `Consensus.post`)."""
        self.signal = self.signal or self.consensus.post(self.request.signum, at_once)
        return bool(self.signal)

    def settle(self) -> None:
        """Wait for the round under way, so that none is left when other collectives follow."""
        self.consensus.wait()
