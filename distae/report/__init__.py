"""Pages: self-contained HTML of what was recorded and computed of runs."""
