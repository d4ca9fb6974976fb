"""A launcher of your own: distae launch background --plugin examples/my_launcher.py -- --model ae."""

import subprocess
import sys

from distae.runtime.backends import register_backend


@register_backend("background")
class Background:
    """a process of this machine that stays when you log out"""

    def submit(self, argv, prog):
        """`argv` is `[OPTION ...] [-- TRAIN OPTION ...]`; returns the exit code of `distae launch`."""
        train = argv[argv.index("--") + 1 :] if "--" in argv else []
        process = subprocess.Popen([sys.executable, "-m", "distae", "train", *train], start_new_session=True)
        sys.stdout.write(f"process {process.pid}\n")
        return 0

    def status(self, run_dir):
        """Lines for `distae status`, each a name and a value."""
        return [("log", str(run_dir / "log.txt"))]
