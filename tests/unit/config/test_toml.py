"""TOML is parsed within bounds."""

import time

import pytest

from distae.config.toml import LARGEST, MOST_PARTS, parse_toml

A = b".".join([b"a"] * 100_000)
DEEP = {
    "a table": b"[" + A + b"]",
    "a key": A + b" = 1",
    "within an inline table": b"x = {" + A + b" = 1}",
    "spaces": b" . ".join([b"a"] * 50_000) + b" = 1",
    "quoted": b".".join([b'"\\""'] * 40_000) + b" = 1",
    "literal": b".".join([b"'a'"] * 50_000) + b" = 1",
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_keys_are_rejected_at_once(name: str) -> None:
    """tomllib takes 10 s for them."""
    began = time.process_time()
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_toml(DEEP[name])
    assert time.process_time() - began < 0.5


def test_what_is_large_is_not_parsed() -> None:
    with pytest.raises(ValueError, match=f"at most {LARGEST} are allowed"):
        parse_toml(b"#" * (LARGEST + 1))
    assert parse_toml(b"#" * LARGEST) == {}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_toml(b"x = " + b"[" * 100_000)


def test_texts_and_numbers_with_dots_are_no_deep_keys() -> None:
    dots = "a.b-c." * 5 + '\\"'
    text = f'path = "/{dots}/x.npy"\nlevels = [{"1.5," * 100}]\n[a.b]\nc.d = 1\n'
    assert parse_toml(text.encode()) == {
        "path": f"/{dots[:-2]}\"/x.npy", "levels": [1.5] * 100, "a": {"b": {"c": {"d": 1}}},
    }  # fmt: skip
    assert parse_toml(b".".join([b"a"] * MOST_PARTS) + b" = 1")
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_toml(b".".join([b"a"] * (MOST_PARTS + 1)) + b" = 1")
