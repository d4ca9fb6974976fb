"""Words and lines of what people read: the field's terms, plain English, paths that exist, lines under 120 characters."""

import functools
import re
from collections.abc import Iterator

import pytest
from helpers import ROOT

DOCUMENTS = [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted((ROOT / "docs").glob("*.md"))
READ = [p for p in DOCUMENTS if p.name != "CHANGELOG.md"] + [
    p for folder in ("distae", "launch", "benchmarks", "examples", "recipes", "slurm") for p in sorted((ROOT / folder).rglob("*.*"))
    if p.suffix in (".py", ".toml", ".sbatch")
]  # fmt: skip
WORDS = {
    r"refused? in a line|refused? in words": "rejected with an error",
    r"\b(goes|go) on\b": "resumes, continues",
    r"same command (goes|resumes)|run the same command|start the same command": "rerun to resume",
    r"checksum is another": "checksum mismatch",
    r"\b(is|are|was|were|be) told\b|, told\b|told apart": "is reported",
    r"said in words|told in words|, in words\b": "with a message",
    r"say nothing|lie idle": "inactive, unused",
    r"\bso far (down|apart)\b": "below this scale; the interval",
    r"\bnewest so many\b|\bso many (samples|steps|times)\b|first so many": "the number of",
    r"what is no\b|\bis no (bug|tensor|file|option|time|row|transform|multiple|git|regular|valid|mean)\b": "is not a",
    r"\ba text\b(?! stream)": "a string",
    r"Who am I\b": "rank and world size",
    r"by then\b|\bwherein\b|\bsuch that\b|\banew where\b|\bwanted were\b": "plain words",
    r"\bdrawn anew\b|\bcome by themselves\b|\bpassed over\b": "resampled; need no code; skipped",
    r"A mistake of the user's|your mistake|a user's mistake": "invalid input",
    r"there is no Slurm here to ask": "required without Slurm",
    r"loop (stands|stood) still|holds? the (loop|training) up": "blocks",
    r"\b(two|three|several|a|the) turns?\b(?!ed|s )": "phase",
    r"\bclass Vote\b|\bStepper\b|stepper\.py|SaveClock|JudgedCodes|\b_rehearse\b|\.prime\b|\bsettle\(": "the standard name",
    r"noise\.Recorder|noise\.Given|dist\.Vote|stepper\.Window|\bredraw\b": "NoiseRecorder, NoiseReplay, MetricAccumulator",
    r"\bmend(s|ed|ing)?\b|, for people\b|\bin turns\b|beside ours\b": "fix; as shown to users; alternating; against",
    r"\bmy_rows\b|\bsum_\(|\btold_apart\b": "local_rows, all_reduce_, discriminator_loss",
}
"""What must not be read, and what to write instead."""
OLD_NAMES = {"distae/distributed/__init__.py"}
"""Where old names are translated for plugins."""


@functools.cache
def texts() -> dict[str, str]:
    return {name: path.read_text() for path in READ if (name := path.relative_to(ROOT).as_posix()) not in OLD_NAMES}


def found(pattern: str) -> Iterator[str]:
    for name, text in texts().items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            yield f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"


@pytest.mark.parametrize("pattern", WORDS)
def test_words_of_the_field(pattern: str) -> None:
    assert not list(found(pattern)), f"write: {WORDS[pattern]}"


def test_lines_of_documents_are_short() -> None:
    """Tables and code may be longer."""
    long = []
    for path in DOCUMENTS:
        fenced = False
        for number, line in enumerate(path.read_text().splitlines(), 1):
            fenced ^= line.startswith("```")
            if len(line) >= 120 and not fenced and not line.startswith(("|", "    ")):
                long.append(f"{path.name}:{number}")
    assert not long


def test_files_that_documents_name_exist() -> None:
    """Paths from the root, in backticks or commands, and links from where the document is."""
    missing = []
    for path in DOCUMENTS:
        text = path.read_text()
        named = re.findall(r"(?:distae|launch|tests|benchmarks|recipes|examples|slurm)/[\w./-]*\.(?:py|toml|sbatch|md)", text)
        links = [path.parent / link for link in re.findall(r"\]\((?!http)([^)#]+)", text)]
        missing += [f"{path.name}: {p}" for p in [*(ROOT / n for n in named if "NAME" not in n), *links] if not p.exists()]
    assert not missing
