"""Run folder, lock, signals, files: all without torch."""
