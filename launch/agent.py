"""torchrun's agent, without its tracebacks for expected exits: a job that was stopped, or that has reported its own failure."""

import platform
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

if __name__ == "__main__":
    try:
        run.main()
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as failed:
        for rank, failure in failed.failures.items():
            if failure.exitcode < 0:  # it could not report that itself
                sys.stderr.write(f"distae: rank {rank} ({platform.node()}) was ended by {failure.signal_name()}\n")
        sys.exit(2 if failed.get_first_failure()[1].exitcode == 2 else 1)
