"""The API of the page in process: what it decodes, encodes and finds, and whom and what it rejects."""

import http.client
import io
import json
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import unescape
from typing import Any

import numpy as np
import pytest
import torch
from helpers import as_the_model_sees, settings, splits
from PIL import Image
from torch import Tensor

from distae import distributed as dist
from distae.config.evaluation import EvaluationConfig
from distae.errors import UserError
from distae.evaluation.evaluation import Evaluation
from distae.evaluation.walks import between
from distae.models import Autoencoder, build
from distae.report.explorer.answers import MOST_IMAGE_BYTES, Explorer
from distae.report.explorer.asked import Decode, Encode
from distae.report.explorer.page import page
from distae.report.explorer.server import MOST_BYTES, Server

Ask = Callable[..., tuple[int, Any]]
EPS = b64encode(b"%!PS-Adobe-3.0 EPSF").decode()
"""Of a format that Pillow reads by another program."""


def explorer_of(**model: Any) -> Explorer:
    """Of an untrained model of the 8x8 images of `helpers.splits`."""
    cfg = settings(model=model)
    made = build(cfg.model, cfg.net, (1, 8, 8), 0)
    with dist.use(dist.World(0, 1, torch.device("cpu"))):
        return Explorer(Evaluation(made, cfg, splits(), "test", EvaluationConfig(limit=100)))


@contextmanager
def served(explorer: Explorer) -> Iterator[Server]:
    with Server(explorer, page(explorer, "t", "a")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served(explorer_of(name="vae", latent_dim=5)) as server:
        yield server


def asked(server: Server, path: str, body: bytes | None = None, method: str | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def ask(server: Server) -> Ask:
    def of(name: str, **question: Any) -> tuple[int, Any]:
        status, body = asked(server, f"/{server.token}/{name}", json.dumps(question).encode())
        return status, json.loads(body)

    return of


def pixels(shown: dict[str, str]) -> Tensor:
    """What a page shows, `[32, 32]` in [0, 1]."""
    image = Image.open(io.BytesIO(b64decode(shown["picture"].partition(",")[2])))
    return torch.from_numpy(np.array(image.convert("L"))).float() / 255


def enlarged(x: Tensor) -> Tensor:
    return x[0].repeat_interleave(4, 0).repeat_interleave(4, 1)


def model_of(server: Server) -> Autoencoder:
    return server.explorer.model


@torch.no_grad()
def test_a_code_is_decoded_as_the_model_does(server: Server, ask: Ask) -> None:
    z = torch.linspace(-2, 2, 5)
    status, found = ask("decode", code=z.tolist())
    assert status == 200
    assert found["code"] == pytest.approx(z.tolist())
    torch.testing.assert_close(pixels(found["shown"]), enlarged(model_of(server).decode(z[None])[0]), atol=0.5 / 255, rtol=0)


@torch.no_grad()
def test_a_sample_is_encoded_and_its_nearest_training_samples_are_those_of_a_search(server: Server, ask: Ask) -> None:
    x, train = as_the_model_sees(splits()["test"], torch.float32), as_the_model_sees(splits()["train"], torch.float32)[:100]
    status, found = ask("sample", number=7)
    assert status == 200
    code = model_of(server).encode(x[7:8]).z
    assert found["code"] == pytest.approx(code[0].tolist(), abs=1e-6)
    torch.testing.assert_close(pixels(found["input"]), enlarged(x[7]), atol=0.5 / 255, rtol=0)
    assert (found["split"], found["sample"]) == ("test", 7)
    _, near = ask("near", code=found["code"])
    apart = (model_of(server).encode(train).z - code).norm(dim=1)
    assert [s["number"] for s in near["samples"]] == apart.argsort()[:8].tolist()
    assert [s["label"] for s in near["samples"]] == (apart.argsort()[:8] % 10).tolist()
    torch.testing.assert_close(pixels(near["samples"][0]["shown"]), enlarged(train[apart.argmin()]), atol=0.5 / 255, rtol=0)
    assert ask("sample", number=int(apart.argmin()), is_training=True)[1]["split"] == "train"


def png_of(x: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(x).save(file, "png")
    return b64encode(file.getvalue()).decode()


@torch.no_grad()
def test_an_image_is_encoded_as_it_is_and_inverted(server: Server, ask: Ask) -> None:
    x = splits()["test"].x[3, 0]
    for invert in (False, True):
        status, found = ask("encode", image=png_of(x.numpy()), invert=invert)
        assert status == 200
        values = (255 - x if invert else x).float()[None, None] / 255
        assert found["code"] == pytest.approx(model_of(server).encode(values).z[0].tolist(), abs=1e-5)


def test_a_click_moves_the_code_in_the_plane_of_the_map_alone(server: Server, ask: Ask) -> None:
    _, before = ask("sample", number=2)
    _, after = ask("move", code=before["code"], to=[0.5, -0.25])
    assert after["at"] == pytest.approx([0.5, -0.25], abs=1e-6)
    basis = server.explorer.plane.basis
    moved = torch.tensor(after["code"], dtype=torch.float64) - torch.tensor(before["code"], dtype=torch.float64)
    torch.testing.assert_close(moved, moved @ basis.T @ basis, atol=1e-6, rtol=0)
    shown = server.explorer.plane.points[2].tolist()
    assert before["at"] == pytest.approx(shown, abs=1e-5)


def test_a_morph_is_between_two_codes(server: Server, ask: Ask) -> None:
    a, b = ([float(v) for v in torch.randn(5, generator=torch.Generator().manual_seed(i))] for i in range(2))
    for share in (0.0, 0.3, 1.0):
        expected = between(torch.tensor(a).double(), torch.tensor(b).double(), torch.tensor([share]), spherical=True)[0]
        assert ask("morph", a=a, b=b, share=share)[1]["code"] == pytest.approx(expected.tolist(), abs=1e-6)


def test_sliders_are_sorted_by_kl(server: Server) -> None:
    ranges = server.explorer.ranges()
    assert sorted(r["number"] for r in ranges) == [*range(5)]
    assert [r["importance"] for r in ranges] == sorted((r["importance"] for r in ranges), reverse=True)
    kl = server.explorer.model.kl_of_dimensions(server.explorer.here.codes)
    assert kl is not None
    assert ranges[0]["number"] == int(kl.mean(0).argmax())


@pytest.mark.parametrize(
    ("name", "question", "why"),
    [
        ("decode", {"code": [1.0] * 4}, "5 finite numbers"), ("decode", {"code": [1e300] * 5}, "5 finite numbers"),
        ("decode", {"code": "x"}, "Expected `array`"), ("decode", {}, "missing required field"),
        ("decode", [], "Expected `object`"), ("encode", {"image": EPS}, "not an image"),
        ("sample", {"number": 37}, "the test samples are 0 to 36"), ("sample", {"number": -1}, "0 to 36"),
        ("tokens", {"indices": [1]}, "no discrete codes"), ("top", {"latent": 5}, "latents are 0 to 4"),
        ("encode", {"image": "%"}, "not an image"),
    ],
)  # fmt: skip
def test_bad_questions_are_answered_with_what_is_wrong(ask: Ask, server: Server, name: str, question: Any, why: str) -> None:
    status, body = asked(server, f"/{server.token}/{name}", json.dumps(question).encode())
    assert status == 400
    assert why in json.loads(body)["error"]
    assert ask("sample", number=0)[0] == 200


def test_images_that_are_cut_or_too_large_are_rejected(ask: Ask) -> None:
    whole = b64decode(png_of(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)))
    status, found = ask("encode", image=b64encode(whole[:-2000]).decode())
    assert (status, "cannot be read as an image" in found["error"]) == (400, True)
    file = io.BytesIO()
    Image.new("1", (8001, 8000)).save(file, "png")
    status, found = ask("encode", image=b64encode(file.getvalue()).decode())
    assert (status, found["error"]) == (400, "this image has more than 64 million pixels")


def test_others_and_unknown_paths_are_rejected(server: Server) -> None:
    page, good = f"/{server.token}/", b'{"number": 0}'
    assert asked(server, page)[0] == 200
    assert asked(server, page, Host="localhost:9999")[0] == 200  # the other end of a tunnel
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", ""):
        assert asked(server, page, Host=host)[0] == 403
        assert asked(server, f"{page}sample", good, Host=host)[0] == 403
    for path in ("/", f"/{'0' * 32}/", "/../", f"/{server.token}0/", "/%ff/"):
        assert asked(server, path)[0] == 403
        assert asked(server, path + "sample", good)[0] == 403
    assert asked(server, page + "no")[0] == asked(server, f"{page}../x", good)[0] == asked(server, f"/{server.token}")[0] == 404
    assert asked(server, page + "sample")[0] == asked(server, page, good)[0] == 405
    assert asked(server, page + "sample", b"{}", "DELETE")[0] == 501
    assert asked(server, page + "sample", good)[0] == 200


def test_bodies_of_unknown_or_too_large_size_are_rejected(server: Server) -> None:
    path = f"/{server.token}/encode"
    assert asked(server, path, None, "POST", **{"Transfer-Encoding": "chunked"})[0] == 411
    status, body = asked(server, path, b"x" * (MOST_BYTES + 1))
    assert (status, json.loads(body)["error"]) == (413, f"at most {MOST_IMAGE_BYTES >> 20} MiB are taken")


def test_several_requests_go_over_one_connection(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    for number in range(3):
        connection.request("POST", f"/{server.token}/sample", json.dumps({"number": number}))
        assert json.loads(connection.getresponse().read())["sample"] == number
        assert connection.sock is not None
    connection.close()


def test_a_taken_port_is_named(server: Server) -> None:
    with pytest.raises(UserError, match=f"--port {server.port}: Address already in use; --port 0"):
        Server(server.explorer, b"", server.port)
    with pytest.raises(UserError, match="--port 70000"):
        Server(server.explorer, b"", 70000)


def test_the_page_has_a_slider_for_each_dimension_and_escapes_its_title(server: Server) -> None:
    text = page(server.explorer, "<script>alert(1)</script>", "&").decode()
    assert text.count("data-dimension=") == 5
    assert "<script>alert" not in text
    assert "connect-src 'self'" in unescape(text)


@torch.no_grad()
def test_discrete_codes_are_swapped() -> None:
    explorer = explorer_of(name="vq_vae", latent_dim=8, dim=2, codebook_size=16)
    ask = {name: work for name, (_, work) in explorer.routes.items()}
    types = {name: kind for name, (kind, _) in explorer.routes.items()}
    one, other = (ask["sample"](types["sample"](i)) for i in (0, 1))
    assert ask["tokens"](types["tokens"](one["indices"]))["shown"] == one["shown"]
    mixed = [*other["indices"][:2], *one["indices"][2:]]
    found = ask["tokens"](types["tokens"](mixed))
    assert found["code"] == pytest.approx(explorer.model.from_indices(torch.tensor([mixed]))[0].tolist())
    with pytest.raises(UserError, match="expected 4 codes from 0 to 15"):
        ask["tokens"](types["tokens"]([16, 0, 0, 0]))
    text = page(explorer, "t", "a").decode()
    assert '"tokens":[1,1,4]' in text
    assert "data-dimension=" not in text


@torch.no_grad()
def test_a_latents_top_samples_are_those_of_a_sort() -> None:
    explorer = explorer_of(name="topk_sae", latent_dim=40, k=3, likelihood="gaussian")
    assert explorer.is_sparse
    z = explorer.model.encode(as_the_model_sees(splits()["train"], torch.float32)[:100]).z
    latent = int((z > 0).sum(0).argmax())
    kind, work = explorer.routes["top"]
    found = work(kind(latent))["samples"]
    assert len(found) > 1
    assert [s["value"] for s in found] == pytest.approx(z[:, latent].sort(descending=True).values[: len(found)].tolist())
    active = explorer.routes["sample"][1](explorer.routes["sample"][0](0))["active"]
    assert len(active) == 3
    assert 'id="active"' in page(explorer, "t", "a").decode()


def test_a_label_that_there_is_not_is_rejected() -> None:
    explorer = explorer_of(name="cvae", latent_dim=3)
    z = explorer.start.tolist()
    one, other = (explorer.answer("decode", Decode(z, label))["shown"] for label in (1, 2))
    assert one != other
    for name, question in (("decode", Decode(z, 10)), ("encode", Encode(png_of(np.zeros((8, 8), np.uint8)), label=-1))):
        with pytest.raises(UserError, match="valid: 0 to 9"):
            explorer.answer(name, question)
    assert 'id="label"' in page(explorer, "t", "a").decode()
