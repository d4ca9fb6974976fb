"""distae decompress X.dae --model RUN --out DIR: the images or the array of a file, as the model decodes them."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distae.commands.compress import AT_ONCE, checksum_of, folder_of_tables
from distae.commands.trained import Trained, serve
from distae.commands.trained import arguments as shared
from distae.errors import UserError
from distae.runtime.files import new_folder

if TYPE_CHECKING:
    import torch

    from distae.compression import Archive, Tables

ARRAY = "decompressed.npy"


def main(argv: Sequence[str] | None = None, prog: str = "python -m distae decompress") -> int:
    words, parser = [*(sys.argv[1:] if argv is None else argv)], arguments(prog)
    if words and not words[0].startswith("-"):
        files = [*takewhile(lambda word: not word.startswith("-"), words)]
        options, _ = parser.parse_known_args(words[len(files) :])
        try:
            words = [str(options.model or _run_around(Path(files[0]))), *words]
        except UserError as error:
            sys.stderr.write(f"distae: {error}\n")
            return 2
    return serve(words, parser, decompress, words=2, reads_data=False)


def arguments(prog: str, words: Sequence[str] = ()) -> ArgumentParser:
    """The parser of the command's own options."""
    about = "Write the images or the array of a file of distae compress, as the model decodes them."
    parser = shared(prog, about, "FILE.dae", output="FILE")
    parser.add_argument("--model", type=Path, help="folder of the run; default: the one that the file is in")
    return parser


def _run_around(path: Path) -> Path:
    """The run folder that a file lies in. Raises UserError where it lies in none, or is not there."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    for folder in path.absolute().parents:
        if (folder / "model" / "config.json").is_file() or (folder / "config.json").is_file():
            return folder
    raise UserError(f"{path} is not in a run folder: give --model RUN, the run or model that it was compressed with")


def decompress(run: Trained) -> None:
    """Write PNG files, or an array in the data's own units. Raises UserError on another model's file, or a damaged one."""
    from distae.compression import read_archive
    from distae.compression.archive import Kind

    if len(run.words) != 1:
        raise UserError("decompress needs FILE.dae, a file of distae compress")
    path = Path(run.words[0])
    target, archive = run.target(path.stem), read_archive(path)
    z = codes_in(run, archive, path)
    if not run.is_main:
        return
    with new_folder(target) as folder:
        (_write_images if archive.kind == Kind.IMAGES else _write_array)(run, archive, z, folder)
    what = f"{archive.count} images" if archive.kind == Kind.IMAGES else f"{ARRAY}, {archive.count} samples"
    run.say(f"wrote {what} to {target}")


def codes_in(run: Trained, archive: "Archive", path: Path) -> "torch.Tensor":
    """The codes `[N, D]` of a file. Raises UserError where they are another model's."""
    from distae.evaluation.compression import codes_of

    if archive.model != checksum_of(run):
        raise UserError(
            f"{path} was compressed with another model than that of {run.run} (checksum mismatch): give its own --model"
        )
    model, tables = run.model.module, _tables_of(run, archive, path)
    dims = _dims(run)
    try:
        return codes_of(model, tables, tables.decode(archive.codes, archive.count, dims))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _dims(run: Trained) -> int:
    """Numbers of a code: indices where they are discrete."""
    import torch

    model = run.model.module
    if model.num_codes is None:
        return torch.Size(model.code_shape).numel()
    x = next(model.parameters()).new_zeros(1, *model.shape)
    with torch.no_grad():
        indices = model.encode(x).indices
    assert indices is not None
    return indices.shape[1]


def _tables_of(run: Trained, archive: "Archive", path: Path) -> "Tables":
    """The tables of the file's checksum. Raises UserError where they are not beside the model."""
    from distae.compression import load_tables

    folder = folder_of_tables(run)
    for file in sorted(folder.glob(f"{run.saved.checksum[:16]}*.safetensors")):
        if (found := load_tables(file)).digest == archive.tables:
            return found
    raise UserError(f"{path}: the tables that it was compressed with are not in {folder}: copy them from the run that wrote it")


def _write_images(run: Trained, archive: "Archive", z: "torch.Tensor", folder: Path) -> None:
    """PNG files of the names of those that were compressed."""
    import torch
    from PIL import Image

    for start in range(0, archive.count, AT_ONCE):
        with torch.no_grad():
            images = run.model.module.decode(z[start : start + AT_ONCE]).clamp(0, 1).mul(255).round().byte().cpu()
        for name, image in zip(archive.names[start : start + AT_ONCE], images, strict=True):
            pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(folder / f"{Path(name).stem}.png")


def _write_array(run: Trained, archive: "Archive", z: "torch.Tensor", folder: Path) -> None:
    """A .npy file, of bytes where bytes were compressed."""
    import numpy as np

    from distae.compression.archive import Kind

    x: Any = run.model.decode(z).cpu().numpy()
    np.save(folder / ARRAY, np.clip(np.rint(x), 0, 255).astype(np.uint8) if archive.kind == Kind.BYTES else x)
