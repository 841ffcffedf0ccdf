"""Images to tokens: patches, mask token, CLS token and positions.

Shapes: B images, C channels, N tokens (CLS first where there is one), P patches, D token width.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .attention_backends import at_least_float32
from .configuration_energy_transformer import EnergyTransformerConfig
from .patches import patchify


def sine_cosine_positions(grid: tuple[int, int], dim: int) -> torch.Tensor:
    """2-D sine-cosine codes of unit amplitude, shape (rows·columns, dim): half of the width for each axis.

    The wavelengths go geometrically from 4 patches to 4 times the longer side of the grid, so that every channel
    tells the places of this grid apart.
    """
    longest = max(grid)
    frequencies = 2 * torch.pi / torch.logspace(0, 1, dim // 4, base=longest, dtype=torch.float64).mul(4)
    axes = []
    for size in grid:
        angles = torch.arange(size, dtype=torch.float64)[:, None] * frequencies
        axes.append(torch.cat([angles.sin(), angles.cos()], dim=-1))
    rows = axes[0][:, None].expand(*grid, -1)
    columns = axes[1][None].expand(*grid, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1).float()


def patch_map(config: EnergyTransformerConfig, in_dim: int, out_dim: int) -> nn.Module:
    """The encoder or decoder of the patches; the MLP is that of the seed's example."""
    if config.patch_embedding == "linear":
        return nn.Linear(in_dim, out_dim)
    dim = config.hidden_size
    return nn.Sequential(nn.Linear(in_dim, dim), nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, out_dim))


def patch_dim(config: EnergyTransformerConfig) -> int:
    height, width = config.patch_height_width
    return config.num_channels * height * width


class EnergyTransformerEmbeddings(nn.Module):
    """Pixels to tokens: patches, mask token, CLS token, positions. Positions are added to mask tokens too."""

    def __init__(self, config: EnergyTransformerConfig, use_mask_token: bool = False):
        super().__init__()
        self.config = config
        rows, columns = config.grid_size
        self.patch_embeddings = patch_map(config, patch_dim(config), config.hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if use_mask_token else None
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_cls_token else None
        num_positions = rows * columns + config.use_cls_token
        self.position_embeddings = nn.Parameter(torch.zeros(1, num_positions, config.hidden_size))

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of an image of that size in pixels."""
        patch_height, patch_width = self.config.patch_height_width
        return height // patch_height, width // patch_width

    def interpolate_pos_encoding(self, grid: tuple[int, int]) -> torch.Tensor:
        """The positions resized to another grid, bicubic in two dimensions as in the reference; CLS is kept."""
        if grid == self.config.grid_size:
            return self.position_embeddings
        kept = int(self.config.use_cls_token)
        patches = self.position_embeddings[:, kept:].unflatten(1, self.config.grid_size).permute(0, 3, 1, 2)
        resized = F.interpolate(at_least_float32(patches), size=grid, mode="bicubic", align_corners=False)
        resized = resized.to(patches.dtype).flatten(2).transpose(1, 2)
        return torch.cat([self.position_embeddings[:, :kept], resized], dim=1)

    def check_pixel_values(self, pixel_values: torch.Tensor, interpolate: bool) -> None:
        """Raises ValueError unless `pixel_values` are (B, C, H, W) of a size that can be cut into patches."""
        channels, size = self.config.num_channels, self.config.image_height_width
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(f"pixel_values must have shape (B, {channels}, H, W), got {tuple(pixel_values.shape)}")
        height, width = pixel_values.shape[2:]
        patch_height, patch_width = self.config.patch_height_width
        if height % patch_height or width % patch_width:
            raise ValueError(
                f"pixel_values of {height}x{width} pixels are not a multiple of the patch size "
                f"{patch_height}x{patch_width}"
            )
        if not interpolate and (height, width) != size:
            raise ValueError(
                f"pixel_values are {height}x{width} pixels, but the model was made for {size[0]}x{size[1]}; "
                "pass interpolate_pos_encoding=True to run it at another size"
            )

    def forward(
        self,
        pixel_values: torch.Tensor,
        corrupted: torch.BoolTensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        """`pixel_values` (B, C, H, W) to tokens (B, N, D); `corrupted` (B, P) become the mask token."""
        self.check_pixel_values(pixel_values, interpolate_pos_encoding)
        grid = self.grid_of(*pixel_values.shape[2:])
        patches = patchify(pixel_values, self.config.patch_height_width)
        dtype = self.position_embeddings.dtype
        tokens = self.patch_embeddings(patches.to(dtype))
        if corrupted is not None:
            if self.mask_token is None:
                raise ValueError("bool_masked_pos needs a model with a mask token: pass use_mask_token=True")
            tokens = torch.where(corrupted[..., None], self.mask_token.to(tokens.dtype), tokens)
        if self.cls_token is not None:
            cls_tokens = self.cls_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
            tokens = torch.cat([cls_tokens, tokens], dim=1)
        return tokens + self.interpolate_pos_encoding(grid)
