"""Injects faults into runs from outside, and checks that nothing goes wrong silently.

python -m benchmarks.crash --all                         # every mode at full size, one table
python -m benchmarks.crash kills --count 1000 --seed 0   # one mode
"""

from benchmarks.crash.compare import differences, timeless
from benchmarks.crash.processes import finish, start

__all__ = ["differences", "finish", "start", "timeless"]
