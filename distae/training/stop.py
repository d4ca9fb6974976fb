"""Agreement of all ranks on a stop requested from any of them."""

from distae import distributed as dist
from distae.runtime.signals import StopRequest


class StopAgreement:
    """Called by all ranks at the same points of a run."""

    def __init__(self, request: StopRequest) -> None:
        self.request, self.consensus = request, dist.Consensus()
        self.signal = 0
        """The signal that all ranks know of."""

    def agreed(self, at_once: bool = False) -> bool:
        """Whether all ranks know that one of them was asked to stop (`at_once`: see `Consensus.post`)."""
        self.signal = self.signal or self.consensus.post(self.request.signum, at_once)
        return bool(self.signal)

    def wait(self) -> None:
        """Wait for the pending round, so that none is left when other collectives follow."""
        self.consensus.wait()
