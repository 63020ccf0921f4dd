"""The work list of packed attention: which rows of which sequence, longest first. Shapes: T tokens, B sequences, N tiles.

A tile is `TILE` consecutive tokens of one sequence. Tiles begin at a sequence's first token, never at a multiple of `TILE` of the
packed row, so a sequence is cut the same way, and gives the same bits, alone and in any pack. The list is made on the device from
`cu_seqlens` with an upper bound N that follows from T and B, so nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soundrl.kernels.backend import check_offsets, operator, reads_values

TILE = 128


def tile_bound(tokens: int, sequences: int) -> int:
    """N: no packing of `tokens` tokens in `sequences` sequences has more tiles, those of rows behind the last boundary included."""
    return tokens // TILE + sequences + 1


def check_cu_seqlens(cu_seqlens: Tensor, tokens: int) -> None:
    """ValueError unless `cu_seqlens` bounds sequences of a row of `tokens` tokens.

    On a GPU the device itself checks the values and stops with an assertion, as reading them here would wait for it; after
    `backend.check_values(True)` they are read there too.
    """
    check_offsets("cu_seqlens", cu_seqlens, "q", tokens, types=(torch.int32, torch.int64), whole=False)
    if not reads_values(cu_seqlens):
        ordered = (cu_seqlens[0] == 0) & (cu_seqlens.diff() >= 0).all() & (cu_seqlens[-1] <= tokens)
        torch._assert_async(ordered, f"cu_seqlens must start at 0, not decrease, and not exceed the {tokens} tokens")


@operator("sequence_tiles(Tensor cu_seqlens, SymInt tokens) -> Tensor")
def sequence_tiles(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Tiles of a packed batch, longest work first; made once a batch, it serves every layer, forward and backward.

    cu_seqlens [B+1] int32 or int64; `tokens` = T ≥ cu_seqlens[-1]. Returns [N, 4] int32, a row a tile: first token of its sequence,
    length of its sequence, index of the tile in the sequence, 1 for a sequence and 0 for the rows behind the last boundary. Rows of
    length 0 fill the list up to `tile_bound`. ValueError as in `check_cu_seqlens`.

    Worked example (TILE = 128): cu_seqlens [0, 200, 210], 212 tokens →
    [[0, 200, 1, 1], [0, 200, 0, 1], [200, 10, 0, 1], [210, 2, 0, 0]].
    """
    check_cu_seqlens(cu_seqlens, tokens)
    bound_B2 = torch.cat([cu_seqlens.long(), cu_seqlens.new_full((1,), tokens, dtype=torch.int64)])
    start, length = bound_B2[:-1], bound_B2.diff()
    count = (length + TILE - 1) // TILE
    ends = count.cumsum(0)
    tile_N = torch.arange(tile_bound(tokens, len(cu_seqlens) - 1), device=cu_seqlens.device)
    owner_N = torch.searchsorted(ends, tile_N, right=True).clamp(max=len(count) - 1)
    index_N = tile_N - (ends - count)[owner_N]
    used_N, live_N = tile_N < ends[-1], owner_N < len(count) - 1
    # A causal tile reads the tiles before it. Ties keep their order, so the list is a function of cu_seqlens alone.
    order_N = torch.where(used_N & live_N, index_N + 1, 0).argsort(descending=True, stable=True)
    tiles_N4 = torch.stack([start[owner_N], length[owner_N] * used_N, index_N, live_N.long()], dim=-1)
    return tiles_N4[order_N].int()


@sequence_tiles.register_fake
def _(cu_seqlens: Tensor, tokens: int) -> Tensor:
    return cu_seqlens.new_empty((tile_bound(tokens, cu_seqlens.shape[0] - 1), 4), dtype=torch.int32)
