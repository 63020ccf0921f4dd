"""What the forward and the backward kernels of packed attention share: whose rows, which keys, loads, products, scores and the mask.

Shapes: M query rows, K key rows, D head dimension (in blocks of BLOCK_D, the next power of two). A tensor of strided rows is
(pointer, stride of a token, stride of a head); `C` are `varlen_launch.Constants`.
"""

# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from soundrl.kernels.language import tl, triton

LOG2E = 1.4426950408889634  # scores are kept in units of log 2: exp2 is one instruction


@triton.jit
def query_tile(tiles, tile_count, C: tl.constexpr):
    """Of a program that owns BLOCK_M query rows of one head: its sequence's start, length and `live`, its first row, key head and head.

    Key heads outermost, so that programs that run at once share keys and values in L2; within each, longest tiles first.
    """
    PARTS: tl.constexpr = C.TILE // C.BLOCK_M
    pid = tl.program_id(0)
    tile = tiles + pid // (C.GROUP * PARTS) % tile_count * 4
    kv_head = (pid // (C.GROUP * PARTS) // tile_count).to(tl.int64)
    first = tl.load(tile + 2) * C.TILE + pid // C.GROUP % PARTS * C.BLOCK_M
    return tl.load(tile).to(tl.int64), tl.load(tile + 1), tl.load(tile + 3), first, kv_head, kv_head * C.GROUP + pid % C.GROUP


@triton.jit
def key_range(first, length, live, window, C: tl.constexpr):
    """Keys [low, middle) are seen by every row of the tile, [middle, high) by some. Rows behind the last boundary see none."""
    high = tl.minimum(first + C.BLOCK_M, length) * live
    low = tl.maximum(first - window + 1, 0) // C.BLOCK_K * C.BLOCK_K if C.WINDOW else first * 0
    middle = low if C.WINDOW else first // C.BLOCK_K * C.BLOCK_K * live
    return low, middle, high


@triton.jit
def load(at, row_ok, ROWS: tl.constexpr, C: tl.constexpr):
    """[rows, BLOCK_D] at these pointers; what `row_ok` (if ROWS) excludes, and the padding of D, is not read, and 0."""
    column_ok = tl.arange(0, C.BLOCK_D)[None, :] < C.D
    if C.D != C.BLOCK_D:
        return tl.load(at, mask=row_ok & column_ok if ROWS else column_ok, other=0.0)
    elif ROWS:
        return tl.load(at, mask=row_ok, other=0.0)
    else:
        return tl.load(at)


@triton.jit
def load_rows(x, token, head, local, row_ok, ROWS: tl.constexpr, C: tl.constexpr):
    """`load` of the strided rows `token` + `local` of one head."""
    start = x[0] + token * x[1] + head * x[2]
    return load(start + (local[:, None] * x[1] + tl.arange(0, C.BLOCK_D)[None, :]), row_ok, ROWS, C)


@triton.jit
def dense_rows(x, token, head, local, HEADS: tl.constexpr, C: tl.constexpr):
    """Pointers to the rows `token` + `local` of one head of a contiguous [T, HEADS, D]."""
    start = x + (token * HEADS + head) * C.D
    return start + (local[:, None] * (HEADS * C.D) + tl.arange(0, C.BLOCK_D)[None, :])


@triton.jit
def dot(a, b, C: tl.constexpr):
    """a · b in fp32; a is rounded to b's type first, as tensor cores need it.

    "ieee": TF32 keeps ten bits of mantissa, too few for log-probabilities that must match a sampler's at 1e-5. UPCAST is for the
    interpreter alone, whose product of bf16 multiplies bit patterns.
    """
    if C.UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a.to(b.dtype), b, input_precision="ieee")


@triton.jit
def scores2(product, score_scale, softcap2, C: tl.constexpr):
    """Scores in units of log 2: product · score_scale, or softcap2 · tanh of it (as 2·sigmoid(2x) − 1, which the interpreter knows)."""
    if C.SOFTCAP:
        return softcap2 * (2.0 * tl.sigmoid(2.0 * score_scale * product) - 1.0)
    else:
        return product * score_scale


@triton.jit
def visible(row, column, length, window, C: tl.constexpr):
    """Whether query `row` sees key `column`, both counted from the sequence's first token; a window counts the row's own key."""
    seen = (row >= column) & (row < length)
    if C.WINDOW:
        seen = seen & (row - column < window)
    return seen
