"""Forward kernels of packed attention: online softmax over blocks of keys (FlashAttention-2, arXiv 2307.08691 Alg. 1), LSE kept; and what
they share with the backward kernels: whose rows, which keys, loads, products, scores and the mask.

Two kernels of one arithmetic: `varlen_forward_kernel` loads by pointers and runs everywhere; `varlen_forward_tma_kernel` loads by tensor
descriptors, for which Triton gives Hopper's warps roles: one group loads, the others multiply. Shapes: T tokens, Hq query heads, D head
dimension (in blocks of BLOCK_D, the next power of two), N tiles; inside a program M query rows, K key rows. A tensor of strided rows is
(pointer, stride of a token, stride of a head); `C` are `varlen_launch.Constants`.
"""

# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

from soundrl.kernels.language import tl, triton


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
def fetch(x, token, head, C: tl.constexpr):
    """[rows, D] from `token` on of one head, by a tensor descriptor [T, heads · D]; rows beyond T are 0."""
    return x.load([token.to(tl.int32), head.to(tl.int32) * C.D])


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
def visible(row, column, first_column, window, C: tl.constexpr):
    """Whether query `row` sees key `column`, both counted from the sequence's first token; a window counts the row's own key.

    Keys before `first_column` are not counted. Both bounds in one unsigned comparison: an offset below the lower bound is a huge number.
    """
    low = first_column
    if C.WINDOW:
        low = tl.maximum(row - window + 1, first_column)
    return (column - low).to(tl.uint32) < tl.maximum(row + 1 - low, 0).to(tl.uint32)


@triton.jit
def online_softmax(product_MK, top_M, weight_M, score_scale, softcap2, seen_MK, MASK: tl.constexpr, C: tl.constexpr):
    """Probabilities under the running maximum, how earlier sums decay, and the new maximum and sum."""
    # Scaling after the maximum makes the scale, the subtraction and the exponential two instructions an element.
    scale = 1.0 if C.SOFTCAP else score_scale
    score_MK = scores2(product_MK, score_scale, softcap2, C) if C.SOFTCAP else product_MK
    if MASK:
        score_MK = tl.where(seen_MK, score_MK, float("-inf"))
    new_M = tl.maximum(top_M, tl.max(score_MK, 1) * scale)
    # A row that has seen no key yet has −inf here, and −inf − −inf is NaN.
    safe_M = tl.where(new_M == float("-inf"), 0.0, new_M)
    p_MK = tl.exp2(score_MK * scale - safe_M[:, None])
    decay_M = tl.exp2(top_M - safe_M)
    return p_MK, decay_M, new_M, weight_M * decay_M + tl.sum(p_MK, 1)


@triton.jit
def store_forward(out, lse2, accumulated_MD, weight_M, top_M, start, first, length, head, tokens, C: tl.constexpr):
    """Output and LSE of the tile's rows below `length`; rows that saw no key (behind the last boundary) get 0."""
    local_M = tl.arange(0, C.BLOCK_M)
    row_M = first + local_M
    some_M = weight_M > 0.0
    weight_M = tl.where(some_M, weight_M, 1.0)
    out_MD = (accumulated_MD / weight_M[:, None]).to(out.dtype.element_ty)
    own_ok = (row_M < length)[:, None] & (tl.arange(0, C.BLOCK_D)[None, :] < C.D)
    tl.store(dense_rows(out, start + first, head, local_M, C.HEADS, C), out_MD, own_ok)
    tl.store(lse2 + head * tokens + start + row_M, tl.where(some_M, top_M + tl.log2(weight_M), 0.0), row_M < length)


@triton.jit(do_not_specialize=["tokens", "tile_count"])
def varlen_forward_kernel(q, k, v, out, lse2, tiles, tokens, tile_count, window, score_scale, softcap2, C: tl.constexpr):
    start, length, live, first, kv_head, head = query_tile(tiles, tile_count, C)
    if (first >= length) | (length >= C.BELOW):
        return

    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_D: tl.constexpr = C.BLOCK_D
    local_M = tl.arange(0, C.BLOCK_M)
    local_K = tl.arange(0, C.BLOCK_K)
    row_M = first + local_M
    q_MD = load_rows(q, start + first, head, local_M, (row_M < length)[:, None], True, C)
    accumulated_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    weight_M = tl.zeros((BLOCK_M,), tl.float32)
    top_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    low, middle, high = key_range(first, length, live, window, C)
    for MASK in tl.static_range(2):
        if MASK or not C.WINDOW:
            # Two pipelined loops over one accumulator make ptxas serialise every WGMMA of both (C7515), so the masked one, of a turn or
            # two, is not pipelined.
            for n in tl.range(
                middle if MASK else low, high if MASK else middle, C.BLOCK_K, num_stages=1 if MASK and not C.WINDOW else None
            ):
                column_ok = (n + local_K < length)[:, None]
                k_KD = load_rows(k, start + n, kv_head, local_K, column_ok, MASK, C)
                product_MK = dot(q_MD, tl.trans(k_KD), C)
                seen_MK = visible(row_M[:, None], (n + local_K)[None, :], 0, window, C)
                p_MK, decay_M, top_M, weight_M = online_softmax(product_MK, top_M, weight_M, score_scale, softcap2, seen_MK, MASK, C)
                v_KD = load_rows(v, start + n, kv_head, local_K, column_ok, MASK, C)
                accumulated_MD = accumulated_MD * decay_M[:, None] + dot(p_MK, v_KD, C)
    store_forward(out, lse2, accumulated_MD, weight_M, top_M, start, first, length, head, tokens, C)


@triton.jit(do_not_specialize=["tokens", "tile_count"])
def varlen_forward_tma_kernel(q, k, v, out, lse2, tiles, tokens, tile_count, window, score_scale, softcap2, C: tl.constexpr):
    """The same; q, k and v are tensor descriptors. Sequences shorter than a block of keys are the other kernel's.

    Warps get roles only where one loop holds all products, nothing returns early, and every load in it is a descriptor's.
    """
    start, length, live, first, kv_head, head = query_tile(tiles, tile_count, C)
    length = tl.where(length >= C.BLOCK_K, length, 0)
    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_K: tl.constexpr = C.BLOCK_K
    BLOCK_D: tl.constexpr = C.BLOCK_D
    row_M = first + tl.arange(0, BLOCK_M)
    q_MD = fetch(q, start + first, head, C)
    accumulated_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    weight_M = tl.zeros((BLOCK_M,), tl.float32)
    top_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    low, _, high = key_range(first, length, live, window, C)
    low = 0 if not C.WINDOW else low
    for n in tl.range(low, high, C.BLOCK_K, warp_specialize=True):
        # A block of keys that reaches past the sequence's end would read its neighbour, whose NaN no mask holds back (0 · NaN). It is
        # read from its own length before the end instead, and what the turn before has seen is masked.
        at = tl.minimum(n, length - C.BLOCK_K)
        k_KD = fetch(k, start + at, kv_head, C)
        product_MK = dot(q_MD, tl.trans(k_KD), C)
        seen_MK = visible(row_M[:, None], (at + tl.arange(0, BLOCK_K))[None, :], n, window, C)
        p_MK, decay_M, top_M, weight_M = online_softmax(product_MK, top_M, weight_M, score_scale, softcap2, seen_MK, True, C)
        v_KD = fetch(v, start + at, kv_head, C)
        accumulated_MD = accumulated_MD * decay_M[:, None] + dot(p_MK, v_KD, C)
    store_forward(out, lse2, accumulated_MD, weight_M, top_M, start, first, length, head, tokens, C)
