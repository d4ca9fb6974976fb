"""What the page asks for: JSON objects, whose types are checked when they are decoded."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Decode:
    """Decode a code."""

    code: list[float]
    label: int = 0
    """Of variants that are conditioned on it."""


@dataclass(frozen=True)
class Move:
    """Move a code in the plane of the map, its other components staying as they are."""

    code: list[float]
    to: tuple[float, float]
    label: int = 0


@dataclass(frozen=True)
class Morph:
    """Decode the code between two."""

    a: list[float]
    b: list[float]
    share: float
    """From 0 to 1."""
    label: int = 0


@dataclass(frozen=True)
class Tokens:
    """Decode discrete codes."""

    indices: list[int]
    label: int = 0


@dataclass(frozen=True)
class Sample:
    """Encode a sample."""

    number: int
    """Its position in its split."""
    is_training: bool = False


@dataclass(frozen=True)
class Encode:
    """Encode an image."""

    image: str = field(repr=False)
    """The file, base64."""
    invert: bool = False
    """Whether dark becomes light."""
    label: int = 0


@dataclass(frozen=True)
class Near:
    """Find the training samples with the nearest codes."""

    code: list[float]


@dataclass(frozen=True)
class Top:
    """Find the training samples with the largest values of a latent."""

    latent: int
