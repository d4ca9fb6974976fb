"""A sink of one's own: --plugin examples/my_sink.py --tracking csv."""

import csv

from distae.tracking import register_sink
from distae.tracking.recorded import metrics_of, repeat


@register_sink("csv")
class Csv:
    """RUN/metrics.csv: a line of step, metric and value for each metric of each row."""

    def __init__(self, start):
        self.file = (start.run_dir / "metrics.csv").open("w", newline="")
        self.lines = csv.writer(self.file)
        self.lines.writerow(["step", "metric", "value"])
        repeat(start.run_dir, self)  # a resumed run begins anew with what is recorded: no row is there twice

    def row(self, row):
        self.lines.writerows([row["step"], name, value] for name, value in metrics_of(row).items())

    def image(self, name, path, step):
        """Of `name`, such as `val/samples`; a table has no place for it."""

    def close(self):
        self.file.close()
