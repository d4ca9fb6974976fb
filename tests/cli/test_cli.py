"""`distae COMMAND`: what it dispatches to, its help, completion, recipes by name, and the wheel."""

import contextlib
import io
import os
import re
import resource
import subprocess
import sys
import zipfile
from typing import Any

import pytest
from helpers import ROOT, spy

from distae import __main__ as distae_main
from distae import __version__
from distae.__main__ import COMMANDS, main
from distae.commands import completion
from distae.config.models import ModelConfig
from distae.config.recipes import names
from distae.runtime.backends import BACKENDS
from launch import start


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command prints on its way to exit code 0."""
    with contextlib.suppress(SystemExit):  # of argparse, at --help
        assert main(argv) == 0
    return capsys.readouterr().out


def test_the_help_lists_every_command(capsys):
    text = said(capsys, "--help")
    assert all(re.search(rf"^  {name} +\w", text, re.MULTILINE) for name in COMMANDS)
    assert said(capsys) == text
    assert said(capsys, "--version") == f"distae {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_that_says_how_it_is_called(name, capsys):
    assert said(capsys, name, "--help").startswith(f"usage: distae {name} ")


def test_an_unknown_command_is_rejected_with_the_valid_ones(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == f"distae: unknown command 'trian' (did you mean 'train'?); valid: {', '.join(COMMANDS)}\n"


def test_another_launch_on_the_path_is_reported(monkeypatch, tmp_path, capsys):
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [m for m in sys.modules if m.partition(".")[0] == "launch"]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["status", "x"]) == 2
    assert f"the module `launch` is {tmp_path}/launch/__init__.py, not {ROOT / 'launch'}" in capsys.readouterr().err


HELP_OF_ALL = """
import sys
from distae.__main__ import COMMANDS, main
for argv in ["--help", *(f"{name} --help" for name in COMMANDS), "train --model vq_vae --help", "launch local --help"]:
    try:
        main(argv.split())
    except SystemExit as end:
        assert not end.code, argv
assert not {"torch", "torchvision", "wandb", "sklearn"} & sys.modules.keys()
"""


def test_no_help_imports_torch():
    subprocess.run([sys.executable, "-c", HELP_OF_ALL], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=60)


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"]])
def test_help_comes_at_once(argv):
    """CPU time of one of some tries, for the machine may be busy."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "distae", *argv], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(seconds() < 0.3 for _ in range(20))


def test_the_short_help_names_every_choice_and_how_to_see_more(capsys):
    text = said(capsys, "train", "--help")
    flat = " ".join(text.split())
    for cls in (ModelConfig,):
        assert f"One of {', '.join(cls.choices())} (default vae)" in flat
    assert "--help all" in text
    assert "--model NAME --help" in text
    assert len(text.splitlines()) < 80


def test_the_help_of_a_variant_shows_that_one_only(capsys):
    text = said(capsys, "train", "--model", "vq_vae", "--net", "conv", "--help")
    assert "--model vq_vae: " in text
    assert "--model.codebook-size" in text
    assert "--net.channels" in text
    assert "--model.latent-dim" in text
    assert "--early-stop.patience" in text
    for other in ("--model vae: ", "--model.beta ", "--net mlp: ", "--net.hidden", "--data array: "):
        assert other not in text


def test_the_help_of_a_file_shows_its_variant(capsys):
    assert "--model beta_vae: " in said(capsys, "train", "--config", "recipe:variants/beta_vae", "--help")


def test_help_all_shows_all(capsys):
    text = said(capsys, "train", "--help", "all")
    assert all(f"--model {name}: " in text for name in ModelConfig.choices())
    assert text.replace("distae train", "") == said(capsys, "train", "--model", "ae", "--help", "all").replace("distae train", "")


def test_a_variant_that_there_is_not_has_no_help(capsys):
    assert main(["train", "--model", "vea", "--help"]) == 2
    assert "--model: unknown 'vea' (did you mean 'vae'?)" in capsys.readouterr().err


def test_a_recipe_by_its_name_is_the_file(capsys):
    by_name = said(capsys, "train", "--config", "recipe:vae_mnist", "--print-config")
    assert by_name == said(capsys, "train", "--config", str(ROOT / "recipes/vae_mnist.toml"), "--print-config")


def test_a_recipe_that_there_is_not_is_answered_with_the_names(capsys):
    assert main(["train", "--config", "recipe:vae_mnits"]) == 2
    report = capsys.readouterr().err
    assert "--config: no recipe 'vae_mnits' (did you mean 'vae_mnist'?); valid: ae_fashion_mnist_3, " in report
    assert report.rpartition("valid: ")[2].strip().split(", ") == names()


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_code_for_every_shell(shell, capsys):
    assert "distae" in said(capsys, "completion", shell)


def completed(monkeypatch: pytest.MonkeyPatch, line: str) -> set[str]:
    """What a TAB at the end of `line` gives."""
    for name, value in {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("argcomplete.CompletionFinder._init_debug_stream", lambda self: None)  # it takes pytest's file 9
    monkeypatch.setattr("argcomplete.io.debug_stream", io.StringIO())
    out = io.StringIO()

    def leave(code: int = 0) -> None:
        raise SystemExit(code)

    with pytest.raises(SystemExit):
        completion.complete(COMMANDS, distae_main.load, output_stream=out, exit_method=leave)
    return {word.strip() for word in out.getvalue().split("\n") if word}


@pytest.mark.parametrize(
    ("line", "there", "absent"),
    [
        ("distae ", {"train", "launch", "checkpoint"}, set()),
        ("distae st", {"status"}, {"train"}),
        ("distae train --model v", {"vae", "vq_vae", "vaegan"}, {"ae"}),
        ("distae train --model vq_vae --model.", {"--model.codebook-size", "--model.latent-dim"}, {"--model.beta"}),
        ("distae train --precision b", {"bf16"}, {"fp16"}),
        ("distae launch ", {"local", "slurm"}, set()),
        ("distae launch slurm --nod", {"--nodes"}, set()),
        ("distae sweep --gr", {"--grid"}, set()),
        ("distae launch slurm --nodes 2 -- --model vq_vae --model.cod", {"--model.codebook-size"}, {"--nodes"}),
        ("distae checkpoint --v", {"--verify"}, set()),
    ],
)
def test_completion_knows_the_commands_and_the_chosen_variant(line, there, absent, monkeypatch):
    found = completed(monkeypatch, line)
    assert found >= there, found
    assert not found & absent


def test_a_backend_is_chosen_by_name_either_way(monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(BACKENDS["local"], "submit", spy(lambda *args: 75, lambda self, *args: asked.append(args)))
    assert main(["launch", "local", "--nproc", "2", "--", "--model", "ae"]) == 75
    assert main(["launch", "--backend", "local", "--nproc", "2", "--", "--model", "ae"]) == 75
    assert asked == [(["--nproc", "2", "--", "--model", "ae"], "distae launch local")] * 2
    assert start.main(["nope"]) == 2
    assert start.main([]) == 2


@pytest.mark.slow
def test_the_wheel_has_the_recipes_and_no_launch_at_the_top(tmp_path, monkeypatch):
    from hatchling import build

    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build.build_wheel(str(tmp_path))) as wheel:
        tops = {name.partition("/")[0] for name in wheel.namelist()}
        assert tops == {"distae", f"distae-{__version__}.dist-info"}
        assert f"{distae_main.__name__}:entry" in wheel.read(f"distae-{__version__}.dist-info/entry_points.txt").decode()
        wheel.extractall(tmp_path / "site")
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}

    def run(*argv: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", *argv], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert 'name = "vae"' in run("distae", "train", "--config", "recipe:vae_mnist", "--print-config")
    train = ["--steps", "2", "--data.limit", "200", "--tracking", "none", "--device", "cpu", "--run-dir", "run"]
    run("distae", "launch", "local", "--nproc", "2", "--", *train)
    assert "done at step 2" in run("distae", "status", "run")
    assert "--nodes" in run("distae", "launch", "slurm", "--help")
    assert "--grid" in run("distae.launch.sweep", "--help")
