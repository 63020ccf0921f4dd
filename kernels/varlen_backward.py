"""Backward kernels of packed attention, without atomics: each program owns the rows it writes, so repeats give the same bits.

dQ loops over keys, dK/dV over the queries of its group, each in a fixed order; both recompute probabilities from the LSE
(FlashAttention-2, arXiv 2307.08691 Alg. 2, with its loop cut in two). dK/dV exists twice, by pointers and by tensor descriptors, as the
forward pass does. Shapes: T tokens, Hq query heads, Hkv key heads, D head dimension, N tiles; inside a program M query rows, K key rows.
"""

# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

from soundrl.kernels.language import tl, triton
from soundrl.kernels.varlen_forward import dense_rows, dot, fetch, key_range, load, load_rows, query_tile, scores2, visible


@triton.jit
def score_gradient(p, dp, delta, score, softcap2, C: tl.constexpr):
    """dL/d(product) without its factor `scale`: p · (dp − delta), through the softcap where there is one."""
    ds = p * (dp - delta)
    if C.SOFTCAP:
        ds = ds * (1.0 - (score / softcap2) * (score / softcap2))
    return ds


@triton.jit(do_not_specialize=["tokens", "tile_count"])
def varlen_dq_kernel(
    q, k, v, grad_out, out, lse2, rows, dq, tiles, tokens, tile_count, window, scale, score_scale, softcap2, C: tl.constexpr
):
    """dQ of M query rows, and for the second kernel `rows` [Hq, T, 4]: LSE and delta = Σ_d dO·O, twice."""
    start, length, live, first, kv_head, head = query_tile(tiles, tile_count, C)
    if first >= length:
        return

    BLOCK_M: tl.constexpr = C.BLOCK_M
    BLOCK_D: tl.constexpr = C.BLOCK_D
    local_M = tl.arange(0, C.BLOCK_M)
    local_K = tl.arange(0, C.BLOCK_K)
    row_M = first + local_M
    row_ok = (row_M < length)[:, None]
    grad_MD = load_rows(grad_out, start + first, head, local_M, row_ok, True, C)
    out_MD = load(dense_rows(out, start + first, head, local_M, C.HEADS, C), row_ok, True, C)
    delta_M = tl.sum(grad_MD.to(tl.float32) * out_MD.to(tl.float32), 1)
    per_row = head * tokens + start + row_M
    lse2_M = tl.load(lse2 + per_row, row_M < length, 0.0)
    of_four = tl.arange(0, 4)[None, :]
    tl.store(rows + (per_row[:, None] * 4 + of_four), tl.where(of_four % 2 == 0, lse2_M[:, None], delta_M[:, None]), row_ok)
    q_MD = load_rows(q, start + first, head, local_M, row_ok, True, C)

    dq_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    low, middle, high = key_range(first, length, live, window, C)
    for MASK in tl.static_range(2):
        if MASK or not C.WINDOW:
            # Not pipelined twice: see the forward kernel.
            for n in tl.range(
                middle if MASK else low, high if MASK else middle, C.BLOCK_K, num_stages=1 if MASK and not C.WINDOW else None
            ):
                column_ok = (n + local_K < length)[:, None]
                k_KD = load_rows(k, start + n, kv_head, local_K, column_ok, MASK, C)
                score_MK = scores2(dot(q_MD, tl.trans(k_KD), C), score_scale, softcap2, C)
                p_MK = tl.exp2(score_MK - lse2_M[:, None])
                if MASK:  # after the exponential: what the mask hides may exceed the row's LSE and overflow
                    p_MK = tl.where(visible(row_M[:, None], (n + local_K)[None, :], 0, window, C), p_MK, 0.0)
                v_KD = load_rows(v, start + n, kv_head, local_K, column_ok, MASK, C)
                ds_MK = score_gradient(p_MK, dot(grad_MD, tl.trans(v_KD), C), delta_M[:, None], score_MK, softcap2, C)
                dq_MD += dot(ds_MK, k_KD, C)
    own_ok = row_ok & (tl.arange(0, C.BLOCK_D)[None, :] < C.D)
    tl.store(dense_rows(dq, start + first, head, local_M, C.HEADS, C), (dq_MD * scale).to(dq.dtype.element_ty), own_ok)


@triton.jit
def key_tile(tiles, tile_count, C: tl.constexpr):
    """Of a program that owns BLOCK_K key rows of one key head: its sequence's start, length and `live`, its first row and key head.

    The first keys are read by most queries: mirrored, the list that is sorted for queries is sorted for keys. A tile without rows,
    mirrored, begins below 0.
    """
    PARTS: tl.constexpr = C.TILE // C.BLOCK_K
    pid = tl.program_id(0)
    tile = tiles + pid // PARTS % tile_count * 4
    length = tl.load(tile + 1)
    first = (tl.cdiv(length, C.TILE) - 1 - tl.load(tile + 2)) * C.TILE + pid % PARTS * C.BLOCK_K
    return tl.load(tile).to(tl.int64), length, tl.load(tile + 3), first, (pid // PARTS // tile_count).to(tl.int64)


@triton.jit
def query_range(first, length, live, window, C: tl.constexpr):
    """Query rows [low, high) see some of the tile's keys; and how many blocks they are."""
    high = tl.minimum(length, first + C.BLOCK_K - 1 + window) * live if C.WINDOW else length * live
    low = first // C.BLOCK_M * C.BLOCK_M
    return low, tl.cdiv(tl.maximum(high - low, 0), C.BLOCK_M)


@triton.jit
def of_rows(rows_M4, WHICH: tl.constexpr, C: tl.constexpr):
    """LSE (0) or delta (1) of M rows. Taken apart where each is used: it costs registers from there on."""
    lse2_M2, delta_M2 = tl.split(rows_M4.reshape(C.BLOCK_M, 2, 2))
    out_M, _ = tl.split(delta_M2 if WHICH else lse2_M2)
    return out_M


@triton.jit
def sees(row, column, first_row, window, C: tl.constexpr):
    """`visible`, from the key's side: whether query `row`, of those from `first_row` on, sees key `column`."""
    seen = row >= tl.maximum(column, first_row)
    if C.WINDOW:
        seen = seen & (row - column < window)
    return seen


@triton.jit
def store_keys(dk, dv, dk_KD, dv_KD, scale, start, first, length, kv_head, C: tl.constexpr):
    local_K = tl.arange(0, C.BLOCK_K)
    KV_HEADS: tl.constexpr = C.HEADS // C.GROUP
    own_ok = (first + local_K < length)[:, None] & (tl.arange(0, C.BLOCK_D)[None, :] < C.D)
    tl.store(dense_rows(dk, start + first, kv_head, local_K, KV_HEADS, C), (dk_KD * scale).to(dk.dtype.element_ty), own_ok)
    tl.store(dense_rows(dv, start + first, kv_head, local_K, KV_HEADS, C), dv_KD.to(dv.dtype.element_ty), own_ok)


@triton.jit(do_not_specialize=["tokens", "tile_count"])
def varlen_dkv_kernel(q, k, v, grad_out, rows, dk, dv, tiles, tokens, tile_count, window, scale, score_scale, softcap2, C: tl.constexpr):
    """dK and dV of K key rows: the sum over the group's query heads, and over the query rows that see them."""
    start, length, live, first, kv_head = key_tile(tiles, tile_count, C)
    if (first < 0) | (first >= length) | (length >= C.BELOW):
        return

    BLOCK_K: tl.constexpr = C.BLOCK_K
    BLOCK_D: tl.constexpr = C.BLOCK_D
    local_M = tl.arange(0, C.BLOCK_M)
    local_K = tl.arange(0, C.BLOCK_K)
    column_K = first + local_K
    column_ok = (column_K < length)[:, None]
    k_KD = load_rows(k, start + first, kv_head, local_K, column_ok, True, C)
    v_KD = load_rows(v, start + first, kv_head, local_K, column_ok, True, C)
    dk_KD = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    dv_KD = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    low, blocks = query_range(first, length, live, window, C)
    # One loop over all heads of the group, with the mask in every turn: two loops, or a loop a head, need more registers than there are.
    for turn in range(blocks * C.GROUP):
        head = kv_head * C.GROUP + turn // blocks
        m = low + turn % blocks * C.BLOCK_M
        row_M = m + local_M
        row_ok = (row_M < length)[:, None]
        q_MD = load_rows(q, start + m, head, local_M, row_ok, True, C)
        score_KM = scores2(dot(k_KD, tl.trans(q_MD), C), score_scale, softcap2, C)
        at = rows + (head * tokens + start + row_M) * 4
        p_KM = tl.exp2(score_KM - tl.load(at, row_M < length, 0.0)[None, :])
        p_KM = tl.where(sees(row_M[None, :], column_K[:, None], 0, window, C), p_KM, 0.0)
        grad_MD = load_rows(grad_out, start + m, head, local_M, row_ok, True, C)
        dv_KD += dot(p_KM, grad_MD, C)
        ds_KM = score_gradient(p_KM, dot(v_KD, tl.trans(grad_MD), C), tl.load(at + 1, row_M < length, 0.0)[None, :], score_KM, softcap2, C)
        dk_KD += dot(ds_KM, q_MD, C)
        m += C.BLOCK_M
        last = m >= low + blocks * C.BLOCK_M
        head, m = tl.where(last, head + 1, head), tl.where(last, low, m)
    store_keys(dk, dv, dk_KD, dv_KD, scale, start, first, length, kv_head, C)


@triton.jit(do_not_specialize=["tokens", "tile_count"])
def varlen_dkv_tma_kernel(
    q, k, v, grad_out, rows, dk, dv, tiles, tokens, tile_count, window, scale, score_scale, softcap2, C: tl.constexpr
):
    """The same; q, k, v, grad_out and rows are tensor descriptors. Sequences shorter than a block of queries are the other kernel's."""
    start, length, live, first, kv_head = key_tile(tiles, tile_count, C)
    length = tl.where((first >= 0) & (length >= C.BLOCK_M), length, 0)
    first = tl.maximum(first, 0)
    BLOCK_K: tl.constexpr = C.BLOCK_K
    BLOCK_D: tl.constexpr = C.BLOCK_D
    column_K = first + tl.arange(0, C.BLOCK_K)
    k_KD = fetch(k, start + first, kv_head, C)
    v_KD = fetch(v, start + first, kv_head, C)
    dk_KD = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    dv_KD = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    low, blocks = query_range(first, length, live, window, C)
    # What the loop computes addresses from is 32 bits wide: registers are scarce.
    origin, first_head = start.to(tl.int32), kv_head.to(tl.int32) * C.GROUP
    for turn in tl.range(0, blocks * C.GROUP, warp_specialize=True):
        head = first_head + turn // blocks
        m = low + turn % blocks * C.BLOCK_M
        # The last block is read from its length before the sequence's end, as the forward kernel reads its keys.
        at = tl.minimum(m, length - C.BLOCK_M)
        q_MD = fetch(q, origin + at, head, C)
        score_KM = scores2(dot(k_KD, tl.trans(q_MD), C), score_scale, softcap2, C)
        rows_M4 = rows.load([head * tokens + origin + at, 0])
        p_KM = tl.exp2(score_KM - of_rows(rows_M4, 0, C)[None, :])
        p_KM = tl.where(sees((at + tl.arange(0, C.BLOCK_M))[None, :], column_K[:, None], m, window, C), p_KM, 0.0)
        grad_MD = fetch(grad_out, origin + at, head, C)
        dv_KD += dot(p_KM, grad_MD, C)
        ds_KM = score_gradient(p_KM, dot(v_KD, tl.trans(grad_MD), C), of_rows(rows_M4, 1, C)[None, :], score_KM, softcap2, C)
        dk_KD += dot(ds_KM, q_MD, C)
    store_keys(dk, dv, dk_KD, dv_KD, scale, start, first, length, kv_head, C)
