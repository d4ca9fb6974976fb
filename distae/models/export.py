"""A trained model as graphs for other programs: torch.export and ONNX, in the data's own units, checked against the model."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from distae.config.extras import needs
from distae.errors import UserError
from distae.models.inference import Model
from distae.noise import Noise, Rows

TOLERANCE = 1e-5
"""Largest difference from the model, as a share of the largest value where that is above 1."""
CHECKED = 7
"""Samples of random input; graphs are traced with TRACED others, so that a fixed batch size would be found."""
TRACED = 3


class Graph(NamedTuple):
    """A function of a model, to be exported."""

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Encode(nn.Module):
    """`x` `[B, *stored]` in the data's own units to its codes: `z`, and `mu`, `logvar`, `indices` where there are any."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.transform = model.module, model.transform
        self.dtype = model.dtype

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, ...]:
        codes = self.model.encode(self.transform.apply(x, self.dtype), label)
        return tuple(part for part in codes if part is not None)


class Decode(nn.Module):
    """Codes `[B, D]` to the means of p(x|z) `[B, *stored]` in the data's own units."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.transform = model.module, model.transform

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        return self.transform.invert(self.model.decode(z, label))


class Reconstruct(Encode):
    """`x` `[B, *stored]` in the data's own units to the same."""

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return self.transform.invert(self.model.reconstruct(self.transform.apply(x, self.dtype), label))


def graphs(model: Model) -> dict[str, Graph]:
    """What is exported of a model, by name: `reconstruct` only where it is something else than `decode` of `encode`."""
    given = samples(model, CHECKED)
    codes = model.codes(*given)
    outputs = tuple(name for name, part in zip(codes._fields, codes, strict=True) if part is not None)
    label = ("label",) if model.module.cfg.conditional else ()
    found = {"encode": Graph(Encode(model), ("x", *label), outputs), "decode": Graph(Decode(model), ("z", *label), ("x",))}
    if difference(model.decode(codes.z, *given[1:]), model.reconstruct(*given)) > TOLERANCE:
        found["reconstruct"] = Graph(Reconstruct(model), ("x", *label), ("x",))
    return found


def write(model: Model, folder: Path, *kinds: str) -> dict[str, float]:
    """Write every graph of a model on the CPU to `folder`, and check it; returns the largest difference of each from the model.

    `kinds` are torch_export (NAME.pt2) and onnx (NAME.onnx). Raises UserError where a graph cannot be exported, or differs.
    """
    if "onnx" in kinds:
        for module in ("onnx", "onnxscript", "onnxruntime"):
            needs(module, "export", "--format onnx")
    found = {}
    for name, graph in graphs(model).items():
        about = f"{name} of {model.module.cfg.name}"
        with _explained(f"{about} cannot be exported as {kinds[0]}"):
            program = _exported(graph, _inputs(model, graph, TRACED))
        found[name] = max(_written(model, graph, program, folder / name, kind, about) for kind in kinds)
    return found


@torch.no_grad()
def _written(model: Model, graph: Graph, program: ExportedProgram, path: Path, kind: str, about: str) -> float:
    with _explained(f"{about} cannot be exported as {kind}"):
        run = (_save_onnx if kind == "onnx" else _save_torch)(graph, program, path)
        given = _inputs(model, graph, CHECKED)
        made, expected = run(given), graph.module(*given)
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = max(difference(a, b) for a, b in zip(made, expected, strict=True))
    if not found <= TOLERANCE:
        raise UserError(f"{about} as {kind} differs from the model by {found:.2g}; at most {TOLERANCE}")
    return found


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raises UserError for any error: torch.export, onnx and onnxruntime raise anything."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{what}: {_first_line(error)}") from error


@torch.no_grad()
def _exported(graph: Graph, given: tuple[Tensor, ...]) -> ExportedProgram:
    """A graph of any batch size."""
    batch = Dim("batch", min=1)
    with _quietly():
        return torch.export.export(graph.module, given, dynamic_shapes=[{0: batch} for _ in given])


def _save_torch(graph: Graph, program: ExportedProgram, path: Path) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Save it; returns what the file computes."""
    file = path.with_name(f"{path.name}.pt2")
    with _quietly():
        torch.export.save(program, file)
        module = torch.export.load(file).module()

    def run(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        made = module(*given)
        return made if isinstance(made, tuple) else (made,)

    return run


def _save_onnx(graph: Graph, program: ExportedProgram, path: Path) -> Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """Save it; returns what onnxruntime computes of the file."""
    import onnxruntime

    file = path.with_name(f"{path.name}.onnx")
    outputs = [f"{name}_out" if name in graph.inputs else name for name in graph.outputs]
    with _quietly():
        made = torch.onnx.export(
            program, (), dynamo=True, verbose=False, input_names=[*graph.inputs], output_names=outputs, external_data=False
        )
        assert made is not None
        made.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        feed = {name: x.numpy() for name, x in zip(graph.inputs, given, strict=True)}
        return tuple(torch.from_numpy(x) for x in session.run(None, feed))

    return run


def samples(model: Model, n: int) -> tuple[Any, ...]:
    """Random samples `[n, *stored]` in the data's own units, and labels where the variant needs them."""
    noise = Noise(0, ("export", n), Rows(n), torch.device("cpu"))
    u = noise.uniform(torch.empty(n, *model.module.shape, dtype=model.dtype))
    x = model.transform.invert(u)
    if not model.module.cfg.conditional:
        return (x,)
    classes = getattr(model.module.cfg, "classes", 1)
    return x, torch.arange(n) % classes


def _inputs(model: Model, graph: Graph, n: int) -> tuple[Tensor, ...]:
    x, *label = samples(model, n)
    return (model.encode(x, *label) if graph.inputs[0] == "z" else x, *label)


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, as a share of the largest value of `b` where that is above 1."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1))


def _first_line(error: Exception) -> str:
    """The innermost cause: exporters wrap it in pages of advice."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


class _quietly:  # noqa: N801 - a context manager
    """Without the exporters' progress, advice and deprecations of their own parts."""

    def __enter__(self) -> None:
        self.caught, self.level = warnings.catch_warnings(), logging.root.manager.disable
        self.caught.__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self.level)
        self.caught.__exit__(None, None, None)
