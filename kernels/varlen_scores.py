"""What the forward and the backward kernels of packed attention share: whose rows, which keys, loads, products, scores and the mask.

Shapes: M query rows, K key rows, D head dimension (in blocks of BLOCK_D, the next power of two).
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = 1.4426950408889634  # scores are kept in units of log 2: exp2 is one instruction


@triton.jit
def query_tile(tiles_ptr, tile_count, GROUP: tl.constexpr, TILE: tl.constexpr, BLOCK_M: tl.constexpr):
    """Of a program that owns BLOCK_M query rows of one head: its sequence's start, length and `live`, its first row, key head and head.

    Key heads outermost, so that programs that run at once share keys and values in L2; within each, longest tiles first.
    """
    PARTS: tl.constexpr = TILE // BLOCK_M
    pid = tl.program_id(0)
    tile_ptr = tiles_ptr + pid // (GROUP * PARTS) % tile_count * 4
    kv_head = (pid // (GROUP * PARTS) // tile_count).to(tl.int64)
    first = tl.load(tile_ptr + 2) * TILE + pid // GROUP % PARTS * BLOCK_M
    return tl.load(tile_ptr).to(tl.int64), tl.load(tile_ptr + 1), tl.load(tile_ptr + 3), first, kv_head, kv_head * GROUP + pid % GROUP


@triton.jit
def key_range(first, length, live, window, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, WINDOW: tl.constexpr):
    """Keys [low, middle) are seen by every row of the tile, [middle, high) by some. Rows behind the last boundary see none."""
    high = tl.minimum(first + BLOCK_M, length) * live
    low = tl.maximum(first - window + 1, 0) // BLOCK_K * BLOCK_K if WINDOW else first * 0
    middle = low if WINDOW else first // BLOCK_K * BLOCK_K * live
    return low, middle, high


@triton.jit
def load_rows(start_ptr, offset, row_ok, column_ok, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[rows, BLOCK_D]; what `row_ok` (if ROWS) or `column_ok` (if COLUMNS) excludes is not read, and 0."""
    if ROWS and COLUMNS:
        return tl.load(start_ptr + offset, mask=row_ok & column_ok, other=0.0)
    elif ROWS:
        return tl.load(start_ptr + offset, mask=row_ok, other=0.0)
    elif COLUMNS:
        return tl.load(start_ptr + offset, mask=column_ok, other=0.0)
    else:
        return tl.load(start_ptr + offset)


@triton.jit
def dot(a, b, UPCAST: tl.constexpr):
    """a · b in fp32; a is rounded to b's type first, as tensor cores need it.

    "ieee": TF32 keeps ten bits of mantissa, too few for log-probabilities that must match a sampler's at 1e-5. UPCAST is for the
    interpreter alone, whose product of bf16 multiplies bit patterns.
    """
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a.to(b.dtype), b, input_precision="ieee")


@triton.jit
def scores2(product, score_scale, softcap2, SOFTCAP: tl.constexpr):
    """Scores in units of log 2: product · score_scale, or softcap2 · tanh of it (as 2·sigmoid(2x) − 1, which the interpreter knows)."""
    if SOFTCAP:
        return softcap2 * (2.0 * tl.sigmoid(2.0 * score_scale * product) - 1.0)
    else:
        return product * score_scale


@triton.jit
def visible(row, column, length, window, WINDOW: tl.constexpr):
    """Whether query `row` sees key `column`, both counted from the sequence's first token; a window counts the row's own key."""
    seen = (row >= column) & (row < length)
    if WINDOW:
        seen = seen & (row - column < window)
    return seen
