"""torchrun's agent, without its tracebacks for what is no bug: a job that was stopped, or that failed and has said why itself."""

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

if __name__ == "__main__":
    try:
        run.main()
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except ChildFailedError:
        sys.exit(1)
