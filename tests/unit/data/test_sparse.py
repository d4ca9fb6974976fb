"""Sparse counts and interactions: against scipy, and what is wrong with a bad file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import finished_run, rows_of, settings, source_of
from scipy import sparse

import distae
from distae.config.data import SparseConfig
from distae.config.sparse import Matrix
from distae.data import Loader, load
from distae.data.datasets.sparse import Compressed, Rows
from distae.data.runs import Runs
from distae.errors import UserError
from distae.noise import Noise

N, WIDTH = 50, 30
MATRIX = sparse.random(N, WIDTH, 0.1, "csr", random_state=0, data_rvs=lambda n: np.random.default_rng(0).poisson(3, n) + 1.0)
MATRIX = sparse.csr_matrix(MATRIX.multiply(np.arange(N)[:, None] != 7))  # an empty row
DATA = MATRIX.data.astype(np.float32)
DENSE = torch.from_numpy(MATRIX.toarray()).float()


def all_rows(sets) -> torch.Tensor:
    """Every sample of a data set, in the order of its source."""
    source = sets["train"].source
    return source.read(torch.arange(len(source)))


@pytest.mark.parametrize("form", ["csr", "csc", "dense_dtype", "unsorted"])
def test_a_matrix_of_scipy(form, tmp_path):
    matrix = MATRIX.tocsc() if form == "csc" else MATRIX.astype(np.int64) if form == "dense_dtype" else MATRIX.copy()
    if form == "unsorted":
        for i in range(N):
            part = slice(*matrix.indptr[i : i + 2])
            matrix.indices[part], matrix.data[part] = matrix.indices[part][::-1].copy(), matrix.data[part][::-1].copy()
    sparse.save_npz(tmp_path / "x.npz", matrix)
    cfg = SparseConfig(path=str(tmp_path / "x.npz"))
    sets = load(cfg)
    assert cfg.shape() == sets["train"].shape == (WIDTH,)
    assert torch.equal(all_rows(sets), DENSE)
    assert [len(sets[k]) for k in ("train", "val", "test")] == [41, 4, 5]
    share = float((DENSE != 0).sum()) / (N * WIDTH)
    assert sets["train"].notes == (
        f"sparse: x.npz, 50 rows, 30 columns, {share:.2%} of the values are not 0: whole numbers 1 to {MATRIX.max():g}; "
        f"{int((DENSE == 0).all(1).sum())} rows contain only 0",
    )


def test_a_split_is_its_rows_wherever_it_is(tmp_path):
    sparse.save_npz(tmp_path / "x.npz", MATRIX)
    split = load(SparseConfig(path=str(tmp_path / "x.npz")))["train"]
    at = torch.tensor([3, 0, 0, 39, 7])
    moved = split.to(torch.device("cpu"))
    assert isinstance(moved.source, Rows)
    assert torch.equal(split.read(at)[0], DENSE[rows_of(split)[at]])
    assert torch.equal(moved.read(at)[0], DENSE[rows_of(split)[at]])
    assert torch.equal(torch.cat(list(split.blocks())), DENSE[rows_of(split)])
    assert split.bounds() == (0, float(DENSE[rows_of(split)].max()))
    assert split.nbytes == int((DENSE[rows_of(split)] != 0).sum()) * 8 + 41 * 8
    assert Loader(split, "none", torch.device("cpu"), torch.float64).batch(at, Noise.seeded(0, len(at)))[0].dtype == torch.float64


def test_the_way_of_a_gpu_gives_the_same_rows():
    source = Rows.of(Matrix("x", DATA, MATRIX.indices, MATRIX.indptr.astype(np.int64), WIDTH))
    assert np.shares_memory(source._matrix.indices, source.csr.indices.numpy())
    for at in (torch.arange(N), torch.tensor([7, 7]), torch.tensor([49, 0, 7])):
        padded = source.csr.dense(at, WIDTH)
        assert torch.equal(padded, source.read(at))
        assert torch.equal(padded, DENSE[at])
    empty = Compressed.of(torch.zeros(0), torch.zeros(0, dtype=torch.int32), torch.zeros(3, dtype=torch.int64))
    assert torch.equal(empty.dense(torch.tensor([0, 1]), 2), torch.zeros(2, 2))


def test_identity_is_of_the_contents(tmp_path):
    sparse.save_npz(tmp_path / "a.npz", MATRIX)
    sparse.save_npz(tmp_path / "b.npz", MATRIX.tocsc(), compressed=False)
    other = MATRIX.copy()
    other.indices[0] += 1 if other.indices[0] + 1 not in other.indices[: other.indptr[1]] else 2
    sparse.save_npz(tmp_path / "c.npz", other)
    a, b, c = (load(SparseConfig(path=str(tmp_path / f"{k}.npz"))) for k in "abc")
    assert a["train"].identity == b["train"].identity
    assert {k: s.identity["values"] for k, s in a.items()} != {k: s.identity["values"] for k, s in c.items()}
    assert a["train"].source.checksum(None) == b["train"].source.checksum(torch.arange(N))


def test_labels_and_batches_beside_the_matrix(tmp_path):
    names = np.array(["b", "a"])[np.arange(N) % 2]
    members = {"data": MATRIX.data, "indices": MATRIX.indices, "indptr": MATRIX.indptr, "shape": MATRIX.shape, "format": b"csr"}
    np.savez(tmp_path / "x.npz", kind=names, batch=np.arange(N) // 25 + 5, short=np.arange(3), **members)
    path = str(tmp_path / "x.npz")
    sets = load(SparseConfig(path=path, label="kind", batch_key="batch"))
    assert source_of(sets["train"]).label.tolist() == [1, 0] * 25
    assert sets["train"].source.columns["batch"].tolist() == [0] * 25 + [1] * 25
    assert "label (2 classes: a, b)" in sets["train"].notes[0]
    with pytest.raises(UserError, match=r"--data.label: no 'y' in x.npz; it has kind, batch, short besides the matrix"):
        load(SparseConfig(path=path, label="y"))
    with pytest.raises(UserError, match=r"--data.batch-key: 'short' in x.npz has 3 values for 50 rows"):
        load(SparseConfig(path=path, batch_key="short"))


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "layer"])
def test_an_h5ad(form, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        file["X"] = np.zeros((N, WIDTH)) if form == "layer" else MATRIX.toarray()
        if form != "dense":
            stored = MATRIX.tocsc() if form == "csc" else MATRIX
            name = "layers/counts" if form == "layer" else "X"
            file.pop("X") if name == "X" else None
            group = file.create_group(name)
            group.attrs["encoding-type"], group.attrs["shape"] = f"{stored.format}_matrix", stored.shape
            group["data"], group["indices"], group["indptr"] = stored.data, stored.indices, stored.indptr
        file["obs/kind/categories"], file["obs/kind/codes"] = [b"T", b"B"], np.arange(N, dtype=np.int8) % 2
        file["obs/donor"] = [f"d{i % 3}".encode() for i in range(N)]
        file["obs/gap/categories"], file["obs/gap/codes"] = [b"T"], np.arange(N, dtype=np.int8) % 2 - 1
    how: dict[str, Any] = {"path": str(tmp_path / "x.h5ad"), "layer": "counts" if form == "layer" else None}
    sets = load(SparseConfig(label="kind", batch_key="donor", **how))
    assert torch.equal(all_rows(sets), DENSE)
    assert source_of(sets["train"]).label.tolist() == [1, 0] * 25  # B is 0, T is 1
    assert sets["train"].source.columns["donor"].tolist() == [i % 3 for i in range(N)]
    for key, message in {
        "age": r"--data.label: no column 'age' in obs of x.h5ad; it has donor, gap, kind",
        "gap": r"--data.label: 'gap' in x.h5ad has no value in row 1",
    }.items():
        with pytest.raises(UserError, match=message):
            load(SparseConfig(label=key, **how))
    with pytest.raises(UserError, match=r"--data.layer: no layer 'raw' in x.h5ad; it has "):
        load(SparseConfig(path=how["path"], layer="raw"))


TRIPLES: dict[str, list[Any]] = {
    "user_id:token": [7, 7, 8, 8, 8, 9, 7], "item_id:token": list("abacdaa"), "rating:float": [5, 3, 4, 1, 5, 2, 1],
    "timestamp:float": list(range(7)),
}  # fmt: skip


def write(path: Path, columns: dict[str, list]) -> str:
    lines = [columns, *zip(*columns.values(), strict=True)]
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    return str(path)


def test_interactions(tmp_path):
    path = write(tmp_path / "x.inter", TRIPLES)
    cfg = SparseConfig(path=path, val_fraction=0, test_fraction=0)
    assert all_rows(load(cfg)).tolist() == [[6, 3, 0, 0], [4, 0, 1, 5], [2, 0, 0, 0]]
    assert load(cfg)["train"].notes[0] == "sparse: x.inter, 7 of 7 rows kept: 3 users, 4 items"
    assert load(cfg)["train"].source.columns["user"].tolist() == ["7", "8", "9"]
    kept = SparseConfig(path=path, user="user_id", item="item_id:token", rating="rating", min_rating=3, min_items=2, binary=True)
    assert all_rows(load(kept)).tolist() == [[1, 1, 0], [1, 0, 1]]
    assert load(kept)["train"].notes[0] == "sparse: x.inter, 4 of 7 rows kept: 2 users, 3 items"
    unrated = {k: v for k, v in TRIPLES.items() if not k.startswith("rating")}
    plain = SparseConfig(path=write(tmp_path / "x.tsv", unrated), val_fraction=0, test_fraction=0)
    assert all_rows(load(plain)).tolist() == [[2, 1, 0, 0], [1, 0, 1, 1], [1, 0, 0, 0]]


WRONG = [
    ({"user": "who"}, r"--data.user: no column 'who' in x.inter; it has user_id:token, item_id:token"),
    ({"rating": "item_id"}, r"--data.rating: x.inter row 1 has 'a', not a number"),
    ({"min_rating": 9}, r"--data.min-rating 9 and --data.min-items 1 leave no row of x.inter"),
    ({"label": "y"}, r"--data.label is not valid for .inter files"),
    ({"path": "x.csv"}, r"--data.path: x.csv is not there; a file is needed: an .npz of scipy.sparse.save_npz"),
    ({"path": ""}, r"--data.path: a file is needed"),
    ({"binarize": "threshold"}, r"--data.binarize is for images.*--data.binary"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_interactions_that_do_not_do(changes, message, tmp_path):
    path = write(tmp_path / "x.inter", TRIPLES)
    with pytest.raises(UserError, match=message):
        load(SparseConfig(**{"path": path, **changes}))


GOOD: dict[str, Any] = {"data": [1.0, 2.0], "indices": [0, 4], "indptr": [0, 1, 2], "shape": [2, 5], "format": b"csr"}
BAD = {
    "no matrix": ({"shape": None}, r"is not a sparse matrix: it has no 'shape', but data, .*scipy.sparse.save_npz"),
    "format": ({"format": b"coo"}, r"has format 'coo' and shape \[2, 5\]; valid are csr and csc; make one"),
    "bounds": ({"indices": [0, 5]}, r"x.npz row 2, column 5 is 2.0; the last column is 4"),
    "negative": ({"indices": [-1, 4]}, r"x.npz row 1, column -1 is 1.0; the last"),
    "descends": ({"indptr": [0, 3, 2]}, r"is damaged: indptr must ascend from 0 to 2, .* values, at row 2"),
    "beyond": ({"indptr": [0, 1, 9]}, r"is damaged: indptr must ascend from 0 to 2"),
    "first": ({"indptr": [1, 1, 2]}, r"is damaged: indptr must ascend from 0"),
    "lengths": ({"data": [1.0]}, r"is damaged: indptr must ascend"),
    "rows": ({"shape": [3, 5]}, r"is damaged: shape \[3, 5\], and 2 rows"),
    "NaN": ({"data": [1.0, np.nan]}, r"x.npz row 2, column 4 is nan; expected are finite"),
    "text": ({"data": ["a", "b"]}, r"is not a sparse matrix: data <U1\[2\], indices int64\[2\]"),
    "floats": ({"indices": [0.0, 4.0]}, r"is not a sparse matrix: data float64\[2\], indices float64"),
    "objects": ({"data": np.array([{}, 1], object)}, r"is damaged, or not an .npz file \(Object arrays cannot be loaded"),
    "no rows": ({"indptr": [0], "shape": [0, 5], "data": [], "indices": np.zeros(0, int)}, r"has shape \[0, 5\]: at least one row"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_matrix_is_named(name, tmp_path):
    changes: Any
    changes, message = BAD[name]
    np.savez(tmp_path / "x.npz", allow_pickle=True, **{k: v for k, v in (GOOD | changes).items() if v is not None})
    with pytest.raises(UserError, match=message):
        SparseConfig(path=str(tmp_path / "x.npz")).shape()


def test_files_that_are_something_else(tmp_path):
    pytest.importorskip("h5py")
    for name in ("x.npz", "x.h5ad"):
        (tmp_path / name).write_bytes(b"hello")
        with pytest.raises(UserError, match=rf"{name} is damaged, or not an {name[1:]} file"):
            SparseConfig(path=str(tmp_path / name)).shape()


def test_values_that_float32_would_change_stay_exact(tmp_path):
    np.savez(tmp_path / "x.npz", **(GOOD | {"data": [2**24 + 1, 1]}))
    source = load(SparseConfig(path=str(tmp_path / "x.npz"), val_fraction=0, test_fraction=0))["train"].source
    assert source.dtype == torch.float64
    assert float(source.read(torch.tensor([0]))[0, 0]) == 2**24 + 1


def test_rows_may_be_runs(tmp_path):
    """Of more than TABLE_ROWS samples splits are `Runs`: the same as the row numbers one by one."""
    sparse.save_npz(tmp_path / "x.npz", MATRIX)
    source = load(SparseConfig(path=str(tmp_path / "x.npz")))["train"].source
    runs, rows = Runs(torch.tensor([0, 8]), torch.tensor([4, 3])), torch.tensor([0, 1, 2, 3, 8, 9, 10])
    assert source.checksum(runs) == source.checksum(rows)
    assert source.nbytes(runs) == source.nbytes(rows)
    assert torch.equal(source.to(torch.device("cpu"), runs).read(torch.arange(7)), DENSE[rows])


@pytest.mark.slow
def test_counts_conditioned_on_their_batch(tmp_path):
    """As scVI's models are: cells of one batch, decoded as those of another, have the other's profile."""
    rng = np.random.default_rng(0)
    batch, profile = np.arange(240) % 3, rng.dirichlet(np.ones(20), 3)
    counts = sparse.csr_matrix(rng.poisson(200 * profile[batch]))
    members = {k: getattr(counts, k) for k in ("data", "indices", "indptr", "shape")}
    np.savez(tmp_path / "x.npz", batch=batch, format=b"csr", **members)
    model = {"name": "cvae", "classes": 3, "likelihood": "nb", "input": "log1p"}
    data = {"name": "sparse", "path": str(tmp_path / "x.npz"), "label": "batch"}
    found = distae.load(finished_run(settings(model=model, data=data, steps=100, eval_every=100), tmp_path))
    cells = counts.toarray()[batch == 0].astype(np.float32)
    for other in range(3):
        shares = found.reconstruct(cells, np.full(len(cells), other)).mean(0) / 200
        assert np.abs(shares[None] - profile).sum(1).argmin() == other
