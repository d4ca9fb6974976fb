"""config.json of diffusers' AutoencoderKL and VQModel as settings of a tokenizer with `--net image`, and the reverse."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from distae.config.fields import Count
from distae.config.models.tokenizer import TokenizerConfig
from distae.config.nets import ImageConfig, NetConfig, shared_groups
from distae.errors import UserError

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
VERSION = "0.42.1"
"""The version of diffusers whose fields these are."""
BOTTLENECKS = {"AutoencoderKL": "kl", "VQModel": "vq"}
"""The bottleneck of each class of diffusers that can be read and written."""
CLASSES = {bottleneck: name for name, bottleneck in BOTTLENECKS.items()}
DOWN = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
"""Blocks of a level without and with attention."""
LARGEST = 1 << 20
"""Bytes of config.json."""


@dataclass(frozen=True, kw_only=True)
class Described:
    """What config.json says of a model, with the defaults of diffusers."""

    _class_name: str
    in_channels: Count = 3
    out_channels: Count = 3
    down_block_types: tuple[str, ...] = DOWN[:1]
    up_block_types: tuple[str, ...] = UP[:1]
    block_out_channels: tuple[Count, ...] = (64,)
    layers_per_block: Count = 1
    act_fn: str = "silu"
    latent_channels: Count = 4
    norm_num_groups: Count = 32
    norm_type: str = "group"
    sample_size: Count | tuple[Count, ...] = 32
    """Side, or sides; a type of two exactly makes msgspec 0.22 crash."""
    scaling_factor: float | None = 0.18215
    shift_factor: float | None = None
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    """AutoencoderKL: whether a 1x1 convolution gives the moments; else they are the encoder's."""
    use_post_quant_conv: bool = True
    num_vq_embeddings: Count = 256
    vq_embed_dim: Count | None = None
    """VQModel: channels of a code; by default `latent_channels`."""

    @property
    def bottleneck(self) -> str:
        return BOTTLENECKS[self._class_name]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image."""
        sides = (self.sample_size,) * 2 if isinstance(self.sample_size, int) else self.sample_size
        return (self.in_channels, *sides)

    @property
    def code_channels(self) -> int:
        return (self.vq_embed_dim or self.latent_channels) if self.bottleneck == "vq" else self.latent_channels

    def model(self) -> dict[str, Any]:
        """Settings of the model that follow."""
        vq = {"codebook_size": self.num_vq_embeddings} if self.bottleneck == "vq" else {}
        return {"name": TokenizerConfig.name, "bottleneck": self.bottleneck, "latent_dim": self.code_channels, **vq}

    def net(self) -> dict[str, Any]:
        """Settings of the network that follow."""
        first, levels = self.block_out_channels[0], range(1, len(self.block_out_channels) + 1)
        inner = {"inner_channels": self.latent_channels} if self.latent_channels != self.code_channels else {}
        return {
            "name": ImageConfig.name, "channels": first, "multipliers": [width // first for width in self.block_out_channels],
            "blocks": self.layers_per_block, "middle_attention": self.mid_block_add_attention, "groups": self.norm_num_groups,
            "attention": [i for i, kind in zip(levels, self.down_block_types, strict=True) if kind == DOWN[1]],
            "norm": "group", "activation": "silu", **inner,
        }  # fmt: skip

    def check(self) -> None:
        """Raises UserError where the model computes something that the network here cannot."""
        widths = self.block_out_channels
        if not widths:
            raise UserError(f"block_out_channels {list(widths)} of diffusers' {self._class_name} cannot be read")
        mirrored = tuple(UP[DOWN.index(kind)] for kind in self.down_block_types if kind in DOWN)[::-1]
        wrong = {
            "out_channels": self.out_channels != self.in_channels,
            "act_fn": self.act_fn not in ("silu", "swish"),
            "norm_type": self.norm_type != "group",
            "block_out_channels": any(width % widths[0] for width in widths),
            "norm_num_groups": any(shared_groups(self.norm_num_groups, width) != self.norm_num_groups for width in widths),
            "down_block_types": any(kind not in DOWN for kind in self.down_block_types)
            or len(self.down_block_types) != len(widths),
            "up_block_types": self.up_block_types != mirrored,
            "sample_size": len(self.shape) != 3 or any(side % 2 ** (len(widths) - 1) for side in self.shape[1:]),
        }
        if field := next((name for name, is_wrong in wrong.items() if is_wrong), None):
            raise UserError(f"{field} {getattr(self, field)} of diffusers' {self._class_name} cannot be read")


def read(folder: Path) -> Described:
    """config.json of a folder of diffusers. Raises UserError where it is damaged, or describes what cannot be read."""
    path = folder / CONFIG
    try:
        with path.open("rb") as file:
            table = msgspec.json.decode(file.read(LARGEST), type=dict[str, Any])
        if (name := str(table.get("_class_name"))) not in BOTTLENECKS:
            raise UserError(f"{path}: {name!r} of diffusers cannot be read; valid: {', '.join(BOTTLENECKS)}")
        channels = {"latent_channels": 3} if BOTTLENECKS[name] == "vq" else {}
        given = {k: v for k, v in table.items() if v is not None or k == "scaling_factor"}
        found = msgspec.convert(channels | given, Described)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({error})") from error
    found.check()
    return found


def check_settings(folder: Path, given: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Raises UserError unless settings by dotted name are those of the model in a folder, and `shape` its images' channels.

    The error lists the options to give.
    """
    found = read(folder)
    if shape[0] != found.in_channels:
        raise UserError(f"--init-from {folder}: its images have {found.in_channels} channels; the data has shape {list(shape)}")
    needed = {f"model.{k}": v for k, v in found.model().items()} | {f"net.{k}": v for k, v in found.net().items()}
    needed.setdefault("net.inner_channels", None)
    if wrong := [_option(name, value) for name, value in needed.items() if _plain(given.get(name)) != value]:
        raise UserError(f"--init-from {folder} needs {' '.join(wrong)}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _option(name: str, value: Any) -> str:
    """A setting as it is typed."""
    flag = name.removesuffix(".name").replace("_", "-")
    if value is None:
        return f"(without --{flag})"
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return " ".join(map(str, (f"--{flag}", *(value if isinstance(value, list) else [value]))))


def described(
    cfg: TokenizerConfig, net: NetConfig, shape: tuple[int, ...], scaling_factor: float, shift: float | None
) -> dict[str, Any]:
    """config.json of a model. Raises UserError that names the setting which diffusers cannot express."""
    if not isinstance(net, ImageConfig):
        raise UserError(f"--format diffusers is for --net {ImageConfig.name}, not {net.name}")
    _check_expressible(cfg, net)
    inner = net.inner_channels or cfg.latent_dim
    found = Described(
        _class_name=CLASSES[cfg.bottleneck], in_channels=shape[0], out_channels=shape[0], layers_per_block=net.blocks,
        down_block_types=tuple(DOWN[level in net.attention] for level in range(1, len(net.widths) + 1)),
        up_block_types=tuple(UP[level in net.attention] for level in range(len(net.widths), 0, -1)),
        block_out_channels=net.widths, latent_channels=inner, norm_num_groups=net.groups_of(net.widths[0]),
        sample_size=shape[1] if shape[1] == shape[2] else (shape[1], shape[2]), mid_block_add_attention=net.middle_attention,
        scaling_factor=scaling_factor, shift_factor=shift, num_vq_embeddings=cfg.codebook_size, vq_embed_dim=cfg.latent_dim,
    )  # fmt: skip
    left_out = OF_KL if cfg.bottleneck == "vq" else OF_VQ
    return {"_diffusers_version": VERSION} | {k: v for k, v in asdict(found).items() if k not in left_out}


OF_KL = ("shift_factor", "use_quant_conv", "use_post_quant_conv")
OF_VQ = ("norm_type", "num_vq_embeddings", "vq_embed_dim")
"""Fields of config.json that one of the classes has alone."""


def _check_expressible(cfg: TokenizerConfig, net: ImageConfig) -> None:
    """Raises UserError."""
    groups = {net.groups_of(width) for width in net.widths}
    wrong = {
        f"--model.bottleneck {cfg.bottleneck}; valid: {', '.join(CLASSES)}": cfg.bottleneck not in CLASSES,
        f"--model.likelihood {cfg.likelihood}; valid: laplace, gaussian": cfg.likelihood not in ("laplace", "gaussian"),
        "--model.input, input-dropout and missing": cfg.other_input,
        f"--net.norm {net.norm}; valid: group": net.norm != "group",
        f"--net.activation {net.activation}; valid: silu": net.activation != "silu",
        f"--net.multipliers {net.multipliers}; valid: the first is 1": net.multipliers[0] != 1,
        f"--net.groups {net.groups}; valid: the same number at every width, such as {min(groups)}": len(groups) > 1,
        f"--net.inner-channels {net.inner_channels} with kl": cfg.bottleneck == "kl" and net.inner_channels is not None,
    }
    if setting := next((text for text, is_wrong in wrong.items() if is_wrong), None):
        raise UserError(f"--format diffusers cannot express {setting}")
