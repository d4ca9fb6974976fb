"""Images and arrays in Parquet files and in folders of `save_to_disk`: what they hold, and what can be wrong with them."""

import io
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import labels_of, source_of
from PIL import Image

from distae.config.data import DataConfig, HFConfig, ParquetConfig
from distae.data import BadRowsError, Split, load
from distae.data.runs import Runs
from distae.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(60) % 3
NAMES = ["cat", "dog", "eel"]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def metadata(**features: Any) -> dict[str, str]:
    """As `datasets` leaves in its files."""
    return {"huggingface": json.dumps({"info": {"features": features}})}


def images(rows: slice = slice(None), **columns: Any) -> Any:
    """A table in the layout of Hugging Face's sets."""
    structs = [{"bytes": png(p), "path": f"{i}.png"} for i, p in enumerate(PIXELS[rows])]
    table = pa.table({"image": structs, "label": LABELS[rows], **columns})
    return table.replace_schema_metadata(metadata(image={"_type": "Image"}, label={"_type": "ClassLabel", "names": NAMES}))


def parquet(folder: Path, table: Any = None, cuts: tuple[int, ...] = (0, 25, 60)) -> Path:
    """Files of 10 rows per group."""
    table = images() if table is None else table
    folder.mkdir(exist_ok=True)
    for i, (start, end) in enumerate(pairwise(cuts)):
        pq.write_table(table.slice(start, end - start), folder / f"part-{i}.parquet", row_group_size=10)
    return folder


def saved(folder: Path, table: Any = None, rows_per_batch: int = 10) -> Path:
    """As `Dataset.save_to_disk` writes it."""
    table = images() if table is None else table
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{i:05}-of-00002.arrow" for i in range(2)]
    for name, part in zip(names, (table.slice(0, 25), table.slice(25)), strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(part, max_chunksize=rows_per_batch)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_format_type": None, "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


MAKERS: dict[str, tuple[Any, Any]] = {"parquet": (ParquetConfig, parquet), "hf": (HFConfig, saved)}
KINDS = pytest.mark.parametrize("kind", MAKERS)


def of(kind: str, path: Path, **changes: Any) -> dict[str, Split]:
    return load(MAKERS[kind][0](path=str(path), **({"val_fraction": 0, "test_fraction": 0, "size": 8} | changes)))


@KINDS
def test_images_labels_and_classes(kind, tmp_path):
    """Values, order, units, names: as they were written."""
    split = of(kind, MAKERS[kind][1](tmp_path / "set"))["train"]
    assert MAKERS[kind][0](path=str(tmp_path / "set"), size=8).shape() == split.shape == (3, 8, 8)
    assert torch.equal(split.x, torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    assert labels_of(split).tolist() == LABELS.tolist()
    assert split.source.classes == tuple(NAMES)
    assert source_of(split).units.tolist() == [10, 10, 5, 10, 10, 10, 5]
    assert split.source.name_of(27).endswith(("part-1.parquet row 2", "data-00001-of-00002.arrow row 2"))
    assert split.transform.scale == 255
    assert "60 images as RGB of uint8 [3, 8, 8] in column 'image', 7 " in split.notes[0]
    rows = torch.tensor([59, 3, 3, 30, 24, 25])
    assert torch.equal(split.read(rows)[0], torch.from_numpy(PIXELS)[rows].permute(0, 3, 1, 2))
    label = split.read(rows)[1]
    assert label is not None
    assert torch.equal(label, torch.from_numpy(LABELS)[rows])


@KINDS
def test_a_copy_elsewhere_is_the_same_data_and_another_value_is_not(kind, tmp_path):
    make = MAKERS[kind][1]
    one, copy = (of(kind, make(tmp_path / name))["train"].identity for name in ("a", "b"))
    assert one == copy
    PIXELS[30, 0, 0, 0] ^= 1
    try:
        assert of(kind, make(tmp_path / "c"))["train"].identity["values"] != one["values"]
    finally:
        PIXELS[30, 0, 0, 0] ^= 1
    halves = of(kind, tmp_path / "a", test_fraction=0.5)
    assert halves["train"].identity["values"] != halves["test"].identity["values"]
    some = [Runs(torch.tensor([0, 8]), torch.tensor([4, n])) for n in (3, 4, 3)]  # as of more than TABLE_ROWS samples
    first, second, again = (Split(halves["train"].source, rows=rows).identity["values"] for rows in some)
    assert first == again != second


@KINDS
def test_grey_and_resized(kind, tmp_path):
    path = MAKERS[kind][1](tmp_path / "set")
    split = of(kind, path, mode="L", size=4)["train"]
    assert MAKERS[kind][0](path=str(path), mode="L", size=4).shape() == split.shape == split.x.shape[1:] == (1, 4, 4)
    assert abs(float(split.x.float().mean()) - PIXELS.mean()) < 3


ARRAYS = {
    "nested": (lambda x: x.tolist(), "channels_last", (3, 8, 8)),
    "first": (lambda x: x.tolist(), "channels_first", (8, 8, 3)),
    "rows": (lambda x: x.reshape(60, -1).astype("f4").tolist(), "channels_last", (192,)),
    "fixed": (lambda x: pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), 192), "channels_last", (192,)),
}  # fmt: skip


@KINDS
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_in_lists(kind, name, tmp_path):
    made, layout, shape = ARRAYS[name]
    path = MAKERS[kind][1](tmp_path / "set", pa.table({"x": made(PIXELS), "y": LABELS}))
    split = of(kind, path, layout=layout, label="y")["train"]
    assert MAKERS[kind][0](path=str(path), layout=layout).shape() == split.shape == shape
    assert split.source.dtype == {"fixed": torch.uint8, "rows": torch.float64}.get(name, torch.float32)
    expected = torch.from_numpy(PIXELS)
    expected = expected.permute(0, 3, 1, 2) if shape == (3, 8, 8) else expected.reshape(60, *shape)
    assert torch.equal(split.x, expected.to(split.source.dtype))
    assert labels_of(split).tolist() == LABELS.tolist()


@KINDS
def test_bad_rows_are_named(kind, tmp_path):
    """No image, none that can be read; lists of another length, NaN and missing values."""
    structs = images().column("image").to_pylist()
    structs[3]["bytes"], structs[14]["bytes"], structs[15] = None, b"\x89PNG no", None
    source = of(kind, MAKERS[kind][1](tmp_path / "set", pa.table({"image": structs})))["train"].source
    with pytest.raises(BadRowsError) as caught:
        source.read(torch.tensor([40, 2, 3, 14, 15]))
    reasons = {row: reason.partition("read (")[2].rstrip(")").partition(" <")[0] for row, reason in caught.value.reasons.items()}
    assert reasons == {
        3: "only its path 3.png is in the file", 14: "cannot identify image file", 15: "there is none",
    }  # fmt: skip
    lists: list[Any] = [[1.0, 2.0]] * 60
    lists[7], lists[8], lists[9], lists[30] = [1.0], [np.nan, 1.0], [None, 1.0], None
    source = of(kind, MAKERS[kind][1](tmp_path / "lists", pa.table({"x": lists})))["train"].source
    with pytest.raises(BadRowsError) as caught:
        source.read(torch.arange(60))
    other = "it has {} values, expected 2".format
    missing = "it has a value that is missing, NaN or infinite"
    reasons = {row: reason.rpartition(": ")[2] for row, reason in caught.value.reasons.items()}
    assert reasons == {7: other(1), 8: missing, 9: missing, 30: other(0)}


def refused(kind: str, path: Path, match: str, **changes: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        of(kind, path, **changes)
    assert len(str(caught.value).splitlines()) <= 2


@KINDS
def test_what_a_column_can_not_be(kind, tmp_path):
    make = MAKERS[kind][1]
    path = make(tmp_path / "a")
    refused(kind, path, r"--data.column: 'nope' is not in .*; it contains image, label", column="nope")
    refused(kind, path, r"--data.column: 'label' of .* is of type int64", column="label")
    refused(kind, path, r"--data.label: 'nope' is not in .*; it contains image, label", label="nope")
    refused(
        kind, make(tmp_path / "b", images(more=[b"x"] * 60)), r"--data.column: .* several columns of samples, image, more: give one"
    )
    refused(
        kind, make(tmp_path / "c", pa.table({"a": LABELS, "b": LABELS})), r"--data.column: .* no column of images or lists .* a, b"
    )
    twice = pa.Table.from_arrays([pa.array([b"x"] * 60), pa.array(LABELS), pa.array(LABELS)], ["image", "y", "y"])
    refused(kind, make(tmp_path / "d", twice), r"has two columns of the name 'y'")
    refused(
        kind,
        make(tmp_path / "e", images(y=[None, *LABELS[1:].tolist()])),
        r"--data.label: row 0 has no value in column 'y'",
        label="y",
    )
    refused(kind, make(tmp_path / "f", images(y=LABELS - 1)), r"--data.label: 'y' has values from -1 to 1", label="y")
    refused(
        kind, make(tmp_path / "g", images(y=LABELS / 2)), r"--data.label: 'y' is of type double; labels are integers", label="y"
    )


@KINDS
def test_labels_that_are_names(kind, tmp_path):
    path = MAKERS[kind][1](tmp_path / "a", images(kind=[NAMES[i] for i in LABELS[::-1]]))
    source = of(kind, path, label="kind")["train"].source
    assert source.classes == tuple(NAMES)
    assert source.label is not None
    assert source.label.tolist() == LABELS[::-1].tolist()


def test_files_of_splits_by_their_names(tmp_path):
    for split, rows in (("train", slice(0, 30)), ("validation", slice(30, 40)), ("test", slice(40, 60))):
        pq.write_table(images(rows), tmp_path / f"{split}-00000-of-00001.parquet")
    sets = load(ParquetConfig(path=str(tmp_path)))
    assert [len(s) for s in (sets["train"], sets["val"], sets["test"])] == [30, 10, 20]
    sets = load(ParquetConfig(path=str(tmp_path / "train*"), test=str(tmp_path / "test*"), val_fraction=0.5))
    assert [len(s) for s in (sets["train"], sets["val"], sets["test"])] == [15, 15, 20]
    for split, rows in (("train", slice(0, 30)), ("test", slice(40, 60))):
        saved(tmp_path / "dict" / split, images(rows))
    (tmp_path / "dict/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    sets = load(HFConfig(path=str(tmp_path / "dict"), val_fraction=0))
    assert [len(s) for s in (sets["train"], sets["test"])] == [30, 20]


def test_parquet_files_that_differ_or_are_damaged(tmp_path):
    path = parquet(tmp_path / "a")
    pq.write_table(images().rename_columns(["other", "label"]), path / "z.parquet")
    refused("parquet", path, r"--data.column: 'image' is in .*part-0.parquet, not in .*z.parquet; it contains other, label")
    pq.write_table(pa.table({"image": [[1]], "label": [1]}), path / "z.parquet")
    refused("parquet", path, r"--data.column: 'image' is struct<.* in .*part-0.parquet and list<.* in .*z.parquet")
    whole = (path / "part-0.parquet").read_bytes()
    (path / "z.parquet").write_bytes(whole[:-100])
    refused("parquet", path, r"--data.path: .*z.parquet is not a whole Parquet file")
    (path / "z.parquet").write_bytes(b"")
    refused("parquet", path, r"--data.path: .*z.parquet is not a whole Parquet file")
    refused("parquet", tmp_path / "nope", r"--data.path: no file .*nope")


def test_a_parquet_file_that_changes_or_vanishes_during_the_run(tmp_path):
    source = of("parquet", parquet(tmp_path / "a"))["train"].source
    (tmp_path / "a/part-0.parquet").unlink()
    os.truncate(tmp_path / "a/part-1.parquet", 300)
    with pytest.raises(BadRowsError) as caught:
        source.read(torch.tensor([1, 2, 40]))
    assert {row: reason.partition(":")[0] for row, reason in caught.value.reasons.items()} == {
        1: f"{tmp_path}/a/part-0.parquet row 1", 2: f"{tmp_path}/a/part-0.parquet row 2", 40: f"{tmp_path}/a/part-1.parquet row 15",
    }  # fmt: skip


@KINDS
def test_a_file_of_the_same_layout_but_other_values_is_another(kind, tmp_path):
    """Also in units that were read before, and are kept."""
    path = MAKERS[kind][1](tmp_path / "a")
    source = of(kind, path)["train"].source
    rows = torch.tensor([1, 2, 40])
    source.read(rows[:2])
    changed = next(p for p in sorted(path.iterdir()) if p.suffix in (".parquet", ".arrow"))
    os.utime(changed, (1, 1))
    with pytest.raises(BadRowsError, match=rf"{changed}.* was changed during the run$"):
        source.read(rows[:2] if kind == "hf" else torch.tensor([11, 12]))
    assert len(source.read(rows[2:])) == 1


def test_a_kept_unit_of_a_truncated_arrow_file_is_not_read(tmp_path):
    """Reading a map behind the end of its file would kill the process with SIGBUS."""
    path = saved(tmp_path / "a") / "data-00000-of-00002.arrow"
    source = of("hf", tmp_path / "a")["train"].source
    source.read(torch.tensor([1, 2]))
    os.truncate(path, 300)
    with pytest.raises(BadRowsError, match=rf"^{path} was changed during the run: it has 300 bytes, and had [0-9]+$"):
        source.read(torch.tensor([1, 2]))


def test_hf_folders_that_are_not_whole(tmp_path):
    path = saved(tmp_path / "a")
    name = "data-00001-of-00002.arrow"
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[:-3000])
    refused("hf", path, rf"--data.path: .*{name} is not a whole Arrow stream")
    (path / name).unlink()
    refused("hf", path, rf"--data.path: .*{name} is missing, and .*state.json names it")
    (path / "state.json").write_text("{")
    refused("hf", path, r"--data.path: .*state.json is missing or damaged")
    (path / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    refused("hf", path, r"names files outside its folder")
    refused("hf", parquet(tmp_path / "b"), r"save_to_disk made no such folder: .*; read it with --data parquet --data.path .*b")
    refused("hf", tmp_path / "c", r"no such folder")


@pytest.mark.slow
def test_the_datasets_library_itself(tmp_path):
    """What it writes is read as it reads it, in both layouts."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({
        "image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES), "grid": datasets.Array2D((8, 8), "uint8"),
    })  # fmt: skip
    rows = {"image": [Image.fromarray(p) for p in PIXELS], "label": LABELS.tolist(), "grid": PIXELS[..., 0]}
    made = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict({"train": made.select(range(40)), "test": made.select(range(40, 60))}).save_to_disk(str(tmp_path / "hf"))
    made.to_parquet(str(tmp_path / "x.parquet"), batch_size=20)
    sets = load(HFConfig(path=str(tmp_path / "hf"), column="image", size=8, val_fraction=0))
    assert torch.equal(torch.cat([sets["train"].x, sets["test"].x]), torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    assert torch.cat([labels_of(sets["train"]), labels_of(sets["test"])]).tolist() == LABELS.tolist()
    assert sets["train"].source.classes == tuple(NAMES)
    for cfg in (
        HFConfig(path=str(tmp_path / "hf/train"), column="grid"),
        ParquetConfig(path=str(tmp_path / "x.parquet"), column="grid"),
    ):
        split = load(cfg)["train"]
        assert cfg.shape() == split.shape == (1, 8, 8)
        assert split.source.dtype == torch.uint8
        assert torch.equal(split.source.read(torch.arange(40)), torch.from_numpy(PIXELS[:40, ..., 0].copy()))


def test_both_kinds_are_chosen_by_name():
    assert {"parquet", "hf"} <= DataConfig.choices().keys()


@KINDS
def test_random_crops_and_mirror_images_are_of_training_alone(kind, tmp_path):
    path = MAKERS[kind][1](tmp_path / "set")
    sets = of(kind, path, size=7, crop="random", flip=True, test_fraction=0.2, val_fraction=0.2)
    assert sets["train"].source.shape == (3, 8, 8)
    assert MAKERS[kind][0](path=str(path), size=7, crop="random").shape() == sets["train"].shape == (3, 7, 7)
    assert sets["train"].augment
    assert sets["val"].augment is sets["test"].augment is None
    refused(
        kind, MAKERS[kind][1](tmp_path / "b", pa.table({"x": [[1.0]] * 60})), r"--data.flip .*column 'x' contains arrays", flip=True
    )
