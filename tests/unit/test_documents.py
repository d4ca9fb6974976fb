"""All documents: their commands, options, links and anchors, and that the site has every one of them.

Commands of most documents are run by the tests that RUN names; those of FULL are run here. Of the rest, which need a cluster, a
GPU, downloads or hours, the options are checked: names and values of training, names of everything else.
"""

import contextlib
import io
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT

from distae.__main__ import COMMANDS, main
from distae.commands.train import SWITCHES
from distae.config import TrainConfig, parse
from distae.config.cli import ALIASES

DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted((ROOT / "docs").glob("*.md"))]
}
FULL = ("docs/README.md", "docs/choose.md", "docs/one_machine.md", "docs/troubleshooting.md")
ELSEWHERE = re.compile(r"--device cuda|^torchrun|^distae launch")
"""Commands of FULL that need a GPU or start processes, as other tests do."""
SMALL = "--data.limit 300 --net.hidden 8 --tracking none --no-report --device cpu --threads 1"
RUN = {
    "CONTRIBUTING.md": "test_contributing.py", "docs/data.md": "test_data_document.py", "docs/python.md": "test_python_doc.py",
    "docs/use.md": "test_use_document.py", "docs/use_generate.md": "test_use_document.py", "docs/report.md": "test_use_document.py",
    "docs/use_compress.md": "commands/test_use_compress.py", "docs/sparse_autoencoders.md": "test_sparse_document.py",
}  # fmt: skip
OF_OTHERS = {
    "torchrun": {"--standalone", "--nnodes", "--nproc_per_node", "--nproc-per-node", "--signals-to-handle"},
    "sbatch, srun": {"--test-only", "--overlap", "--jobid", "--nodelist"},
    "py-spy, torchfrtrace": {"--pid", "--prefix"},
}
"""Options of other programs that documents name."""


def commands(text: str) -> list[str]:
    """The indented lines that are commands, without their comments; shell variables are 0."""
    lines = re.findall(r"^ {4,6}((?:distae|python|torchrun) .*)$", text, re.MULTILINE)
    return [re.sub(r"\$\{?\w+\}?", "0", re.sub(r"\s+#.*$", "", line)).strip() for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_the_commands_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (c for c in commands(DOCUMENTS[name]) if not ELSEWHERE.search(c)):
        words = shlex.split(command.removeprefix("distae "))
        length = "--epochs 1" if "--epochs" in words else "--steps 2"
        few = "--data.samples 300" if "shapes" in words else ""
        more = f"{SMALL} {length} {few}" if words[0] == "train" else ""
        assert main([*words, *more.split()]) == 0, (command, capsys.readouterr().err)
    for block in re.findall(r"^```python\n(.*?)^```$", DOCUMENTS[name], re.MULTILINE | re.DOTALL):
        exec(compile(block, name, "exec"), {})


def of_training(command: str) -> list[str]:
    """The options of training in a command."""
    words = shlex.split(command)
    for before in (["distae", "train"], ["python", "-m", "distae.train"]):
        if words[: len(before)] == before:
            return words[len(before) :]
    mark = "distae.train" if words[0] == "torchrun" else "--"
    return words[words.index(mark) + 1 :] if mark in words else []


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name not in RUN])
def test_the_options_of_training_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in map(of_training, commands(DOCUMENTS[name])):
        if not {"--help", "--plugin", "…", "..."} & {*words}:  # plugins: tests/cli/test_plugin.py
            parse(TrainConfig, words, SWITCHES, "distae train")


def named(text: str) -> set[str]:
    """The options that a text names; not `--data.OPTION` and `--checkpoint.*`."""
    found = {word.rstrip(".-") for word in re.findall(r"(?<![\w-])--[a-z][\w.*-]*", text)}
    return {word for word in found if word == word.lower() and "*" not in word}


@cache
def options() -> set[str]:
    """Every option of a command, in its help, of a benchmark, in its source, and of other libraries that there is a hint for."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for words in ("train --help all", "launch local --help", "launch slurm --help", *(f"{name} --help" for name in COMMANDS)):
            with contextlib.suppress(SystemExit):
                main(words.split())
    sources = (path.read_text() for path in (ROOT / "benchmarks").rglob("*.py"))
    return named("\n".join([said.getvalue(), *sources])) | {"--version", *(f"--{alias}" for alias in ALIASES)}.union(
        *OF_OTHERS.values()
    )


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != "CHANGELOG.md"])
def test_every_option_exists(name: str) -> None:
    text = DOCUMENTS[name]
    if name == "docs/coming_from.md":  # the first column is of other libraries
        text = re.sub(r"^\|[^|]*\|", "", text, flags=re.MULTILINE)
    assert not [option for option in named(text) if not {option, option.replace("--no-", "--")} & options()]


def test_the_tests_that_run_a_document_read_it() -> None:
    for name, test in RUN.items():
        assert Path(name).stem in (ROOT / "tests/unit" / test).read_text(), (name, test)


def anchors(text: str) -> set[str]:
    """GitHub's anchors of the headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return {*found}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_anchors_exist(name: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", DOCUMENTS[name]):
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_every_document_is_a_page_of_the_site() -> None:
    pages = re.findall(r"^ +- [\w ,]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(pages) == len({*pages})
    assert {*pages} == {Path(name).name for name in DOCUMENTS if name != "README.md"}
