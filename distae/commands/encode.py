"""distae encode RUN: the codes of data, in one file.

    distae encode runs/a --out codes.npz
    distae encode runs/a --data new/ --out codes.parquet
    torchrun --nproc_per_node=4 -m distae encode runs/a --split train --out codes/ --sharded
    distae encode runs/a --top 10 --latents 7 12 --out largest.csv

Rerun to resume (not with --top): parts that are done are kept beside the file until it is whole.
"""

import json
import shutil
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distae.commands.largest import write_largest
from distae.commands.trained import Trained, serve, tile_arguments
from distae.commands.trained import arguments as shared
from distae.errors import UserError
from distae.runtime import files

if TYPE_CHECKING:
    import numpy as np

    Part = dict[str, np.ndarray[Any, Any]]

FILE = "codes.npz"
ABOUT = "about.json"
"""Of a folder of parts: what they are of."""
PART = 1 << 16
"""Samples of a part, about."""
CSR = ("indptr", "shape", "format")
"""Arrays of a sparse matrix, as scipy.sparse.save_npz writes it, besides `data` and `indices`."""
ARRAYS = (
    "z [N, D], of dictionaries a sparse matrix for scipy.sparse.load_npz; mu, logvar [N, D] of a gaussian posterior; "
    "indices [N, positions] of discrete codes; label [N]; id [N]"
)


class Head(NamedTuple):
    """What an array is, without its values."""

    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"


Heads = dict[str, Head]


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae encode") -> int:
    return serve(argv, arguments(prog), encode)


def arguments(prog: str, words: Sequence[str] = ()) -> ArgumentParser:
    """The parser of the command's own options."""
    parser = shared(prog, f"Codes of data: {ARRAYS}. --out is .npz, .parquet (one row per sample), or .npy (z alone).", output=FILE)
    parser.add_argument("--sharded", action="store_true", help="leave the parts: --out is a folder of .npz files")
    text = "instead, the ids of the N samples with the largest values of each latent, and these values; --out is .csv or .json"
    parser.add_argument("--top", type=int, metavar="N", help=text)
    parser.add_argument("--latents", type=int, nargs="+", metavar="L", help="with --top: of these alone, numbered from 0 on")
    return tile_arguments(parser)


def encode(run: Trained) -> None:
    """Encode the samples part by part, and join the parts. Raises UserError on another ending of --out."""
    if run.options.top is not None or run.options.latents:
        write_largest(run)
        return
    sharded = run.options.sharded
    target = run.target(FILE.removesuffix(".npz") if sharded else FILE, may_exist=sharded)
    if not sharded:
        _check_kind(target)
    folder = target if sharded else target.with_name(f".{target.name}.parts")
    size = -(-PART // run.settings.eval_batch_size) * run.settings.eval_batch_size
    starts = range(0, len(run.split), size)
    done = run.on_main(lambda: _begin(run, folder, len(starts)))
    for number, start in _progress(run, starts, done):
        part = _encoded(run, range(start, min(start + size, len(run.split))))
        run.on_main(partial(_save, folder / _name(number), part))
    shapes = run.on_main(lambda: _finish(folder, target, len(starts), sharded))
    run.say(f"wrote {target}: " + ", ".join(f"{name} {[*shape]}" for name, shape in shapes.items()))


def _name(number: int) -> str:
    return f"part-{number:06}.npz"


def _check_kind(target: Path) -> None:
    if target.suffix not in WRITERS:
        raise UserError(f"--out {target}: unknown ending {target.suffix!r}; valid: {', '.join(WRITERS)}")
    if target.suffix == ".parquet":
        from distae.config.extras import needs

        needs("pyarrow", "data", f"--out {target}")


def _begin(run: Trained, folder: Path, parts: int) -> int:
    """How many parts are done, of the same model and samples; those of others are removed. Raises UserError if all are done."""
    about = {"weights": run.saved.checksum, "split": run.split_name, "seed": run.settings.seed, "samples": len(run.split)}
    about |= {"data": repr(run.settings.data), "chunk": run.settings.eval_batch_size, "values": run.split.identity["values"]}
    about |= {"tile": [run.options.tile, run.options.tile_overlap]}
    text, path = json.dumps(about).encode(), folder / ABOUT
    done = next(number for number in range(parts + 1) if not (folder / _name(number)).exists())
    same = path.exists() and files.read_bytes(path) == text
    if run.options.sharded and (done == parts or not same):
        files.check_absent(folder, run.options.force)
    if same and done < parts:
        return done
    if folder.exists():
        _remove(folder)
    folder.mkdir(parents=True)
    files.write_atomically(path, text)
    return 0


def _remove(folder: Path) -> None:
    """A folder of parts. Raises UserError where it holds anything else."""
    odd = [p.name for p in folder.iterdir() if p.is_dir() or not (p.name == ABOUT or p.suffix in (".npz", ".writing"))]
    if odd:
        raise UserError(f"--out {folder} contains {odd[0]}, which is not from distae encode: give another folder")
    shutil.rmtree(folder)


def _progress(run: Trained, starts: range, done: int) -> Iterator[tuple[int, int]]:
    """Number and first sample of the parts that are left, with a progress bar."""
    from tqdm import tqdm

    with tqdm(total=len(run.split), unit=" samples", disable=None if run.is_main else True) as bar:
        bar.update(min(done * starts.step, len(run.split)))
        for number, start in enumerate(starts):
            if number >= done:
                yield number, start
                bar.update(min(starts.step, len(run.split) - start))


def _encoded(run: Trained, samples: range) -> "Part":
    """The arrays of these samples, without those that cannot be read; computed by all ranks."""
    positions, columns = run.gathered(run.loader, run.model.module.encode, samples)
    codes = {k: v.numpy() for k, v in zip(("z", "mu", "logvar", "indices"), columns, strict=True) if v is not None}
    out = run.options.out
    if run.model.module.sparse_codes and (run.options.sharded or out is None or out.suffix == ".npz"):
        codes = _sparse(codes.pop("z")) | codes
    return codes | run.known(run.split, positions)


def _sparse(z: "np.ndarray[Any, Any]") -> "Part":
    """The arrays of a sparse matrix."""
    import numpy as np
    from scipy.sparse import csr_array

    found = csr_array(z)
    about = {"shape": np.array(found.shape), "format": np.array(b"csr")}
    return {"data": found.data, "indices": found.indices, "indptr": found.indptr.astype(np.int64), **about}


def _save(path: Path, part: "Part") -> None:
    import numpy as np

    fresh = path.with_suffix(".writing")
    with fresh.open("wb") as file:
        np.savez(file, **part)  # type: ignore[arg-type]
    fresh.rename(path)


def _finish(folder: Path, target: Path, count: int, sharded: bool) -> dict[str, tuple[int, ...]]:
    """Join the parts; returns the shape of each array."""
    parts = [folder / _name(number) for number in range(count)]
    heads = _heads(parts)
    matrix = _joined_csr(parts)
    if not sharded:
        fresh = target.with_name(f".{target.name}.writing")
        WRITERS[target.suffix](fresh, parts, heads)
        fresh.rename(target)
        shutil.rmtree(folder)
    shapes = {name: head.shape for name, head in heads.items() if name == "z" or target.suffix != ".npy"}
    if matrix:
        shapes = {"z": tuple(matrix["shape"].tolist())} | {k: v for k, v in shapes.items() if k not in ("data", "indices")}
    return shapes


def _heads(parts: Sequence[Path]) -> "Heads":
    """Of each array of all parts: texts are as long as the longest of them."""
    import numpy as np

    heads: Heads = {}
    for path in parts:
        with np.load(path) as part:
            for name in (n for n in part.files if n not in CSR):
                array = part[name]
                before = heads.get(name, Head((0,), array.dtype))
                heads[name] = Head((before.shape[0] + len(array), *array.shape[1:]), np.result_type(before.dtype, array.dtype))
    return heads


def _write_npy(path: Path, parts: Sequence[Path], heads: "Heads") -> None:
    with path.open("wb") as file:
        _write_array(file, "z", parts, heads["z"])


def _write_npz(path: Path, parts: Sequence[Path], heads: "Heads") -> None:
    import zipfile

    import numpy as np

    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, head in heads.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                _write_array(file, name, parts, head)
        for name, array in _joined_csr(parts).items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)


def _joined_csr(parts: Sequence[Path]) -> "Part":
    """What the sparse matrix of all parts has besides `data` and `indices`; nothing where codes are dense."""
    import numpy as np

    starts, rows, last = [np.zeros(1, np.int64)], 0, {}
    for path in parts:
        with np.load(path) as part:
            if "indptr" not in part.files:
                return {}
            last = {name: part[name] for name in CSR}
        starts.append(last["indptr"][1:] + starts[-1][-1])
        rows += int(last["shape"][0])
    return last | {"indptr": np.concatenate(starts), "shape": np.array([rows, last["shape"][1]])}


def _write_array(file: Any, name: str, parts: Sequence[Path], head: "Head") -> None:
    """One array of all parts, part by part."""
    import numpy as np

    np.lib.format.write_array_header_2_0(file, {"descr": head.dtype.str, "fortran_order": False, "shape": head.shape})
    for path in parts:
        file.write(_array(path, name).astype(head.dtype, order="C").tobytes())


def _array(path: Path, name: str) -> "np.ndarray[Any, Any]":
    import numpy as np

    with np.load(path) as part:
        return part[name]  # type: ignore[no-any-return]


def _write_parquet(path: Path, parts: Sequence[Path], heads: "Heads") -> None:
    """A row per sample; codes are lists of fixed length."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(array: Any) -> Any:
        flat = pa.array(array.reshape(-1))
        return flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, array.shape[1])

    writer = None
    for part in parts:
        table = pa.table({name: column(_array(part, name)) for name in heads})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


WRITERS = {".npz": _write_npz, ".parquet": _write_parquet, ".npy": _write_npy}
