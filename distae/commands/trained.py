"""The set-up of commands that use a trained model: RUN and options to the model on its device and the splits of its data."""

import argparse
import contextlib
import os
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from distae.commands.session import refuse
from distae.commands.sources import given, guessed
from distae.errors import DistaeError, TrainingError, UserError
from distae.runtime.environment import Environment, environment
from distae.runtime.files import check_absent, with_path

if TYPE_CHECKING:
    from torch import Tensor

    from distae.config import TrainConfig
    from distae.config.data import DataConfig
    from distae.config.evaluation import EvaluationConfig
    from distae.data import Loader, Reading, Split
    from distae.evaluation.evaluation import Evaluation
    from distae.models.inference import Model
    from distae.models.serialization import SavedModel

T = TypeVar("T")
Of = Callable[["Tensor", "Tensor | None"], Sequence["Tensor | None"]]
"""What is computed of the values and labels of samples."""
SPLITS = ("train", "val", "test", "all")
OPTIONS = ("--device", "--threads", "--seed", "--eval-batch-size", "--timeout", "--plugin")
"""Settings of training that these commands take, besides those of the data."""
EPILOG = (
    "RUN: a run folder, a model folder, or one of SAELens or diffusers. Further options: --data PATH, or --data NAME and "
    "--data.OPTION as of distae train, for data other than the run's; " + ", ".join(OPTIONS) + "."
)


def arguments(prog: str, about: str, words: str = "RUN", *, output: str | None = None) -> ArgumentParser:
    """The parser of what these commands share; with `output`, the default file or folder, --out and --force too."""
    parser = ArgumentParser(prog, f"{prog} {words} [OPTION ...]", about, EPILOG, allow_abbrev=False)
    parser.add_argument("--step", help="best, last, or the number of a checkpoint; default: the model that the run exported")
    parser.add_argument("--split", choices=SPLITS, help="samples to use; default: test, and all of other data")
    if output:
        parser.add_argument("--out", type=Path, help=f"where to write; default: RUN/evaluation/{output}")
        parser.add_argument("--force", action="store_true", help="overwrite what is there")
    return parser


def tile_arguments(parser: ArgumentParser) -> ArgumentParser:
    """The same parser with --tile and --tile-overlap, for commands over images of another size than the model's."""
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="images of any size, in overlapping tiles of this side (--net image, --net.spatial)",
    )
    parser.add_argument(
        "--tile-overlap",
        type=float,
        default=0.25,
        metavar="SHARE",
        help="share of a tile that overlaps the next one; default: 0.25",
    )
    return parser


class Trained:
    """A trained model, and the data that the command line names. Every rank has one."""

    def __init__(self, words: list[str], options: argparse.Namespace, saved: "SavedModel", settings: "TrainConfig") -> None:
        self.run, self.words, self.options, self.settings = Path(words[0]), words[1:], options, settings
        self.saved, self.step = saved, saved.about.step
        self.device: Any = None
        self.names_data = False
        """Whether the command line has options of data."""

    @cached_property
    def model(self) -> "Model":
        """On the device of this rank."""
        from distae.models.inference import Model

        return Model(self.saved.model, self.saved.transform).to(self.device)

    def model_for(self, height: int, width: int) -> "Model":
        """The model for images of these sides, in the tiles that --tile asks for. Raises UserError where they do not fit."""
        return self.model.resized(height, width, self.options.tile, self.options.tile_overlap)

    @cached_property
    def splits(self) -> "dict[str, Split]":
        """`train`, `val` and `test` of the run's data or of --data's, with the transform of the model."""
        return self._loaded(self.settings.data)

    @cached_property
    def own_splits(self) -> "dict[str, Split]":
        """Those of the run's data, whatever --data says. Raises UserError where they cannot be read."""
        if not self.has_other_data:
            return self.splits
        from distae.config import TrainConfig
        from distae.config.cli import build

        return self._loaded(build(TrainConfig, {"data": self.saved.about.data or {}}).data)

    def _loaded(self, cfg: "DataConfig") -> "dict[str, Split]":
        from distae import data
        from distae.data.trained import as_trained

        return as_trained(data.load(cfg), self.saved.transform, self.saved.model.shape)

    @property
    def has_other_data(self) -> bool:
        """Whether the data are not those of the run."""
        from distae.config import to_dict

        return to_dict(self.settings.data) != (self.saved.about.data or {})

    @cached_property
    def split_name(self) -> str:
        """The split that --split names; by default `test`, and of other data `all`, where these are one source."""
        if self.options.split:
            return str(self.options.split)
        return "all" if self.has_other_data and self._is_one_source() else "test"

    @cached_property
    def split(self) -> "Split":
        """The samples to use, in order. Raises UserError where there are none."""
        name = self.split_name
        if name == "all" and not self._is_one_source():
            raise UserError(f"--split all: --data {self.settings.data.name} has test samples of their own; valid: train, val, test")
        found = _joined(self.splits) if name == "all" else self.splits[name]
        if not len(found):
            raise UserError(f"--split {name}: --data {self.settings.data.name} has no samples there")
        return found

    def _is_one_source(self) -> bool:
        return len({id(split.source) for split in self.splits.values() if len(split)}) == 1

    @cached_property
    def loader(self) -> "Loader":
        """Batches of the model's values of the samples to use, read ahead."""
        return self.loader_of(self.split)

    def loader_of(self, split: "Split") -> "Loader":
        """The same of any split."""
        from distae.data import Loader

        return Loader(split, self.settings.data.binarize, self.device, self.model.dtype, reading=self._reading)

    def gathered(self, loader: "Loader", of: "Of", samples: range | None = None) -> "tuple[Tensor, list[Tensor | None]]":
        """See `evaluation.exact.gathered`; of all samples of the loader where `samples` does not say which."""
        from distae.evaluation.exact import gathered

        chosen = range(len(loader)) if samples is None else samples
        return gathered(loader, chosen, self.settings.eval_batch_size, self.settings.seed, of)

    def known(self, split: "Split", positions: "Tensor") -> dict[str, Any]:
        """What is known of samples at positions `[n]` of a split, as arrays `[n]`: `label` where there is one, and `id`.

        An id is what a user calls a row: the first column of --data.id, a file, or the row's number in the source, from 0 on.
        """
        source, rows = split.source, split.rows_at(positions)
        ids = [name for name in getattr(self.settings.data, "id", ()) if name in source.columns]
        names = source.columns[ids[0]][rows.numpy()] if ids else source.names(rows)
        label = {} if source.label is None else {"label": source.label[rows].numpy()}
        return label | {"id": names.astype(str) if names.dtype == object else names}

    def evaluation(self, settings: "EvaluationConfig") -> "Evaluation":
        """For metrics of the samples to use; without the run's own splits where these cannot be read."""
        from distae.evaluation.evaluation import Evaluation

        name = "other data" if self.has_other_data else self.split_name
        splits: dict[str, Split] = {}
        with contextlib.suppress(UserError):
            splits |= self.own_splits
        splits[name] = self.split
        return Evaluation(self.model.module, self.settings, splits, name, settings, self._reading)

    @property
    def _reading(self) -> "Reading":
        import torch

        from distae.data import Reading

        data = self.settings.data
        return Reading(data.storage, data.workers, data.prefetch, torch.get_num_threads())

    def target(self, default: str, may_exist: bool = False) -> Path:
        """Where to write. Raises UserError, on every rank, if something is there, and --force is not given."""
        path = self.options.out or self.run / "evaluation" / default

        def check() -> Path:
            check_absent(path, self.options.force or may_exist)
            path.parent.mkdir(parents=True, exist_ok=True)
            return Path(path)

        return self.on_main(check)

    @staticmethod
    def on_main(work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, on every rank; what it raises there, every rank raises."""
        from distae.distributed import on_main

        return on_main(work)

    @staticmethod
    def gather(value: T) -> list[T]:
        """Every rank's value, on every rank."""
        from distae.distributed import gather

        return gather(value)

    @property
    def rank(self) -> int:
        from distae.distributed import world

        return world().rank

    @property
    def world_size(self) -> int:
        from distae.distributed import world

        return world().world_size

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print a line, once."""
        if self.is_main:
            sys.stdout.write(f"{text}\n")


def _joined(splits: "dict[str, Split]") -> "Split":
    """All samples of splits of one source, in its order."""
    import torch

    parts = [split for split in splits.values() if len(split)]
    rows = torch.cat([part.rows_at(torch.arange(len(part))) for part in parts]).sort().values
    return replace(parts[0], rows=rows, augment=None)


def serve(
    argv: Sequence[str] | None, parser: ArgumentParser, work: Callable[[Trained], None], words: int = 1, reads_data: bool = True
) -> int:
    """Call `work` on every rank with the model that the command line names; returns the exit code.

    `words`: how many words may stand before the options. Errors and Ctrl-C end with a message.
    """
    env = Environment()
    try:
        leading, options, rest = given(argv, parser, words)
        if not leading:
            raise UserError(f"{parser.prog} needs RUN, a run folder; {parser.format_usage().strip()}")
        check_options(rest, parser.prog)
        env = environment()
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from distae import distributed as dist

        with dist.rendezvous(env, _timeout(rest)) as meeting:
            trained = meeting.prepare(lambda: _prepared(leading, options, rest, env, reads_data))
            with dist.session(meeting, trained.device):
                work(trained)
        return 0
    except DistaeError as error:
        return refuse(error, env)
    except OSError as error:
        return refuse(TrainingError(with_path(error)), env)
    except KeyboardInterrupt:
        sys.stderr.write("distae: interrupted\n")
        return 130


def check_options(rest: Sequence[str], prog: str) -> None:
    """Raises UserError on options that are not of the data, nor OPTIONS."""
    for word in rest:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in OPTIONS and name != "--data" and not name.startswith("--data."):
            raise UserError(f"unknown option {name!r}; {prog} --help lists the valid ones")


def opened(run: Path, step: str | None, rest: Sequence[str]) -> Trained:
    """The model of a run and its data, in this process alone. Raises UserError."""
    options = argparse.Namespace(step=step, split=None)
    return _prepared([str(run)], options, [*rest], Environment(), reads_data=True)[0]


def _timeout(rest: Sequence[str]) -> float:
    """Seconds that the ranks wait for each other."""
    from distae.config import TrainConfig, parse
    from distae.config.cli import value_of

    given = value_of("timeout", rest)
    return parse(TrainConfig, [] if given is None else [f"--timeout={given}"], {}, "").settings.timeout


def _prepared(
    words: list[str], options: argparse.Namespace, rest: list[str], env: Environment, reads_data: bool
) -> tuple[Trained, dict[str, Any]]:
    """The model and the data as this rank has read them, and what must be equal on all ranks. Raises UserError."""
    from distae import data
    from distae import distributed as dist
    from distae.config import plugin, to_dict
    from distae.config.cli import value_of
    from distae.models.serialization import load_saved

    if file := value_of("plugin", rest):
        plugin.load(file)
    with _model_folder(Path(words[0]), options.step) as folder:
        saved = load_saved(folder)
    trained = Trained(words, options, saved, _settings(saved, rest))
    trained.names_data = any(word.startswith("--data") for word in rest)
    trained.device = dist.pick_device(trained.settings.device, env)
    dist.set_threads(trained.settings.threads, env)
    if reads_data and getattr(options, "tile", None) is not None:
        trained.saved = _tiled(trained)
    same: dict[str, Any] = {"the model's weights": saved.checksum, "the type of device": trained.device.type}
    same |= {f"--data: {key}": value for key, value in to_dict(trained.settings.data).items()}
    if reads_data:
        _ = trained.split
        if env.world_size > 1:
            same |= {f"data: {key}": value for key, value in data.identity(trained.splits).items()}
    return trained, same


def _tiled(trained: Trained) -> "SavedModel":
    """The model for the data's size of images, in tiles. Raises UserError where it does not fit."""
    from distae.models.tiles import resized

    shape, options = trained.settings.data.shape(), trained.options
    if len(shape) != 3:
        raise UserError(f"--tile is for images; the data have samples of shape {[*shape]}")
    model = resized(trained.saved.model, *shape[1:], options.tile, options.tile_overlap)
    return trained.saved._replace(model=model, transform=replace(trained.saved.transform, crop=0))


@contextlib.contextmanager
def _model_folder(run: Path, step: str | None) -> Iterator[Path]:
    """The folder of the model of a step. Raises UserError where there is none."""
    if step is None:
        yield run
        return
    from distae.commands.checkpoint import export_step

    with tempfile.TemporaryDirectory(prefix="distae-") as folder:
        export_step(run, None if step == "last" else step, Path(folder))
        yield Path(folder)


def _settings(saved: "SavedModel", rest: Sequence[str]) -> "TrainConfig":
    """The settings of the run's model, with the options of the command line."""
    from distae.config import TrainConfig, parse

    base = {"model": saved.about.model, "net": saved.about.net, "data": saved.about.data or {}}
    return parse(TrainConfig, [*_with_path(rest)], {}, "", base=base).settings


def _with_path(rest: Sequence[str]) -> Iterator[str]:
    """The options, `--data PATH` as the kind that it looks like; of the run's own kind, the run's other settings stay."""
    from distae.config.data import DataConfig

    words = iter(rest)
    for word in words:
        name, equals, value = word.partition("=")
        if name != "--data":
            yield word
            continue
        value = value if equals else next(words, "")
        if value in DataConfig.choices() and not Path(value).exists():
            yield from ("--data", value)
        else:
            yield from ("--data", guessed(value), "--data.path", value)
