"""What a file cannot tell: the options of a conversion, and the geometry of the images."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from ..utils.errors import UserError

DTYPES = ("float64", "float32", "bfloat16", "float16")


def _is_positive(value: object, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return 0 < value < math.inf


@dataclass(frozen=True)
class ConversionOptions:
    """Every field is None when it is to be read from the file, or left to the origin's own default.

    Attributes:
        image_size: pixels of a side, or (height, width).
        patch_size, num_channels: of the patches.
        num_steps, step_size: of the descent.
        num_attention_heads: only checked against the file.
        attention_beta: inverse temperature of a fixed-beta attention; 1/sqrt(head width) by default.
        hopfield_activation: kind of the Hopfield network of LumenPallidium, where its shapes leave it open, and of
            `Lemon-cmd/energy-transformer-graph` (`"gelu"` there alone), ReLU by default.
        dtype: that of the file by default.

    Raises:
        UserError: for a value that is not allowed.
    """

    image_size: int | tuple[int, int] | None = None
    patch_size: int | None = None
    num_channels: int | None = None
    num_steps: int | None = None
    step_size: float | None = None
    num_attention_heads: int | None = None
    attention_beta: float | None = None
    hopfield_activation: Literal["relu", "gelu", "softmax"] | None = None
    dtype: str | torch.dtype | None = None

    def __post_init__(self):
        for name in (field.name for field in fields(self) if field.name not in ("hopfield_activation", "dtype")):
            value = getattr(self, name)
            several = name == "image_size" and isinstance(value, list | tuple) and len(value) == 2
            whole = name not in ("step_size", "attention_beta")
            if value is not None and not all(_is_positive(n, whole) for n in (value if several else [value])):
                kind = "a whole number" if whole else "a finite number"
                kind = "one whole number or height and width" if name == "image_size" else kind
                raise UserError(f"{name} must be {kind} greater than 0, got {value!r}")
        if self.hopfield_activation not in (None, "relu", "gelu", "softmax"):
            raise UserError(
                f"hopfield_activation must be 'relu', 'gelu' or 'softmax', got {self.hopfield_activation!r}"
            )
        if self.dtype is not None and str(self.dtype).removeprefix("torch.") not in DTYPES:
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype}")

    @property
    def image_height_width(self) -> tuple[int, int] | None:
        size = self.image_size
        if size is None:
            return None
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def torch_dtype(self) -> torch.dtype | None:
        return None if self.dtype is None else getattr(torch, str(self.dtype).removeprefix("torch."))

    def refuse(self, names: tuple[str, ...], reason: str) -> None:
        """Raise a `UserError` when one of these options was given."""
        for name in names:
            if getattr(self, name) is not None:
                raise UserError(f"{name} does not apply: {reason}")


def read_options(options: dict[str, Any]) -> ConversionOptions:
    """Raises a `UserError` for an unknown option, and for a value that is not allowed."""
    known = [field.name for field in fields(ConversionOptions)]
    for name in options:
        if name not in known:
            raise UserError(f"unknown option {name}: the options are {', '.join(known)}")
    return ConversionOptions(**options)


def patch_geometry(elements: int, patches: int, options: ConversionOptions) -> dict:
    """`image_size`, `patch_size` and `num_channels` for so many square patches of so many values each.

    Without options, patches are taken to be of 1 or 3 channels, and the grid to be square.

    Raises:
        UserError: naming the option to pass where the numbers leave the answer open, or that contradicts them.
    """
    if patches < 1:
        raise UserError("the source has positions for no patch at all")
    image = options.image_height_width
    fitting = [
        (elements // size**2, size)
        for size in range(1, math.isqrt(elements) + 1)
        if elements % size**2 == 0
        and options.patch_size in (None, size)
        and options.num_channels in (None, elements // size**2)
        and (image is None or image[0] % size == image[1] % size == 0)
        and (image is None or (image[0] // size) * (image[1] // size) == patches)
    ]
    given = {n: getattr(options, n) for n in ("image_size", "patch_size", "num_channels")}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        fitting = [pair for pair in fitting if pair[0] in (1, 3)]
    if given and not fitting:
        words = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UserError(f"{words} contradicts the source: it has {patches} square patches of {elements} values each")
    if len(fitting) != 1:
        raise UserError(f"the source has patches of {elements} values each: pass patch_size or num_channels")
    channels, size = fitting[0]
    if image is None:
        side = math.isqrt(patches)
        if side * side != patches:
            raise UserError(f"the source has {patches} patches, which make no square: pass image_size as height width")
        image = (side * size, side * size)
    return {
        "image_size": image[0] if image[0] == image[1] else list(image),
        "patch_size": size,
        "num_channels": channels,
    }


def widths(sizes: dict[str, int], options: ConversionOptions) -> dict[str, int]:
    """The configuration's names for D, H, Y and M.

    Raises:
        UserError: when the number of heads contradicts the option.
    """
    heads = options.num_attention_heads
    if heads not in (None, sizes["H"]):
        raise UserError(f"num_attention_heads={heads} contradicts the source: it has {sizes['H']} heads")
    return {
        "hidden_size": sizes["D"],
        "num_attention_heads": sizes["H"],
        "head_dim": sizes["Y"],
        "intermediate_size": sizes["M"],
    }


def choose(
    options: ConversionOptions, defaults: dict[str, Any], recorded: dict[str, Any] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Settings that no shape tells: the option, else what the file records, else the origin's default.

    Returns:
        The settings, and the names of those left at the default.
    """
    given = {name: getattr(options, name) for name in defaults if getattr(options, name) is not None}
    known = {name: value for name, value in {**(recorded or {}), **given}.items() if name in defaults}
    return {**defaults, **known}, [name for name in defaults if name not in known]
