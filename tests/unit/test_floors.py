"""The house's rules, read from its sources: imports go down, randomness has one source, nobody knows a variant by name."""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT

from distae.config.models import ModelConfig

FLOORS = [
    set(re.findall(r"`distae/(\w+)", line))
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines()
    if re.match(r"\| \d+ \|", line)
][::-1]
"""The rooms of each floor, the lowest first, as the table of docs/architecture.md has them."""
SOURCES = sorted((ROOT / "distae").rglob("*.py"))
PATHS = [path.relative_to(ROOT).as_posix() for path in SOURCES]
ROOMS = {name for floor in FLOORS for name in floor}


def test_the_package_has_few_entries() -> None:
    """So that `ls distae` shows the architecture."""
    assert len([path for path in (ROOT / "distae").iterdir() if path.name != "__pycache__"]) <= 22


@cache
def tree(path: str) -> ast.Module:
    """Parsed by the worker that runs this file, not by each that collects it."""
    return ast.parse((ROOT / path).read_text())


def of_each(paths: Iterable[str]) -> Callable[[Callable[[str], None]], Callable[[], None]]:
    """One test that holds a rule for each of these files: as a test for each, they took longer to start than to run."""

    def test_of(rule: Callable[[str], None]) -> Callable[[], None]:
        def test() -> None:
            for path in paths:
                rule(path)

        return test

    return test_of


def room(path: str) -> str:
    """`distae/nn/conv.py` is of the room nn; a room's `__main__.py` is an entry."""
    if path.endswith("/__main__.py") and path != "distae/__main__.py":
        return "train"
    return Path(path).parts[1].removesuffix(".py")


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


@cache
def imported(path: str) -> list[tuple[str, int]]:
    """Every module that a file imports, anywhere in it, with the line; not what only type checkers read."""
    found = []
    for node in walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Like ast.walk, without the bodies of `if TYPE_CHECKING`."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from walk(child)


def test_every_room_has_its_floor():
    assert {room(path) for path in PATHS} - {"__init__"} <= ROOMS


def unit_tests(path: Path) -> list[str]:
    """The tests of a module that are marked neither slow nor spawn."""
    tests = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
    return [n.name for n in tests if not {"pytest.mark.slow", "pytest.mark.spawn"} & {ast.unparse(d) for d in n.decorator_list}]


@pytest.mark.parametrize("name", sorted(name for name in ROOMS if (ROOT / "distae" / name).is_dir()))
def test_every_room_has_unit_tests(name):
    assert [test for path in (ROOT / "tests" / "unit" / name).glob("test_*.py") for test in unit_tests(path)]


@of_each(PATHS)
def test_imports_go_down_only(path):
    mine = room(path)
    if mine == "__init__":  # distae.load, which imports when called
        return
    for module, line in imported(path):
        if not module.startswith("distae.") or (theirs := module.split(".")[1]) not in ROOMS:
            continue
        assert theirs == mine or floor(theirs) < floor(mine), f"{path}:{line}: {mine} may not import {theirs}"


@of_each([p for p in PATHS if room(p) in ("errors", "config", "runtime")])
def test_the_ground_floor_knows_no_heavy_library(path):
    heavy = {"torch", "torchvision", "wandb", "sklearn"}
    for module, line in imported(path):
        assert module.split(".")[0] not in heavy, f"{path}:{line}"


@of_each([p for p in PATHS if room(p) != "tracking"])
def test_wandb_is_known_to_tracking_alone(path):
    assert not [line for module, line in imported(path) if module.split(".")[0] == "wandb"], path


FORBIDDEN = re.compile(
    r"torch\.(rand|randn|randint|randperm|normal|bernoulli|multinomial|poisson)(_like)?|torch\.distributions\..*|torch\.manual_seed"
    r"|(nn|F|torch\.nn\.functional|torch)\.((alpha_|feature_alpha_)?dropout[123]?d?|(Feature)?(Alpha)?Dropout[123]?d?|gumbel_softmax|rrelu)"
    r"|random\..*|(np|numpy)\.random\..*|.*\.(normal_|uniform_|bernoulli_|random_|exponential_|multinomial|manual_seed)"
)
ALLOWED = {
    "distae/noise/keyed.py": FORBIDDEN,
    "distae/noise/weights.py": re.compile(r".*\.(normal_|uniform_|manual_seed)"),
    "distae/data/sampler.py": re.compile(r"torch\.randperm|.*\.manual_seed"),
}
"""The order of samples is torch's own, of a generator of its own: the other source, and a pure function too."""


@of_each(PATHS)
def test_noise_is_the_only_source_of_randomness(path):
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Attribute):
            continue
        name = ast.unparse(node)
        drawn = FORBIDDEN.fullmatch(name) and not name.startswith(("noise.", "nn.init."))  # models are made in noise.initialising
        if drawn and not (path in ALLOWED and ALLOWED[path].fullmatch(name)):
            raise AssertionError(f"{path}:{node.lineno}: {name}")
    for module, line in imported(path):
        assert module.split(".")[0] not in ("random", "secrets"), f"{path}:{line}: {module}"
        assert not module.startswith("torch.distributions"), f"{path}:{line}: {module}"


def test_the_randomness_rule_sees_what_it_should():
    seen = (
        "torch.randn torch.rand_like nn.Dropout F.dropout torch.bernoulli x.normal_ torch.manual_seed np.random.rand nn.Dropout2d"
    )
    assert all(FORBIDDEN.fullmatch(name) for name in seen.split())
    assert not any(
        FORBIDDEN.fullmatch(name) for name in ["torch.range", "self.dropout", "torch.random.fork_rng", "cfg.dropout", "torch.zeros"]
    )


@of_each([p for p in PATHS if room(p) != "models" and not p.startswith("distae/config/models")])
def test_no_room_knows_a_variant_by_name(path):
    """The default of --model is the one exception."""
    names = set(ModelConfig.choices())
    classes = {cls.__name__ for cls in ModelConfig.choices().values()}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert node.value not in names, f"{path}:{node.lineno}: {node.value!r}"
    used = {module.split(".")[-1] for module, _ in imported(path)} & classes
    assert used <= ({type(_default_model()).__name__} if path == "distae/config/train.py" else set())


def _default_model() -> ModelConfig:
    from distae.config import TrainConfig

    return TrainConfig().model


@of_each(PATHS)
def test_files_are_of_a_size_to_be_read(path):
    assert len((ROOT / path).read_text().splitlines()) <= 400
