"""Settings from files and the command line, and every error with its message."""

import re
import sys
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT

from distae.config import TrainConfig, build, check, cli, leaves, parse, to_dict, write_toml
from distae.config.check import ADDED, couples_samples, fingerprint, identity_settings
from distae.config.cli import read_toml
from distae.config.fields import Variant, fields_of
from distae.config.help import render
from distae.config.models import TokenizerConfig
from distae.config.train import MAY_CHANGE
from distae.errors import UserError

VARIANTS = [f for f in fields_of(TrainConfig).values() if f.is_variant]


def given(*argv: str, toml: str | None = None, tmp_path=None, world_size: int = 1) -> TrainConfig:
    if toml is not None:
        (tmp_path / "t.toml").write_text(toml)
        argv = ("--config", str(tmp_path / "t.toml"), *argv)
    return check(parse(TrainConfig, argv, {"smoke": ""}, "test").settings, world_size)


PARALLEL = (
    (["--parallel", "hsdp"], 1, "--parallel hsdp needs several processes"),
    (["--parallel", "hsdp", "--parallel.shard-size", "2"], 1, "--parallel hsdp needs several processes"),
    (["--parallel", "hsdp"], 4, "needs --parallel.shard-size, a divisor of the 4 processes; valid: 1, 2, 4"),
    (["--parallel", "hsdp", "--parallel.shard-size", "3"], 4, "shard-size 3 is not a divisor of the 4 processes; valid: 1, 2, 4"),
    (["--parallel", "fsdp", "--compile"], 2, "--parallel fsdp and --compile exclude each other"),
    (["--parallel", "fsdp", "--model", "rae_gp"], 2, "rae_gp needs gradients of gradients"),
    (["--parallel", "fsdp", "--ddp.compression", "bf16"], 2, "--ddp.compression is for --parallel ddp"),
    (["--parallel", "fsdp", "--channels-last"], 2, "does not support --channels-last"),
    (["--parallel", "fsdp", "--parallel.cpu-offload"], 1, "needs GPUs and at least two processes"),
    (
        ["--parallel", "tp"],
        2,
        "--model vae has no latents that can be divided; valid: batch_topk_sae, gated_sae, jumprelu_sae, l1_sae",
    ),
    (["--parallel", "tp", "--model", "l1_sae"], 1, "needs at least two processes that share the latents"),
    (["--parallel", "tp", "--model", "l1_sae", "--parallel.shard-size", "1"], 2, "needs at least two processes"),
    (
        ["--parallel", "tp", "--model", "l1_sae", "--parallel.shard-size", "3"],
        4,
        "is not a divisor of the 4 processes; valid: 1, 2, 4",
    ),
    (
        ["--parallel", "tp", "--model", "l1_sae", "--model.latent-dim", "9"],
        4,
        "9 latents (--model.latent-dim) leave some of 4 processes",
    ),
    (["--parallel", "tp", "--model", "l1_sae", "--compile"], 2, "--parallel tp and --compile exclude each other"),
    (["--parallel", "tp", "--model", "l1_sae", "--ddp.compression", "bf16"], 2, "--ddp.compression is for --parallel ddp"),
    (["--checkpoint-activations", "--compile"], 1, "--checkpoint-activations and --compile exclude each other"),
    (["--checkpoint-activations", "--model", "contractive_ae"], 1, "contractive_ae needs gradients of gradients"),
)


@pytest.mark.parametrize(("words", "ranks", "why"), PARALLEL)
def test_what_cannot_be_sharded_is_rejected_with_what_is_valid(words: list[str], ranks: int, why: str) -> None:
    with pytest.raises(UserError, match=re.escape(why)):
        check(parse(TrainConfig, words, {}, "distae train").settings, ranks)


def test_how_a_model_is_held_is_not_part_of_a_run_s_identity() -> None:
    words = ["--parallel", "hsdp", "--parallel.shard-size", "2", "--checkpoint-activations"]
    assert fingerprint(parse(TrainConfig, words, {}, "distae train").settings) == fingerprint(TrainConfig())
    assert check(parse(TrainConfig, ["--parallel", "fsdp"], {}, "distae train").settings, 1).parallel.name == "fsdp"


def test_nothing_given_is_the_default_job():
    cfg = given()
    assert (cfg.model.name, cfg.net.name, cfg.data.name) == ("vae", "mlp", "digits")
    assert re.fullmatch(r"runs/vae_digits_[0-9a-f]{8}", str(cfg.run_dir))


def test_the_command_line_wins_over_the_file(tmp_path):
    toml = 'epochs = 7\nseed = 5\n[model]\nname = "vae"\nbeta = 3\nlatent_dim = 9\n[net]\nhidden = [5, 4]'
    cfg: Any = given("--model.beta", "4", "--seed=6", "--seed", "8", "--net.hidden", "3", "2", toml=toml, tmp_path=tmp_path)
    assert (cfg.epochs, cfg.seed, cfg.model.beta, cfg.model.latent_dim, cfg.net.hidden) == (7, 8, 4, 9, (3, 2))


def test_another_variant_replaces_the_files_whole_table(tmp_path):
    toml = '[model]\nname = "vae"\nbeta = 3\nlatent_dim = 9'
    assert given("--model", "vae", toml=toml, tmp_path=tmp_path).model.latent_dim == 9
    cfg = given("--model", "ae", toml=toml, tmp_path=tmp_path)
    assert (cfg.model.name, cfg.model.latent_dim) == ("ae", 16)


def test_steps_on_the_command_line_replace_the_files_epochs(tmp_path):
    cfg = given("--steps", "5", toml="epochs = 7", tmp_path=tmp_path)
    assert (cfg.steps, cfg.epochs) == (5, None)
    assert given("--epochs", "5", toml="steps = 7", tmp_path=tmp_path).steps is None
    assert given("--optim.blr", "1e-3", toml="[optim]\nlr = 1e-4", tmp_path=tmp_path).peak_lr == 5e-4
    assert given("--optim.lr", "1e-3", toml="[optim]\nblr = 1e-4", tmp_path=tmp_path).peak_lr == 1e-3


def test_names_may_be_written_with_either_dash():
    assert given("--model.latent_dim", "3", "--grad_accum_steps=2") == given("--model.latent-dim", "3", "--grad-accum-steps", "2")


@pytest.mark.parametrize("model", ["ae", "vae"])
@pytest.mark.parametrize("net", ["mlp", "conv", "resnet", "image"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "exponential", "plateau"])
def test_what_is_written_is_read_back(model, net, schedule, tmp_path):
    more = ["--optim.max-grad-norm", "2", "--early-stop.patience", "3", "--threads", "2", "--net.norm", "batch", "--steps", "9"]
    more += ["--save-every", "auto", "--checkpoint.mtbf-hours", "2"]
    cfg = given("--model", model, "--net", net, "--schedule", schedule, *more)
    (tmp_path / "config.toml").write_text(write_toml(cfg))
    assert given("--config", str(tmp_path / "config.toml")) == cfg
    assert build(TrainConfig, to_dict(cfg)) == cfg


def test_every_field_has_a_doc():
    for cls in _classes(TrainConfig):
        for name, field in fields_of(cls).items():
            group = field.is_group and field.type.__doc__
            assert field.doc or group, f"{cls.__name__}.{name} has none"


def _classes(cls: type) -> list[type]:
    found = [cls]
    for field in fields_of(cls).values():
        if field.is_variant:
            found += field.type.choices().values()
        elif field.is_group:
            found.append(field.type)
    return found


def test_the_help_lists_every_variant_data_set_and_field():
    text = render(TrainConfig, {"smoke": "Every phase once."}, "test")
    for field in VARIANTS:
        for name, cls in field.type.choices().items():
            assert f"--{field.name} {name}: " in text
            assert all(f"--{field.name}.{inner}".replace("_", "-") in text for inner in fields_of(cls))
    plain = [dotted for dotted, _ in leaves(TrainConfig()) if not dotted.endswith("name") or dotted == "optim.name"]
    assert all(f"--{dotted}".replace("_", "-") in text for dotted in plain)
    assert "--smoke" in text
    assert max(map(len, text.splitlines())) <= 120


def test_settings_that_may_change_exist_and_do_not_name_the_run():
    of_a_tokenizer = TrainConfig(model=TokenizerConfig())
    assert {k for k, _ in leaves(of_a_tokenizer)} >= MAY_CHANGE - {"data.root", "parallel.cpu_offload", "parallel.shard_size"}
    cfg = given()
    same = given(
        "--epochs", "3", "--log-every", "7", "--device", "cpu", "--run-dir", "x", "--grad-accum-steps", "2", "--timeout", "5"
    )
    assert fingerprint(same) == fingerprint(cfg)
    for change in (["--seed", "1"], ["--optim.lr", "0.5"], ["--model", "ae"], ["--net.hidden", "7"], ["--global-batch-size", "64"]):
        assert fingerprint(given(*change)) != fingerprint(cfg), change


def test_a_name_is_in_the_folder_and_the_hash_stays():
    plain, named = given(), given("--name", "first-try")
    assert named.run_dir == f"runs/first-try_{fingerprint(plain)}"
    assert given("--name", "a", "--run-dir", "b").run_dir == "b"
    for bad in ("", "a/b", "../a", ".a", "a b", "a\nb", "a\n"):
        refused("--name", bad, match=r"--name: '.*' is not valid; expected letters, digits and _")


def test_a_setting_that_was_added_later_names_the_run_off_its_default_only(monkeypatch):
    cfg, other = given("--model", "lfq_vae"), given("--model", "lfq_vae", "--model.inverse-temperature", "2")
    assert "model.inverse_temperature" not in identity_settings(cfg)
    assert identity_settings(other)["model.inverse_temperature"] == 2
    assert fingerprint(cfg) != fingerprint(other)
    before = identity_settings(cfg)
    monkeypatch.setattr(sys.modules["distae.config.check"], "ADDED", ADDED | {"seed", "net.hidden"})
    assert before.keys() - identity_settings(cfg).keys() == {"seed", "net.hidden"}
    assert "net.hidden" in identity_settings(given("--model", "lfq_vae", "--net.hidden", "3"))


def test_settings_that_were_added_are_settings():
    known = {f"{g.name}.{k}" for g in VARIANTS for cls in g.type.choices().values() for k in fields_of(cls)}
    assert known | {k for k, _ in leaves(TrainConfig())} >= ADDED


def test_accumulation_names_the_run_where_samples_are_coupled():
    """There it is another objective."""
    one, two = (given("--net.norm", "batch", "--grad-accum-steps", n) for n in "12")
    assert couples_samples(one)
    assert not couples_samples(given())
    assert fingerprint(one) != fingerprint(two)
    assert "grad_accum_steps" in identity_settings(one)


def test_a_removed_setting_is_accepted_at_its_default(tmp_path):
    (tmp_path / "old.toml").write_text('noise = "global"\nseed = 3\n')
    cfg = given("--config", str(tmp_path / "old.toml"))
    assert cfg == given("--seed", "3", "--noise", "global")
    assert identity_settings(cfg)["noise"] == "global"
    assert "noise" not in to_dict(cfg)


REFUSED = {
    "removed setting": (["--noise", "per_rank"], r"--noise: 'per_rank' is no longer valid, .*: leave the setting out"),
    "unknown model": (["--model", "vea"], r"--model: unknown 'vea' \(did you mean 'vae'\?\); valid: ae, "),
    "unknown net": (["--net", "cnn"], r"--net: unknown 'cnn'; valid: mlp, (.*)conv, resnet"),
    "unknown data": (["--data", "imagenet"], r"--data: unknown 'imagenet' .*; valid: digits, (.*)mnist, fashion"),
    "unknown option": (["--modle", "vae"], r"unknown option '--modle' \(did you mean '--model'\?\)"),
    "of another variant": (["--model", "ae", "--model.beta=2"], r"unknown option '--model.beta'.*; valid: --model.latent-dim"),
    "option of another net": (["--net.channels", "4"], r"unknown option '--net.channels'.*valid: --net.norm, .*--net.hidden"),
    "no value": (["--model", "--seed", "1"], r"--model: expected one argument"),
    "no file name": (["--config"], r"--config: expected one argument"),
    "a number": (["--optim.lr", "fast"], r"--optim.lr: 'fast' is not valid; expected a number > 0"),
    "infinite": (["--optim.lr", "inf"], r"--optim.lr: 'inf' is not valid; expected a number > 0"),
    "out of bounds": (["--ema", "1"], r"--ema: '1' is not valid; expected a number >= 0 and < 1"),
    "no interval": (["--save-every", "often"], r"--save-every: 'often' is not valid; expected auto or an integer >= 1"),
    "no interval of failures": (["--checkpoint.mtbf-hours", "0"], r"mtbf-hours: '0' is not valid; expected a number > 0 or none"),
    "zero epochs": (["--epochs", "0"], r"--epochs: '0' is not valid; expected an integer >= 1 or none"),
    "choice": (["--precision", "fp8"], r"--precision: 'fp8' is not valid; expected one of fp32, bf16, fp16, fp64"),
    "list": (["--net.hidden", "12", "a"], r"--net.hidden: '12 a' is not valid; expected a list of an integer >= 1"),
    "pair": (["--optim.betas", "0.9"], r"--optim.betas: '0.9' is not valid; expected 2 times a number >= 0 and < 1"),
    "both lengths": (["--epochs", "3", "--steps", "5"], r"--epochs 3 and --steps 5 exclude each other: give one"),
    "both rates": (["--optim.lr", "1e-4", "--optim.blr", "1"], r"--optim.lr 0.0001 and --optim.blr 1 exclude each other: give one"),
    "decay of layers": (["--optim.layer-decay", "1.5"], r"--optim.layer-decay: '1.5' is not valid; expected a number > 0 and <= 1"),
    "batch": (["--grad-accum-steps", "5"], r"--global-batch-size 128 is not divisible by .*--grad-accum-steps 5"),
    "conv on an odd image": (
        ["--net", "conv", "--net.channels", "4", "8", "8", "8"],
        r"--net conv with 4 channels halves the image 4 times, and 8x8 is not divisible by 16: give at most 3 --net.channels",
    ),
    "too many multipliers": (
        ["--net", "image", "--net.multipliers", "1", "1", "1", "1", "1"],
        r"--net image with 5 multipliers halves the image 4 times, .*: give at most 4 --net.multipliers",
    ),
    "patches of another size": (["--net", "vit", "--net.patch", "3"], r"--net.patch 3 does not divide the sides of 8x8 images"),
    "heads": (["--net", "vit", "--net.heads", "5"], r"--net.heads 5 does not divide --net.width 192"),
    "no dropout": (["--net", "vit", "--net.dropout", "0.1"], r"--net.dropout"),
    "resnet without stages": (["--net", "resnet", "--net.channels"], r"--net.channels is empty; expected one or more"),
    "groups": (["--net.norm", "group", "--net.hidden", "16", "12"], r"--net.groups 8 does not divide the hidden width 12"),
    "best metric": (["--best-metric", "val/nll"], r"--best-metric: unknown 'val/nll'; valid: val/loss, val/recon, val/kl, val/mse"),
    "probes": (["--probes", "knn_accuracy", "knn"], r"--probes: unknown 'knn'; valid: mse, .*, knn_accuracy, linear_probe, "),
    "probes that never run": (["--probes", "linear_probe"], r"--probes needs --probe-every N"),
    "nothing to watch": (["--data.val-fraction", "0", "--schedule", "plateau"], r"--data.val-fraction 0 leaves nothing"),
    "no scale": (["--model.learn-scale"], r"--model.learn-scale: the bernoulli likelihood has no scale; valid with gaussian"),
    "no array": (["--data", "array"], r"--data.path: --data array needs the .npy, .npz or .safetensors file"),
    "absent array": (["--data", "array", "--data.path", "no.npy"], r"--data.path: no file no.npy"),
    "absent run": (["--init-from", "no"], r"--init-from: no finished run in no \(model/model.safetensors is missing\)"),
    "absent file": (["--config", "no.toml"], r"--config: cannot read no.toml \(No such file or directory\)"),
}  # fmt: skip


def refused(*argv: str, match: str, **how: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        given(*argv, **how)
    assert len(str(caught.value).splitlines()) <= 2


def test_zero_is_rejected_after_a_run_too():
    """Which has denormals flushed, and msgspec's `gt=0` is a denormal."""
    torch.set_flush_denormal(True)
    try:
        refused("--optim.lr", "0", match="'0' is not valid; expected a number > 0")
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("case", REFUSED)
def test_a_command_line_is_rejected(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(*REFUSED[case][0], match=REFUSED[case][1])


FILES = {
    "unknown key": ("beta = 2", r"unknown key 'beta'.*; valid: model, net, data, optim, "),
    "unknown key in a table": ("[optim]\nlearning_rate = 2", r"unknown key 'optim.learning_rate'.*; valid: optim.name, optim.lr, "),
    "unknown table": ("[modle]\nname = 'vae'", r"unknown key 'modle' \(did you mean 'model'\?\)"),
    "key of another variant": ("[model]\nname = 'ae'\nbeta = 2", r"unknown key 'model.beta'; valid: model.latent_dim, "),
    "wrong type": ("seed = '3x'", r"--seed: '3x' is not valid; expected an integer >= 0"),
    "text for a number": ("[optim]\nlr = 'fast'", r"--optim.lr: 'fast' is not valid; expected a number > 0"),
    "truth for a number": ("epochs = true", r"--epochs: True is not valid; expected an integer >= 1 or none"),
    "broken number": ("steps = 3.5", r"--steps: 3.5 is not valid; expected an integer >= 1 or none"),
    "number for a list": ("[net]\nhidden = 5", r"--net.hidden: 5 is not valid; expected a list of an integer >= 1"),
    "text for a table": ("model = 'vae'", r"model = 'vae' is not valid; expected a table, as in \[model\]"),
    "list of tables": ("[[optim]]\nlr = 1", r"optim = \[.*\] is not valid; expected a table, as in \[optim\]"),
    "table for a number": ("[seed]\na = 1", r"--seed: {'a': 1} is not valid; expected an integer"),
    "list for a name": ("[model]\nname = ['vae']", r"--model: unknown \['vae'\].*; valid: ae, "),
    "both lengths": ("epochs = 3\nsteps = 3", r"--epochs 3 and --steps 3 exclude each other"),
    "no TOML": ("seed = ", r"--config: .*t.toml is not valid TOML: Invalid value"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_is_rejected(case, tmp_path):
    refused(match=FILES[case][1], toml=FILES[case][0], tmp_path=tmp_path)


@pytest.mark.parametrize("argv", [["--model", "ae"], ["--model.beta", "2"]])
def test_a_file_is_rejected_whatever_the_command_line_adds(argv, tmp_path):
    refused(*argv, match=r"model = 'vae' is not valid; expected a table", toml="model = 'vae'", tmp_path=tmp_path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match=r"--config: .* is not a file"):
        read_toml(str(tmp_path))


def test_a_batch_that_does_not_divide_names_the_world_sizes_that_work():
    refused(
        "--global-batch-size",
        "12",
        match=r"12 is not divisible by world size 5; world sizes that work: 1, 2, 3, 4, 6, 12$",
        world_size=5,
    )
    accumulated = ["--global-batch-size", "12", "--grad-accum-steps", "2"]
    refused(*accumulated, match=r"by world size 4 x --grad-accum-steps 2; world sizes that work: 1, 2, 3, 6$", world_size=4)
    many = r"is not divisible by world size 7; world sizes that work: 1, 2, .* …$"
    refused("--global-batch-size", "5040", "--grad-accum-steps", "9", match="world sizes that work: 1, 2, .* …", world_size=11)
    refused("--global-batch-size", "1024", match=many.replace(" …", ""), world_size=7)


def test_conv_wants_images(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros((10, 6), np.float32))
    argv = ["--data", "array", "--data.path", str(tmp_path / "flat.npy"), "--net", "conv"]
    refused(*argv, match=r"--net conv needs images \[C, H, W\]; this data has shape \[6\]: use --net mlp")
    np.save(tmp_path / "odd.npy", np.zeros((10, 7, 9), np.uint8))
    argv[3] = str(tmp_path / "odd.npy")
    refused(*argv, match=r"7x9 is not divisible by 4: use --net mlp")


def test_a_run_folder_under_a_file_is_rejected(tmp_path):
    (tmp_path / "file").write_text("")
    refused("--run-dir", str(tmp_path / "file" / "a"), match=r"--run-dir: .*/file is a file, not a folder")


def test_a_plugins_variant_is_a_choice():
    class Other(Variant):
        pass

    class One(Other):
        name = "one"

    class Two(One):
        name = "two"

    assert Other.choices() == {"one": One, "two": Two}


def test_an_unknown_wandb_mode_is_rejected(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "of-line")
    refused(match=r"WANDB_MODE: 'of-line' is not valid; valid: online, offline, disabled")
    given("--tracking", "none")


@pytest.mark.parametrize(
    ("argv", "report"),
    [
        ("--batch-size 32", "unknown option '--batch-size' (did you mean '--global-batch-size'?)"),
        ("--lr 0.1", "'--optim.lr'"),
        ("--learning_rate 0.1", "'--optim.lr'"),
        ("--latent-dim 2", "'--model.latent-dim'"),
        ("--hidden 8", "'--net.hidden'"),
        ("--weight-decay=1", "'--optim.weight-decay'"),
        ("--beta 4", "'--model.beta'"),
        ("--limit 9", "'--data.limit'"),
        ("--net conv --channels 8", "'--net.channels'"),
        ("--output-dir x", "'--run-dir'"),
        ("--eopchs 3", "'--epochs'"),
    ],
)
def test_what_an_option_is_called_here(argv, report):
    with pytest.raises(UserError) as error:
        parse(TrainConfig, argv.split(), {}, "prog")
    assert f"did you mean {report.rpartition('mean ')[2].removesuffix('?)')}?)" in str(error.value)


@pytest.mark.parametrize("argv", ["--net.hidden 128,64", "--net.hidden 128, 64", "--net.hidden=128,64"])
def test_lists_have_spaces(argv):
    with pytest.raises(UserError, match=r"--net.hidden: '.*' is not valid; expected a list of an integer >= 1; write 128 64$"):
        parse(TrainConfig, argv.split(), {}, "prog")


def test_every_alias_is_of_an_option_there_is():
    for theirs, ours in cli.ALIASES.items():
        with pytest.raises(UserError, match=f"did you mean '--{ours}'"):
            parse(TrainConfig, ["--data", "array" if "path" in ours else "mnist", f"--{theirs}", "1"], {}, "prog")


def test_a_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert check(TrainConfig(run_dir="~/runs/a"), 1).run_dir == "/home/me/runs/a"
    assert check(TrainConfig(run_dir="./~/a"), 1).run_dir == "./~/a"


def test_the_commands_about_large_models_are_accepted() -> None:
    """docs/large_models.md."""
    text = (ROOT / "docs" / "large_models.md").read_text()
    commands = re.findall(r"^    torchrun (.*)--nproc_per_node=(\d) -m distae.train (.*)$", text, re.MULTILINE)
    assert len(commands) == 5
    for nodes, ranks, words in commands:
        assert check(parse(TrainConfig, [*words.split(), "--net.norm", "none"], {}, "").settings, int(ranks) * (1 + ("2" in nodes)))
