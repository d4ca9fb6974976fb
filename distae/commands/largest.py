"""distae encode RUN --top N: the samples in which latents are largest."""

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from distae.commands.trained import Trained
from distae.errors import UserError
from distae.runtime.files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

FILE = "largest.csv"
AT_ONCE = 1 << 22
"""Values of codes that are held, about, each with its position and its order."""


def write_largest(run: Trained) -> None:
    """Raises UserError on latents that there are not, and on another ending of --out than .csv and .json."""
    latents = _checked(run)
    target = run.target(FILE)
    if target.suffix not in (".csv", ".json"):
        raise UserError(f"--out {target}: unknown ending {target.suffix!r}; valid with --top: .csv, .json")
    values, positions = _largest(run, latents)
    rows = [row for column, latent in enumerate(latents) for row in _rows(run, latent, values[:, column], positions[:, column])]
    run.on_main(lambda: write_atomically(target, (_csv if target.suffix == ".csv" else _json)(rows)))
    run.say(f"wrote {target}: {len(rows)} samples of {len(latents)} latents")


def _checked(run: Trained) -> list[int]:
    """Which latents are asked for."""
    top, given, size = run.options.top, run.options.latents, run.model.module.code_size
    if top is None or top < 1:
        raise UserError(
            "--latents is for --top N, the number of samples of each" if top is None else f"--top {top}: valid from 1 on"
        )
    if run.options.sharded:
        raise UserError("--sharded is for codes: --top writes one file")
    if odd := next((latent for latent in given or () if not 0 <= latent < size), None):
        raise UserError(f"--latents {odd}: valid from 0 to {size - 1}")
    return list(dict.fromkeys(given)) if given else [*range(size)]


def _largest(run: Trained, latents: list[int]) -> "tuple[Tensor, Tensor]":
    """Values and positions of samples, `[top, latents]` each, falling; of equal values the first sample's comes first."""
    import torch

    chosen, top = torch.tensor(latents), run.options.top
    values, positions = torch.empty(0, len(latents)), torch.empty(0, len(latents), dtype=torch.int64)
    chunk = run.settings.eval_batch_size
    size = -(-AT_ONCE // (len(latents) * chunk)) * chunk

    def of(x: "Tensor", label: "Tensor | None") -> "list[Tensor | None]":
        return [run.model.module.encode(x, label).z[:, chosen.to(x.device)]]

    for start in range(0, len(run.split), size):
        at, (z,) = run.gathered(run.loader, of, range(start, min(start + size, len(run.split))))
        assert z is not None
        values, order = torch.cat([values.to(z.dtype), z]).sort(dim=0, descending=True, stable=True)
        positions = torch.cat([positions, at[:, None].expand(-1, len(latents))]).gather(0, order)[:top]
        values = values[:top]
    return values, positions


def _rows(run: Trained, latent: int, values: "Tensor", positions: "Tensor") -> list[dict[str, Any]]:
    """The samples of a latent, of dictionaries those in which it is active."""
    if run.model.module.sparse_codes:
        values, positions = values[values > 0], positions[values > 0]
    known = {name: column.tolist() for name, column in run.known(run.split, positions).items()}
    columns = {"id": known.pop("id"), "activation": values.tolist()} | known
    return [{"latent": latent} | dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*(rows[0] if rows else {"latent": 0, "id": 0, "activation": 0})], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _json(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows, indent=1).encode() + b"\n"
