"""Position encodings of a feature map: sine (published default) and learned."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from detrkit.utils.errors import ImageSizeError


def position_encoding(
    kind: Literal["sine", "learned"],
    width: int,
    *,
    entries: int = 50,
    temperature: float = 10000.0,
    offset: float = 0.0,
) -> SinePositionEncoding | LearnedPositionEncoding:
    """Build the encoding that a model's `position_embedding` names.

    Args:
        kind: "sine" or "learned".
        width: channels.
        entries: of a learned one.
        temperature: of a sine one.
        offset: of a sine one.

    Raises:
        ValueError: another kind.
    """
    if kind == "sine":
        return SinePositionEncoding(width, temperature=temperature, offset=offset)
    if kind == "learned":
        return LearnedPositionEncoding(width, entries=entries)
    raise ValueError(f"position_embedding is {kind!r}: choose sine or learned")


class SinePositionEncoding(nn.Module):
    """Fixed sine encoding of the position inside the valid part of a map (DETR Sec. A.4; Parmar et al. 2018).

    A position is its 1-based row and column, counted over valid cells and scaled so that the last valid one is 2 pi:
    an image gets the same encoding whatever it is padded to.

    Args:
        width: channels in all; the first half encodes y, the second x, sine and cosine interleaved.
        temperature: base of the geometric progression of wavelengths (10000; DINO: 20).
        offset: subtracted from the 1-based index before scaling; 0 in DETR and DINO, 0.5 (pixel centers) in Deformable
            DETR.
    """

    def __init__(self, width: int, *, temperature: float = 10000.0, offset: float = 0.0) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"a sine encoding needs a width divisible by 4, not {width}")
        self.width = width
        self.temperature = temperature
        self.offset = offset

    def forward(self, padding: Tensor) -> Tensor:
        """Map a (B, h, w) bool mask, True where padded, to (B, h, w, width) float32."""
        valid = ~padding
        y = valid.cumsum(1, dtype=torch.float32)  # (B, h, w)
        x = valid.cumsum(2, dtype=torch.float32)
        # 1e-6 keeps fully padded rows and columns finite, and is part of the published numbers
        y = (y - self.offset) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
        x = (x - self.offset) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        half = self.width // 2
        index = torch.arange(half, dtype=torch.float32, device=padding.device)
        wavelength = self.temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / half)  # (half,)
        encoded = []
        for angle in (y[..., None] / wavelength, x[..., None] / wavelength):  # (B, h, w, half)
            pair = torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=4)
            encoded.append(pair.flatten(3))
        return torch.cat(encoded, dim=3)


class LearnedPositionEncoding(nn.Module):
    """One learned vector per row and per column (DETR Sec. 4.2, "learned" in Table 3).

    Args:
        width: channels in all; the first half comes from the column (x), the second from the row (y), as published.
        entries: the largest map that can be encoded, in cells per side. The published table has 50, too few for a DC5
            map of a 1333-pixel image, which has 84.
    """

    def __init__(self, width: int, *, entries: int = 50) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(entries, width // 2)
        self.col_embed = nn.Embedding(entries, width // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, padding: Tensor) -> Tensor:
        """Map a (B, h, w) bool mask to (B, h, w, width).

        Padding does not matter: cells are counted from the top left corner.

        Raises:
            ImageSizeError: the map has more rows or columns than the table has entries.
        """
        b, h, w = padding.shape
        entries = self.row_embed.num_embeddings
        if h > entries or w > entries:  # apart: `max` of symbols would relate them in an exported graph
            raise ImageSizeError(
                f"a feature map of {h} x {w} cells needs more than the {entries} learned positions: "
                f"build the model with position_entries={max(h, w)} or use smaller images"
            )
        columns = self.col_embed.weight[:w].expand(h, w, -1)
        rows = self.row_embed.weight[:h, None].expand(h, w, -1)
        return torch.cat([columns, rows], -1).expand(b, -1, -1, -1)


def sine_of_cells(height: int, width: int, channels: int, *, device: torch.device, temperature: float = 1e4) -> Tensor:
    """Encode the cells of a map by their row and column: (height, width, channels) float32 (RT-DETR's AIFI).

    A quarter of the channels each: sine and cosine of the row, then of the column, counted from 0 and not scaled to the
    map's size, so that a cell has the same encoding whatever the map is padded to. (The original code writes the map
    with its axes exchanged, which is the same for squares alone.)

    Args:
        height: of the map, in cells.
        width: likewise.
        channels: divisible by 4.
        device: of the result.
        temperature: base of the geometric progression of wavelengths.
    """
    wavelength = temperature ** (torch.arange(channels // 4, dtype=torch.float64, device=device) / (channels // 4))
    row, column = (torch.arange(n, dtype=torch.float64, device=device)[:, None] / wavelength for n in (height, width))
    rows = torch.cat([row.sin(), row.cos()], -1)[:, None].expand(-1, width, -1)
    columns = torch.cat([column.sin(), column.cos()], -1)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], -1).float()
