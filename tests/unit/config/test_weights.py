"""Weights that change over training, and how they are written."""

from typing import Any

import pytest

from distae.config import TrainConfig, parse, write_toml
from distae.config.weights import Ramp, at
from distae.errors import UserError


def beta(*argv, tmp_path=None):
    model: Any = parse(TrainConfig, argv, {}, "prog").settings.model
    return model.beta


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0:1@10", {0: 0, 5: 0.5, 10: 1, 1000: 1, None: 1}),
        ("2:0.5@4", {0: 2, 2: 1.25, 4: 0.5}),
        ("0:1@10x2", {0: 0, 2: 0.4, 5: 1, 9: 1, 10: 0, 12: 0.4, 19: 1, 20: 1, None: 1}),
    ],
)
def test_a_ramp_goes_from_one_value_to_the_other(text, values):
    assert {step: pytest.approx(Ramp(text).at(step)) for step in values} == values


def test_a_number_does_not_change():
    assert at(0.3, 7) == at(0.3, None) == 0.3


def test_command_line_and_file_give_the_same_weight(tmp_path):
    cfg: Any = parse(TrainConfig, ["--model.beta", "0:1@100"], {}, "prog").settings
    assert isinstance(cfg.model.beta, Ramp)
    (tmp_path / "a.toml").write_text(write_toml(cfg))
    assert parse(TrainConfig, ["--config", str(tmp_path / "a.toml")], {}, "prog").settings == cfg
    assert beta("--model.beta", "4") == 4.0
    assert not isinstance(beta("--model.beta", "4"), str)


@pytest.mark.parametrize("text", ["0:1", "0:1@0", "0:1@-5", "a:1@5", "-1:1@5", "0:1@5x0", "0:1@5x", "@5", "-1", "x"])
def test_a_malformed_weight_is_rejected_with_both_forms(text):
    with pytest.raises(UserError, match=r"--model.beta: .* is not valid; expected a number >= 0.* or a ramp FROM:TO@STEPS"):
        beta(f"--model.beta={text}")
