"""Tables: what their columns are, how they are normalised and split, and what is wrong with a bad one."""

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import fresh_trainer, rows_of, settings, source_of
from sklearn.preprocessing import QuantileTransformer

import distae
from distae.config.data import TableConfig
from distae.config.tables import Feature, read
from distae.data import Split, Transform, load
from distae.data.datasets import splitting, table
from distae.errors import UserError
from distae.runtime.files import SMALL

N = 60
RNG = np.random.default_rng(0)
COLUMNS = {
    "id": [f"p{i:03}" for i in range(N)], "colour": [("red", "green", "blue")[i % 3] for i in range(N)],
    "age": RNG.normal(40, 9, N).round(2).tolist(), "member": [i % 2 for i in range(N)],
    "income": RNG.lognormal(8, 1, N).round(1).tolist(), "sex": [("m", "f")[i // 2 % 2] for i in range(N)],
    "city": [f"city {i % 4}" for i in range(N)], "outcome": [("sick", "well", "well")[i % 3] for i in range(N)],
}  # fmt: skip
KNOWN: dict[str, Any] = {"label": "outcome", "id": ("id",)}


def write(path: Path, columns: dict[str, list], delimiter: str = ",") -> str:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([columns, *zip(*columns.values(), strict=True)])
    return str(path)


def seen(split: Split) -> torch.Tensor:
    """All rows as the model sees them, in float64."""
    return split.transform.apply(split.x, torch.float64)


def everything(sets: dict[str, Split]) -> torch.Tensor:
    """The source of a split, as stored."""
    return source_of(sets["train"]).x  # type: ignore[no-any-return]


def test_what_the_columns_are(tmp_path):
    cfg = TableConfig(path=write(tmp_path / "x.csv", COLUMNS), **KNOWN)
    sets = load(cfg)
    assert cfg.shape() == sets["train"].shape == (2 + 2 + 3 + 4,)
    assert cfg.for_model() == {"columns": ("numeric:2", "binary:2", "categorical:3", "categorical:4")}
    assert cfg.table().notes == (
        "table: x.csv, 60 rows: 2 numeric, 2 binary, 2 categorical (one-hot, 7 values), label 'outcome' (2 classes: sick, well), "
        "kept aside: id",
    )
    assert sets["train"].notes == cfg.table().notes
    assert [c.name for c in sets["train"].transform.columns] == ["age", "income", "member", "sex", "colour", "city"]
    assert sets["test"].source.columns["id"].tolist() == COLUMNS["id"]
    assert source_of(sets["test"]).label.tolist() == [("sick", "well").index(y) for y in COLUMNS["outcome"]]
    assert sets["test"].source.name_of(16) == "x.csv row 17"
    assert [len(sets[k]) for k in ("train", "val", "test")] == [49, 5, 6]
    assert sorted(torch.cat([rows_of(s) for s in sets.values()]).tolist()) == list(range(N))


def test_what_the_model_sees_and_back(tmp_path):
    split = load(TableConfig(path=write(tmp_path / "x.csv", COLUMNS), **KNOWN))["train"]
    x, rows = seen(split), rows_of(split).tolist()
    age = np.array(COLUMNS["age"])[rows]
    np.testing.assert_allclose(x[:, 0], (age - age.mean()) / age.std(), rtol=1e-12)
    assert x[:, 3].tolist() == [float(COLUMNS["sex"][i] == "m") for i in rows]
    assert x[:, 4:7].tolist() == [[float(COLUMNS["colour"][i] == c) for c in ("blue", "green", "red")] for i in rows]
    stored = Transform.from_json(json.loads(json.dumps(split.transform.to_json()))).invert(x)
    np.testing.assert_allclose(stored, split.x, rtol=1e-12)
    assert split.transform.apply(split.x, torch.float32).dtype == torch.float32


def test_columns_are_fitted_on_the_rows_of_the_classes_that_are_trained_on(tmp_path):
    path = write(tmp_path / "x.csv", COLUMNS)
    split = load(TableConfig(path=path, train_classes=("well",), **KNOWN))["train"]
    rows = [i for i in rows_of(load(TableConfig(path=path, **KNOWN))["train"]).tolist() if COLUMNS["outcome"][i] == "well"]
    assert rows_of(split).tolist() == rows
    np.testing.assert_allclose(seen(split)[:, 0].mean(), 0, atol=1e-12)


def test_the_same_table_from_every_kind_of_file(tmp_path):
    pandas = pytest.importorskip("pandas")
    feather = pytest.importorskip("pyarrow.feather")
    frame = pandas.DataFrame(COLUMNS)
    frame["member"], frame["city"] = frame["member"].astype(bool), frame["city"].astype("category")
    frame.to_parquet(tmp_path / "x.parquet")
    feather.write_feather(frame, tmp_path / "x.arrow")
    write(tmp_path / "x.tsv", COLUMNS, "\t")
    write(tmp_path / "semicolon.csv", COLUMNS, ";")
    expected = load(TableConfig(path=write(tmp_path / "x.csv", COLUMNS), **KNOWN))
    for name in ("x.tsv", "semicolon.csv", "x.parquet", "x.arrow"):
        found = load(TableConfig(path=str(tmp_path / name), **KNOWN))
        assert torch.equal(everything(found), everything(expected)), name
        assert found["train"].identity["values"] == expected["train"].identity["values"]
    cfg = TableConfig(**KNOWN)
    assert torch.equal(seen(table.from_frame(frame, cfg)["val"]), seen(expected["val"]))
    assert cfg.shape() == (11,)


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"x.parquet needs pyarrow, which is not installed: pip install 'distae\[data\]'"):
        TableConfig(path=str(tmp_path / "x.parquet")).shape()


@pytest.mark.parametrize("normalize", ["standard", "minmax", "quantile", "none"])
def test_normalisation_is_fitted_on_the_training_rows_alone(normalize, tmp_path):
    rows = rows_of(load(TableConfig(path=write(tmp_path / "x.csv", COLUMNS), **KNOWN))["train"])
    others = sorted(set(range(N)) - set(rows.tolist()))
    spoilt = {**COLUMNS, "age": [1e6 if i in others else v for i, v in enumerate(COLUMNS["age"])]}
    files = {"a": COLUMNS, "b": spoilt}
    sets = [load(TableConfig(path=write(tmp_path / f"{k}.csv", c), normalize=normalize, **KNOWN)) for k, c in files.items()]
    assert torch.equal(seen(sets[0]["train"]), seen(sets[1]["train"]))
    age, x = np.array(COLUMNS["age"])[rows], seen(sets[0]["train"])[:, 0].numpy()
    by_rank = QuantileTransformer(n_quantiles=len(age), output_distribution="normal").fit_transform(age[:, None])[:, 0]
    expected = {
        "standard": (age - age.mean()) / age.std(), "minmax": (age - age.min()) / np.ptp(age), "quantile": by_rank, "none": age
    }  # fmt: skip
    np.testing.assert_allclose(x, expected[normalize], rtol=1e-9, atol=1e-12)
    split = sets[0]["test"]
    inside = (split.x[:, 0] >= age.min()) & (split.x[:, 0] <= age.max())
    np.testing.assert_allclose(split.transform.invert(seen(split))[inside, 0], split.x[inside, 0], rtol=1e-9)


def test_quantiles_of_repeated_values_are_scikit_learns():
    values = np.r_[np.repeat([0.0, 1.0, 5.0], [30, 50, 20]), np.random.default_rng(1).exponential(3, 100)]
    cfg = TableConfig(path="-", normalize="quantile")
    column = table._fit(Feature("x"), values, cfg, 40, "-")
    asked = np.r_[values, -1.0, 0.5, 99.0]
    fitted = QuantileTransformer(n_quantiles=40, output_distribution="normal").fit(values[:, None])
    found = Transform(columns=(column,)).apply(torch.from_numpy(asked[:, None]), torch.float64)
    inside = asked != 0  # the smallest value, 30 times: scikit-learn has the end of the scale for it, ours its mean rank
    np.testing.assert_allclose(found[inside], fitted.transform(asked[inside, None]), rtol=1e-9, atol=1e-9)
    assert float(found[0]) == pytest.approx(-1.52, abs=0.01)
    back = Transform(columns=(column,)).invert(found)
    np.testing.assert_allclose(back, fitted.inverse_transform(found.numpy()), rtol=1e-5)  # its ends are 1e-7 off


def test_a_constant_column_is_not_divided_by_0(tmp_path):
    path = write(tmp_path / "x.csv", {**COLUMNS, "same": [0.1] * N})
    for normalize in ("standard", "minmax", "quantile"):
        split = load(TableConfig(path=path, normalize=normalize, **KNOWN))["train"]
        assert split.notes[1] == "table: the same value in every row: same"
        x = seen(split)
        assert x.isfinite().all()
        assert split.transform.invert(x)[:, 2].allclose(torch.tensor(0.1, dtype=torch.float64))


GAPS = {
    **COLUMNS, "age": [math.nan if i % 7 == 0 else v for i, v in enumerate(COLUMNS["age"])],
    "colour": ["" if i % 5 == 0 else v for i, v in enumerate(COLUMNS["colour"])],
}  # fmt: skip


def test_missing_values_are_rejected_with_their_places(tmp_path):
    with pytest.raises(UserError) as error:
        TableConfig(path=write(tmp_path / "x.csv", GAPS), **KNOWN).shape()
    assert str(error.value) == (
        "--data.path: x.csv has 21 cells without a value: 'colour' 12 (first in row 1), 'age' 9 (first in row 1);\n"
        "give --data.missing impute (the training rows' mean or most frequent category) or mask (left out of the likelihood)"
    )


def test_missing_values_are_imputed_from_the_training_rows(tmp_path):
    split = load(TableConfig(path=write(tmp_path / "x.csv", GAPS), missing="impute", normalize="none", **KNOWN))["train"]
    x, stored = seen(split), split.x
    gone = stored[:, 0].isnan()
    assert gone.any()
    assert x.isfinite().all()
    np.testing.assert_allclose(x[gone, 0], stored[~gone, 0].mean())
    mode = stored[~stored[:, 4].isnan(), 4].long().bincount().argmax()
    assert (x[stored[:, 4].isnan(), 4 + mode] == 1).all()
    assert (x[:, 4:7].sum(1) == 1).all()
    assert split.notes[0].endswith("; 21 missing values, imputed")


def test_masked_values_stay_missing_to_the_model_and_back(tmp_path):
    cfg = TableConfig(path=write(tmp_path / "x.csv", GAPS), missing="mask", **KNOWN)
    split = load(cfg)["train"]
    x = seen(split)
    assert torch.equal(x[:, 0].isnan(), split.x[:, 0].isnan())
    assert torch.equal(x[:, 4:7].isnan(), split.x[:, 4:5].isnan().expand(-1, 3))
    torch.testing.assert_close(split.transform.invert(x), split.x, equal_nan=True)
    assert cfg.for_model()["missing"] is True


def rows(header: str, *lines: str, n: int = 5) -> str:
    """A text file of some good rows `1,2,…` under a header, and then these lines."""
    return "\n".join([header, *[",".join(map(str, range(i, i + header.count(",") + 1))) for i in range(n)], *lines]) + "\n"


BAD = {
    "empty": ("", r"x.csv is empty"),
    "header alone": ("a,b\n", r"x.csv contains no rows"),
    "no header": ("1,2\n3,4\n", r"the first line of .*x.csv is numbers \(1, 2, …\), where names of columns are expected"),
    "ragged": (rows("a,b,c", "1,2"), r"x.csv row 6 \(line 7\) has 2 cells; the header has 3"),
    "same names": (rows("a,b,a"), r"has two columns 'a', the 1. and the 3.: rename one"),
    "text among numbers": (
        rows("a,b", "7,x1", n=9), r"x.csv row 10, column 'b' is 'x1', where 9 of 10 cells are numbers;\n.*--data.categorical b"
    ),
    "infinite": (rows("a,b", "7,-inf"), r"x.csv row 6, column 'b' is infinite"),
    "no value": ("a,b\n1,\n2,\n", r"column 'b' has no value at all: leave it out: --data.drop b"),
    "open quote": ('a,b\n1,"2\n', r"x.csv line 2: unexpected end of data"),
    "not UTF-8": (b"a,b\n1,\xff\n", r"x.csv is not UTF-8 text \(byte 6\)"),
    "too many categories": (
        "a,b\n" + "\n".join(f"{i},name {i}" for i in range(200)),
        r"--data.max-categories 100: column 'b' of x.csv has 200 different values \('name 0', 'name 1', …\);\n.*--data.id b",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_named_by_file_row_and_column(name, tmp_path):
    content: Any
    content, message = BAD[name]
    (tmp_path / "x.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        TableConfig(path=str(tmp_path / "x.csv")).shape()


SETTINGS = [
    ({"label": "outcom"}, r"--data.label: no column 'outcom' \(did you mean 'outcome'\?\) in x.csv; it has id, colour"),
    ({"id": ("age,sex",)}, r"no column 'age,sex' \(did you mean 'age sex'\?\)"),
    ({"id": ("nr",)}, r"--data.id: no column 'nr'"),
    ({"group": "ward"}, r"--data.group: no column 'ward'"),
    ({"drop": ("nr",)}, r"--data.drop: no column 'nr'"),
    ({"categorical": ("nr",)}, r"--data.categorical: no column 'nr'"),
    ({"numeric": ("city",)}, r"--data.numeric: x.csv row 1, column 'city' is 'city 0', not a number"),
    ({"numeric": ("age",), "categorical": ("age",)}, r"--data.categorical and --data.numeric both name 'age'"),
    ({"label": "id", "id": ("id",)}, r"both name 'id'"),
    ({"label": "age"}, r"x.csv row 1, column 'age' is [\d.]+; labels are classes: texts or whole numbers"),
    ({"group": "id", "time": "age"}, r"--data.group and --data.time exclude each other"),
    ({"split": "outcome"}, r"x.csv, column 'outcome', row 1 is 'sick'; valid: train, val and test"),
    ({"path": ""}, r"--data.path: a file is needed: a .csv, .tsv, .parquet or .arrow file"),
    ({"path": "absent.csv"}, r"--data.path: absent.csv is not there"),
    ({"path": "."}, r"--data.path: . is not a file; a file is needed"),
    ({"path": "~nobody-at-all/x.csv"}, r"names the home folder of an unknown user"),
    ({"path": "x.doc"}, r"--data.path: x.doc is not there"),
    ({"binarize": "threshold"}, r"--data.binarize is for images"),
]


@pytest.mark.parametrize(("changes", "message"), SETTINGS)
def test_settings_that_do_not_fit_the_table(changes, message, tmp_path):
    path = write(tmp_path / "x.csv", COLUMNS)
    with pytest.raises(UserError, match=message):
        load(TableConfig(**{"path": path, **changes}))


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_two_columns_of_one_name_in_a_typed_file(suffix, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    held = pa.Table.from_arrays([pa.array([1.0, 2.0])] * 3, names=["a", "b", "a"])
    if suffix == "parquet":
        pq.write_table(held, tmp_path / "x.parquet")
    else:
        with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_file(file, held.schema) as stream:
            stream.write_table(held)
    with pytest.raises(UserError, match=rf"x.{suffix} has two columns 'a', the 1. and the 3.: rename one"):
        TableConfig(path=str(tmp_path / f"x.{suffix}")).shape()


def test_a_table_that_changes_during_a_run_changes_no_model(tmp_path):
    """It was read when the run began: what is exported is of that, not of what the file holds in the end."""
    path = write(tmp_path / "x.csv", {"a": RNG.normal(size=N).tolist(), "b": RNG.normal(size=N).tolist()})
    cfg = settings(model={"likelihood": "mixed"}, data={"name": "table", "path": path}, steps=2)
    trainer = fresh_trainer(cfg, tmp_path / "run", load(cfg.data))
    for change in ("a,b,c\n1,2,3\n", "a,b\n1\n"):
        Path(path).write_text(change)
        assert trainer.fit()
        assert distae.load(tmp_path / "run").shape == (2,)
    trainer.close()


def test_a_label_that_is_missing(tmp_path):
    path = write(tmp_path / "x.csv", {"a": [1, 2, 3, 4], "y": ["u", "v", "", "u"]})
    with pytest.raises(UserError, match=r"--data.label: x.csv row 3, column 'y' has no label \(1 rows in all\)"):
        TableConfig(path=path, label="y").shape()


def test_columns_that_look_like_ids_are_doubted(tmp_path):
    path = write(tmp_path / "x.csv", {"": list(range(5)), "name": list("vwxyz"), "a": [1.5, 2, 2, 0, 1]})
    notes = TableConfig(path=path).table().notes
    assert notes[1:] == (
        "table: column 'unnamed_1' numbers the rows; if it is an id, keep it aside: --data.id unnamed_1",
        "table: column 'name' is different in every row; if it is an id, keep it aside: --data.id name",
    )


def test_kinds_given_by_the_user(tmp_path):
    path = write(tmp_path / "x.csv", {"zip": [10, 20, 30] * 4, "two": [0, 1] * 6, "a": RNG.normal(size=12).tolist()})
    cfg = TableConfig(path=path, categorical=("zip",), numeric=("two",))
    assert cfg.for_model()["columns"] == ("numeric:2", "categorical:3")
    assert load(cfg)["train"].transform.columns[2].categories == ("10", "20", "30")
    assert TableConfig(path=path, categorical=("zip",), categories="drop").shape() == (2,)


def test_splits_by_column_group_and_time(tmp_path):
    n = 40
    when = [f"2024-{1 + i * 7 % 12:02}-{1 + i % 28:02}" for i in range(n)]
    columns = {"a": RNG.normal(size=n).tolist(), "part": [("train", "Valid", "test")[i % 3] for i in range(n)], "when": when}
    path = write(tmp_path / "x.csv", columns | {"who": [f"p{i // 4}" for i in range(n)]})
    aside: dict[str, Any] = {"drop": ("who", "when")}
    by_column = load(TableConfig(path=path, split="part", **aside))
    assert [rows_of(s).tolist() for s in by_column.values()] == [list(range(i, n, 3)) for i in range(3)]
    by_group = load(TableConfig(path=path, group="who", drop=("part", "when"), test_fraction=0.2, val_fraction=0.25))
    groups = [{i // 4 for i in rows_of(s).tolist()} for s in by_group.values()]
    assert [len(g) for g in groups] == [6, 2, 2]
    assert len(set.union(*groups)) == 10
    by_time = load(TableConfig(path=path, time="when", drop=("part", "who"), test_fraction=0.25, val_fraction=0.2))
    train, val, test = ([when[i] for i in rows_of(s).tolist()] for s in by_time.values())
    assert max(train) <= min(val) <= max(val) <= min(test)
    assert [len(x) for x in (train, val, test)] == [24, 6, 10]


def test_too_few_groups():
    with pytest.raises(UserError, match=r"x.csv has 2 groups; splits that share no group need at least 3"):
        splitting.by_group(["a", "b"], 0.1, 0.1, "x.csv")
    assert [len(r) for r in splitting.by_group(["a", "b", "c"] * 5, 0.01, 0.01, "").values()] == [5, 5, 5]


def test_a_table_of_too_many_columns_is_rejected_before_a_checkpoint_cannot_hold_its_transform(monkeypatch, tmp_path):
    """state.json holds the transform beside everything else that is not a tensor."""
    assert table.LARGEST_TRANSFORM <= SMALL // 2
    monkeypatch.setattr(table, "LARGEST_TRANSFORM", 100)
    with pytest.raises(UserError, match=r"has too many columns: they take \d+ bytes; at most 100"):
        load(TableConfig(path=write(tmp_path / "x.csv", {"a": [1.5, 2, 3] * 9, "b": [2, 3, 5.5] * 9})))


def test_a_table_is_read_once_and_again_when_its_file_changes(tmp_path):
    cfg = TableConfig(path=write(tmp_path / "x.csv", {"a": [1.5, 2, 3], "b": [2, 3, 5]}))
    assert cfg.table() is cfg.table()
    write(tmp_path / "x.csv", {"a": [1.5, 2, 3], "b": [2, 3, 5], "c": [1, 2, 4]})
    assert cfg.shape() == (3,)
    (tmp_path / "x.csv").unlink()
    assert cfg.shape() == (3,)  # a run that has read it ends well


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "categorical"}, {"quantiles": (1.0, 0.0)}, {"scale": 0.0}, {"categories": [1]}, {"quantiles": [0.0] * 1001},
        {"kind": "binary"}, {"quantiles": (1.0,)},
    ],
)  # fmt: skip
def test_a_transform_that_no_table_gives_is_rejected(change):
    good = {"name": "a", "kind": "numeric"}
    assert Transform.from_json({"columns": [good]}).columns[0].name == "a"
    with pytest.raises(UserError, match="is not a transform of stored values"):
        Transform.from_json({"columns": [good | change, good]})


SPELLINGS = {
    "numbers": "a,b\n 1 ,+2\n.5,1e3\n-0,1E-400\n0x10,7.\n",
    "missing": "a,b\nNA,?\n 1, nan \n,x\n",
    "quotes": 'a,"b, c"\n"x ""y""",1\n"two\nlines",2\n',
    "underscores": "a,b\n1_0,1\n2,2\n",
    "blank lines, CRLF and a mark": "\ufeffa,b\r\n1,x\r\n\r\n2,y\r\n",
    "wide numbers": "a,b\n0.1,123456789012345678\n0.30000000000000004,9007199254740993\n",
    "words for numbers": "a,b\nTrue,inf\nfalse,Infinity\n",
    "accents": "a,b\né,1\nß\u00a0,2\n",
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_csv_file_is_read_alike_with_and_without_pyarrow(name, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow.csv")
    path = tmp_path / "x.csv"
    path.write_bytes(SPELLINGS[name].encode())
    module = sys.modules["distae.config.tables.read"]
    fast = read(path)
    assert module._by_pyarrow(path, ",", [(0, "a"), (1, "b")]) is not None
    monkeypatch.setattr(module, "_by_pyarrow", lambda *_: None)
    slow = read(path)
    assert list(fast.columns) == list(slow.columns)
    for key, column in slow.columns.items():
        assert fast.columns[key].kind == column.kind
        assert fast.columns[key].missing.tolist() == column.missing.tolist()
        np.testing.assert_array_equal(fast.columns[key].values, column.values)
