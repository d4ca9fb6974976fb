"""distae completion SHELL: code that makes a shell complete commands, options, variants and their values.

    eval "$(distae completion bash)"        # ~/.bashrc
    eval "$(distae completion zsh)"         # ~/.zshrc, after compinit
    distae completion fish | source         # ~/.config/fish/config.fish

argcomplete asks `distae` itself at each TAB, so the options are those of the variants on the line and of a plugin there.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from distae.errors import UserError

SHELLS = ("bash", "zsh", "fish")


def main(argv: Sequence[str] | None = None, prog: str = "distae completion") -> int:
    from argcomplete.shell_integration import shellcode

    shell = arguments(prog).parse_args(argv).shell
    sys.stdout.write(shellcode(["distae"], shell=shell))
    return 0


def arguments(prog: str, words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(prog, description="Print the code that makes a shell complete `distae`.")
    parser.add_argument("shell", choices=SHELLS, help='as in eval "$(distae completion bash)"')
    return parser


def complete(commands: Iterable[str], load: Callable[[str], Any], **kwargs: Any) -> None:
    """Answer a shell's question in COMP_LINE and exit; `load` gives the module of a command, and `kwargs` are argcomplete's.

    A command's module has `arguments(prog, words)`: the ArgumentParser of what may follow `words`.
    """
    import argcomplete
    from argcomplete.lexers import split_line

    *_, words, _ = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))
    parser = argparse.ArgumentParser(add_help=False)
    done = 0
    with contextlib.suppress(UserError):  # the command line is still incomplete
        if len(words) > 1:
            command, done = _place(words[1:])
            parser = load(command).arguments("distae", words[1 + done :] if command != "launch" else words[2:])
        else:
            parser.add_argument("command", choices=[*commands])
    os.environ["_ARGCOMPLETE"] = str(1 + done)  # the words that are the program's
    argcomplete.autocomplete(parser, always_complete_options=False, **kwargs)


def _place(words: Sequence[str]) -> tuple[str, int]:
    """The command being typed, and how many words name it: the words after -- belong to `train`."""
    if words[0] in ("launch", "sweep") and "--" in words:
        return "train", 1 + words.index("--")
    return words[0], min(len(words), 2) if words[0] == "launch" else 1
