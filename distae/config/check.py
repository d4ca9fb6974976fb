"""Combinations of settings that cannot work, rejected before torch is imported."""

import dataclasses
import hashlib
import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distae.config.extras import missing
from distae.config.fields import fields_of, leaves
from distae.config.models import ModelConfig, diffusers
from distae.config.names import METRICS
from distae.config.nets import HalvingConfig, MLPConfig, NetConfig, ViTConfig
from distae.config.parallel import HybridShardConfig, LatentShardConfig, ShardConfig
from distae.config.train import MAY_CHANGE, OF_A_NODE, TrainConfig
from distae.errors import UserError

ADDED = frozenset(
    {"model.inverse_temperature", "model.codebook_weight", "model.perceptual_checksum", "net.spatial"}
    | {"optim.blr", "optim.layer_decay", "probes"}
    | {f"data.{name}" for name in ("scale", "layout", "label_key", "test", "target", "shuffle", "window", "train_classes")}
    | {f"data.{name}" for name in ("rate_range", "magnitude_last", "magnitude_std_std", "magnitude_below", "correlation_rank")}
    | {f"data.{name}" for name in ("correlation_scale", "roots", "children", "depth", "exclusive", "scale_children")}
    | {"data.orthogonal_steps"}
    | {
        f"model.{name}"
        for name in (
            "count_rate",
            "dispersion",
            "total",
            "mixtures",
            "columns",
            "input",
            "input_dropout",
            "missing",
            "unit_norm",
            "scale_input",
            "multi_weight",
            "l0_from",
            "decoder_heads",
            "norm_pix",
            "class_token",
            "pool",
            "inputs",
            "skip",
            "layers",
        )
    }
)
"""Settings added after run folders had hashes: they count only if not at their default. Add every new setting here."""
WANDB_MODES = ("online", "offline", "disabled", "dryrun")
TRAINED = ("model/model.safetensors", "sae_weights.safetensors", diffusers.WEIGHTS)
"""What a folder with trained weights has: a run, a dictionary of SAELens, or a tokenizer of diffusers."""
DEFAULT_EPOCHS = 100
LONGEST_NAME, LONGEST_PATH = 230, 3900
"""Bytes of a run folder's name and path: below Linux's 255 and 4,096, to leave room for its files and for --fresh's new name."""


def check(cfg: TrainConfig, world_size: int) -> TrainConfig:
    """The settings with open ones filled in (epochs, run_dir). Raises UserError on a combination that cannot work."""
    if cfg.steps and cfg.epochs:
        raise UserError(f"--epochs {cfg.epochs} and --steps {cfg.steps} exclude each other: give one")
    if cfg.optim.blr is not None and cfg.optim.lr != _default(cfg, "optim.lr"):
        raise UserError(f"--optim.lr {cfg.optim.lr:g} and --optim.blr {cfg.optim.blr:g} exclude each other: give one")
    if not cfg.steps and not cfg.epochs:
        cfg = dataclasses.replace(cfg, epochs=DEFAULT_EPOCHS)
    cfg = _with_what_data_says(cfg)
    cfg = dataclasses.replace(cfg, model=cfg.model.completed())
    _check_batch(cfg, world_size)
    _check_net(cfg.net, cfg.data.shape())
    _check_choices(cfg, world_size)
    _check_probes(cfg)
    _check_parallel(cfg, world_size)
    cfg.model.check_likelihood(cfg.data.shape())
    cfg.model.check(cfg.data.shape(), cfg.net)
    if cfg.name is not None and not re.fullmatch(r"\w[\w.+=,-]*", cfg.name):
        raise UserError(f"--name: {cfg.name!r} is not valid; expected letters, digits and _ . + = , -")
    run_dir = _expanded(cfg.run_dir or f"runs/{cfg.name or f'{cfg.model.name}_{cfg.data.name}'}_{fingerprint(cfg)}")
    _check_run_dir(run_dir)
    return dataclasses.replace(cfg, run_dir=run_dir)


def _with_what_data_says(cfg: TrainConfig) -> TrainConfig:
    """The settings of the model that follow from the data, where they are at their default."""
    said = cfg.data.for_model()
    if odd := next((k for k in said if not hasattr(cfg.model, k)), None):
        able = ", ".join(name for name, kind in ModelConfig.choices().items() if hasattr(kind(), odd))
        raise UserError(f"--model {cfg.model.name}: these data are for a model with {odd!r}; valid: {able}")
    implied = {k: v for k, v in said.items() if getattr(cfg.model, k) == _default(cfg, f"model.{k}")}
    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, **implied)) if implied else cfg


def fingerprint(cfg: TrainConfig) -> str:
    """8 hex digits of the settings that define the result."""
    return hashlib.sha256(json.dumps(identity_settings(cfg), sort_keys=True).encode()).hexdigest()[:8]


def identity_settings(cfg: TrainConfig) -> dict[str, Any]:
    """Dotted names and values of the settings that define the result: a resume must not change them."""
    may_change = MAY_CHANGE - ({"grad_accum_steps"} if couples_samples(cfg) else set())
    values = {k: v for k, v in leaves(cfg) if k not in may_change and not (k in ADDED and v == _default(cfg, k))}
    removed = {k: default for k, (default, _) in cfg.removed.items()}
    return removed | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _default(cfg: TrainConfig, dotted: str) -> Any:
    """The default of a setting, in the variant that `cfg` has there."""
    group, _, name = dotted.rpartition(".")
    return fields_of(type(getattr(cfg, group) if group else cfg))[name].default


def shared_settings(cfg: TrainConfig) -> dict[str, Any]:
    """Dotted names and values of the settings that have to be the same on all ranks: all but those of a node."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in leaves(cfg) if k not in OF_A_NODE}


def couples_samples(cfg: TrainConfig) -> bool:
    """Whether a sample's loss depends on the others of its batch, so that accumulation changes the objective."""
    return cfg.net.norm == "batch" or cfg.model.couples_samples


def _check_batch(cfg: TrainConfig, world_size: int) -> None:
    batch, accum = cfg.global_batch_size, cfg.grad_accum_steps
    if batch % (world_size * accum):
        works = [w for w in range(1, batch // accum + 1) if batch % (w * accum) == 0]
        shown = ", ".join(map(str, works[:12])) + (" …" if len(works) > 12 else "")
        what = f"world size {world_size}" + (f" x --grad-accum-steps {accum}" if accum > 1 else "")
        advice = f"world sizes that work: {shown}" if works else f"--grad-accum-steps must divide {batch}"
        raise UserError(f"--global-batch-size {batch} is not divisible by {what}; {advice}")


def _check_net(net: NetConfig, shape: tuple[int, ...]) -> None:
    if net.norm == "group" and (bad := [w for w in net.widths if w % net.groups_of(w)]):
        raise UserError(f"--net.groups {net.groups} does not divide the hidden width {bad[0]}")
    if isinstance(net, MLPConfig) and net.norm == "group" and net.groups in net.widths:
        raise UserError(f"--net.groups {net.groups} leaves one value per group of a hidden layer of {net.groups}")
    if isinstance(net, HalvingConfig | ViTConfig) and len(shape) != 3:
        raise UserError(f"--net {net.name} needs images [C, H, W]; this data has shape {list(shape)}: use --net mlp")
    if isinstance(net, HalvingConfig):
        _check_halvings(net, shape)
    if isinstance(net, ViTConfig):
        _check_patches(net, shape)


def _check_halvings(net: HalvingConfig, shape: tuple[int, ...]) -> None:
    halvings = net.halvings
    if not net.widths:
        raise UserError(f"--net.{net.levels_key} is empty; expected one or more integers >= 1")
    if shape[1] % 2**halvings or shape[2] % 2**halvings:
        fits = max(n for n in range(halvings) if shape[1] % 2**n == 0 and shape[2] % 2**n == 0)
        fits += len(net.widths) - halvings
        advice = f"give at most {fits} --net.{net.levels_key}" if fits else "use --net mlp"
        raise UserError(
            f"--net {net.name} with {len(net.widths)} {net.levels_key} halves the image {halvings} times, "
            f"and {shape[1]}x{shape[2]} is not divisible by {2**halvings}: {advice}"
        )


def _check_patches(net: ViTConfig, shape: tuple[int, ...]) -> None:
    if shape[1] % net.patch or shape[2] % net.patch:
        raise UserError(f"--net.patch {net.patch} does not divide the sides of {shape[1]}x{shape[2]} images")
    if net.width % net.heads:
        raise UserError(f"--net.heads {net.heads} does not divide --net.width {net.width}")


def _check_probes(cfg: TrainConfig) -> None:
    if odd := [name for name in cfg.probes if name not in METRICS.keys_known]:
        raise UserError(f"--probes: unknown {odd[0]!r}; valid: {', '.join(METRICS.keys_known)}")
    if not cfg.probe_every and cfg.probes != _default(cfg, "probes"):
        raise UserError("--probes needs --probe-every N, the number of steps between probes")
    if cfg.data.val_fraction == 0 and cfg.probe_every:
        raise UserError("--data.val-fraction 0 leaves nothing to probe: --probe-every needs it")


def _check_choices(cfg: TrainConfig, world_size: int) -> None:
    valid = [f"val/{t}" for t in dict.fromkeys(("loss", *cfg.model.terms, *METRICS.keys_known))]
    name, _, figure = cfg.best_metric.removeprefix("val/").partition("/")
    if cfg.best_metric not in valid and not (figure and f"val/{name}" in valid):
        raise UserError(f"--best-metric: unknown {cfg.best_metric!r}; valid: {', '.join(valid)}")
    if cfg.data.val_fraction == 0 and (cfg.early_stop.patience or cfg.schedule.name == "plateau"):
        raise UserError("--data.val-fraction 0 leaves nothing to evaluate: --early-stop.patience and --schedule plateau need it")
    if cfg.model.missing and cfg.data.binarize != "none":
        raise UserError(f"--data.binarize {cfg.data.binarize} cannot be used with missing values (--model.missing)")
    if cfg.compile and not cfg.model.compiles:
        raise UserError(
            f"--compile: {cfg.model.name} takes gradients within its objective, which torch.compile does not support; leave it out"
        )
    if cfg.cuda_graphs and (not cfg.compile or cfg.device == "cpu"):
        raise UserError("--cuda-graphs requires --compile and a GPU")
    if cfg.cuda_graphs and (cfg.grad_accum_steps > 1 or world_size > 1):
        raise UserError(
            f"--cuda-graphs requires one process and --grad-accum-steps 1 (now {world_size} and {cfg.grad_accum_steps}): "
            "a replay overwrites the gradients of the one before"
        )
    mode = os.environ.get("WANDB_MODE")
    if cfg.tracking == "wandb" and mode not in (None, *WANDB_MODES):
        raise UserError(f"WANDB_MODE: {mode!r} is not valid; valid: {', '.join(WANDB_MODES)}, or --tracking none")
    if cfg.tracking in ("tensorboard", "trackio") and find_spec(cfg.tracking) is None:
        raise missing(cfg.tracking, cfg.tracking, f"--tracking {cfg.tracking}")
    _check_start(cfg)


def _check_start(cfg: TrainConfig) -> None:
    """Raises UserError where a run cannot start from what --init-from or --fork-from names."""
    if cfg.init_from and cfg.fork_from:
        raise UserError("--init-from and --fork-from exclude each other: weights only, or the full state")
    if cfg.fork_from and not list((Path(cfg.fork_from) / "checkpoints").glob("step_*")):
        raise UserError(f"--fork-from: no checkpoints in {cfg.fork_from}")
    if cfg.init_from and not any((Path(cfg.init_from) / name).is_file() for name in TRAINED):
        raise UserError(f"--init-from: no finished run in {cfg.init_from} ({TRAINED[0]} is missing)")
    if cfg.init_from and (Path(cfg.init_from) / diffusers.WEIGHTS).is_file():
        diffusers.check_settings(Path(cfg.init_from), dict(leaves(cfg)), cfg.data.shape())


def _check_parallel(cfg: TrainConfig, world_size: int) -> None:
    parallel = cfg.parallel
    used = ([f"--parallel {parallel.name}"] if parallel.divides else []) + ["--checkpoint-activations"] * cfg.checkpoint_activations
    if used and not cfg.model.shards:
        raise UserError(f"{used[0]}: {cfg.model.name} needs gradients of gradients, which it does not support; leave it out")
    if used and cfg.compile:
        raise UserError(f"{used[0]} and --compile exclude each other: leave one out")
    if not parallel.divides:
        return
    if cfg.channels_last:
        raise UserError(f"{used[0]} does not support --channels-last: leave one out")
    if cfg.ddp.compression != "none":
        raise UserError(f"--ddp.compression is for --parallel ddp; {used[0]} sends gradients as they are")
    if isinstance(parallel, ShardConfig) and parallel.cpu_offload and (cfg.device == "cpu" or world_size == 1):
        raise UserError("--parallel.cpu-offload needs GPUs and at least two processes: leave it out")
    if isinstance(parallel, HybridShardConfig) and world_size == 1:
        raise UserError("--parallel hsdp needs several processes, started by torchrun or distae launch: leave it out on one")
    if isinstance(parallel, HybridShardConfig) and parallel.shard_size is None:
        raise UserError(f"--parallel hsdp: needs --parallel.shard-size, {_divisor(world_size)}")
    if isinstance(parallel, LatentShardConfig):
        _check_latents(cfg, parallel.parts(world_size), world_size)
    if isinstance(parallel, HybridShardConfig | LatentShardConfig) and world_size % (parallel.shard_size or 1):
        given = f"--parallel {parallel.name}: --parallel.shard-size {parallel.shard_size}"
        raise UserError(f"{given} is not {_divisor(world_size)}")


def _divisor(world_size: int) -> str:
    valid = ", ".join(str(n) for n in range(1, world_size + 1) if world_size % n == 0)
    return f"a divisor of the {world_size} processes; valid: {valid}"


def _check_latents(cfg: TrainConfig, parts: int, world_size: int) -> None:
    """Raises UserError if the latents of the model cannot be divided among so many ranks."""
    if not cfg.model.divides_latents:
        valid = ", ".join(sorted(name for name, model in ModelConfig.choices().items() if model.divides_latents))
        raise UserError(f"--parallel tp: --model {cfg.model.name} has no latents that can be divided; valid: {valid}")
    if min(parts, world_size) == 1:
        raise UserError("--parallel tp needs at least two processes that share the latents: leave it out")
    latents = cfg.model.latent_dim
    if -(-latents // parts) * (parts - 1) >= latents:
        raise UserError(f"--parallel tp: {latents} latents (--model.latent-dim) leave some of {parts} processes without any")


def _expanded(text: str) -> str:
    """A run folder with `~` expanded, which a shell leaves as it is in `--run-dir=~/a`. Raises UserError."""
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        raise UserError(
            f"--run-dir: {text} names the home folder of an unknown user; write ./{text} for a folder of that name here"
        ) from error


def _check_run_dir(text: str) -> None:
    path = Path(text)
    if "\0" in text:
        raise UserError(f"--run-dir: {text!r} contains a null byte")
    if len(os.fsencode(path.name)) > LONGEST_NAME or len(os.fsencode(path.absolute())) > LONGEST_PATH:
        raise UserError(
            f"--run-dir: {text[:40]}… is too long: at most {LONGEST_NAME} bytes in its last part, {LONGEST_PATH} in all"
        )
    try:
        existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    except OSError as error:
        raise UserError(f"--run-dir: {text} cannot be a folder ({error.strerror})") from error
    if not existing.is_dir():
        raise UserError(f"--run-dir: {existing} is a file, not a folder")
