"""Causal attention over packed sequences. Shapes: T tokens of B sequences, Hq query heads, Hkv key heads, D head dimension, N tiles."""

# pyright: reportArgumentType=false, reportOptionalMemberAccess=false
from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from soundrl.kernels.backend import check_softcap, operator, require, runs_triton, schema_of, wide
from soundrl.kernels.varlen_launch import Scores, addressable, check_cu_seqlens, launch_backward, launch_forward, sequence_tiles, tile_bound

if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor
else:
    DTensor = ()  # of which nothing is an instance

SMALLEST_D, LARGEST_D, STEP_D = 16, 256, 8
LARGEST_WINDOW = 2**30  # a position plus a window stays within 32 bits
PIECE = 256  # query rows at once where there is a mask, or where scores are written down

# PyTorch's own attention on CPUs, one call below the one that autograd knows: it gives the LSE, and takes it back.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Span(NamedTuple):
    """Query rows [row, end) of one sequence and all the keys they see, [key, end)."""

    key: int
    row: int
    end: int

    def hidden(self, window: int, device: torch.device) -> Tensor:
        """[rows, keys], True where a row must not look."""
        distance = torch.arange(self.row, self.end, device=device)[:, None] - torch.arange(self.key, self.end, device=device)
        return (distance < 0) | (distance >= (window or self.end))

    def triangle(self, window: int) -> bool:
        """Whether all that is hidden are later keys, of as many as there are rows."""
        return self.key == self.row and not 0 < window < self.end - self.row


def spans(lengths: list[int], window: int, in_pieces: bool) -> Iterator[Span]:
    """Sequence after sequence: whole, or in pieces of `PIECE` rows where there is a window or the caller asks.

    Worked example (PIECE = 256): lengths [3, 300], window 10 → (0, 0, 3), (3, 3, 259), (250, 259, 303).
    """
    start = 0
    for length in lengths:
        step = PIECE if in_pieces or 0 < window < length else max(length, 1)
        for row in range(0, length, step):
            first_key = max(row - window + 1, 0) if window else 0
            yield Span(start + first_key, start + row, start + min(row + step, length))
        start += length


def write_scores(q: Tensor, k: Tensor, hidden: Tensor, scores: Scores) -> tuple[Tensor, Tensor | float]:
    """Scores [heads …, rows, keys] in fp32 (fp64 for fp64), −inf where hidden, and the slope of the softcap at them."""
    with torch.autocast(q.device.type, enabled=False):
        score, slope = (q.to(wide(q)) @ k.to(wide(q)).mT) * scores.scale, 1.0
    if scores.softcap:
        bent = torch.tanh(score / scores.softcap)
        score, slope = scores.softcap * bent, 1.0 - bent * bent
    return score.masked_fill(hidden, -torch.inf), slope


def varlen_attention_reference(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    lengths: list[int],
    scale: float | None = None,
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """`varlen_attention` by SDPA and autograd, sequence after sequence, in any floating type; scores are written down for a softcap.

    `lengths` are those of the sequences, on the host: `cu_seqlens.diff().tolist()`, computed once a batch, serves every layer.
    """
    scores = Scores(q_THD.shape[-1] ** -0.5 if scale is None else scale, window or 0, softcap or 0.0)
    group = q_THD.shape[1] // k_THD.shape[1]
    parts = [q_THD[:0]]
    for span in spans(lengths, scores.window, bool(softcap)):
        q, k, v = (x[a : span.end].transpose(0, 1)[None] for x, a in ((q_THD, span.row), (k_THD, span.key), (v_THD, span.key)))
        if softcap:
            k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
            score, _ = write_scores(q, k, span.hidden(scores.window, q.device), scores)
            out = score.softmax(-1).to(q.dtype) @ v
        elif span.triangle(scores.window):
            out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scores.scale, enable_gqa=group > 1)
        else:
            seen = ~span.hidden(scores.window, q.device)
            out = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scores.scale, enable_gqa=group > 1)
        parts.append(out[0].transpose(0, 1))
    # Rows of no sequence are zeros, whatever stands in them.
    return torch.cat([*parts, torch.zeros_like(q_THD[sum(lengths) :])])


def flash_mask(q: Tensor, span: Span, scores: Scores) -> tuple[bool, Tensor | None]:
    """`is_causal` and `attn_mask`."""
    if span.triangle(scores.window):
        return True, None
    return False, q.new_zeros(()).masked_fill(span.hidden(scores.window, q.device), -torch.inf)


def attend(q: Tensor, k: Tensor, v: Tensor, span: Span, scores: Scores) -> tuple[Tensor, Tensor]:
    """One span, without autograd: q [Hkv, group, rows, D], k and v [Hkv, group, keys, D] → output and LSE."""
    if q.is_cpu and not scores.softcap:
        causal, mask = flash_mask(q, span, scores)
        return _flash(q, k, v, 0.0, causal, attn_mask=mask, scale=scores.scale)
    score, _ = write_scores(q, k, span.hidden(scores.window, q.device), scores)
    lse = score.logsumexp(-1)
    return (torch.exp(score - lse[..., None]) @ v.to(score.dtype)).to(q.dtype), lse


def attend_backward(
    grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, k: Tensor, v: Tensor, span: Span, scores: Scores
) -> tuple[Tensor, ...]:
    """Gradients of q, k and v, in fp32 (fp64 for fp64): products of 16 bits are slower on CPUs, several times where it has none."""
    grad, q, k, v, out = (x.to(wide(q)) for x in (grad, q, k, v, out))
    if q.is_cpu and not scores.softcap:
        causal, mask = flash_mask(q, span, scores)
        return _flash_backward(grad, q, k, v, out, lse, 0.0, causal, attn_mask=mask, scale=scores.scale)
    score, slope = write_scores(q, k, span.hidden(scores.window, q.device), scores)
    p = torch.exp(score - lse[..., None])
    ds = p * (grad @ v.mT - (grad * out).sum(-1, keepdim=True)) * slope * scores.scale
    return ds @ k, ds.mT @ q, p.mT @ grad


def grouped(x_THD: Tensor, kv_heads: int, group: int) -> Tensor:
    """[Hkv, group, T, D], a view; keys and values, of one head a group, are there for each of its query heads."""
    return x_THD.unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3).expand(-1, group, -1, -1)


QKV = "Tensor q_THD, Tensor k_THD, Tensor v_THD"
SCORES = schema_of(Scores)


@operator(f"varlen_attention({QKV}, Tensor packing, {SCORES}) -> (Tensor, Tensor)")
def forward(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, packing: Tensor, *scores: Any) -> tuple[Tensor, Tensor]:
    """Output [T, Hq, D] in q's type and the scores' LSE [Hq, T] (to base 2 where Triton runs); both 0 in rows behind the last boundary.

    `packing` is the list of tiles where Triton runs, `cu_seqlens` elsewhere.
    """
    out_THD, lse_HT = outputs(q_THD)
    scores = Scores(*scores)
    if runs_triton(q_THD):
        launch_forward(q_THD, k_THD, v_THD, out_THD, lse_HT, packing, scores)
        return out_THD, lse_HT
    lengths = packing.diff().tolist()
    out_THD[sum(lengths) :] = lse_HT[:, sum(lengths) :] = 0
    kv_heads, group = k_THD.shape[1], q_THD.shape[1] // k_THD.shape[1]
    q, k, v, out = (grouped(x, kv_heads, group) for x in (*map(addressable, (q_THD, k_THD, v_THD)), out_THD))
    lse = lse_HT.unflatten(0, (kv_heads, group))
    for span in spans(lengths, scores.window, scores.softcap > 0 or not q.is_cpu):
        rows, keys = slice(span.row, span.end), slice(span.key, span.end)
        some = attend(q[:, :, rows], k[:, :, keys], v[:, :, keys], span, scores)
        out[:, :, rows], lse[:, :, rows] = some
    return out_THD, lse_HT


@forward.register_fake
def outputs(q_THD: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return q_THD.new_empty(q_THD.shape), q_THD.new_empty((q_THD.shape[1], q_THD.shape[0]), dtype=wide(q_THD))


SAVED = f"{QKV}, Tensor out_THD, Tensor lse_HT, Tensor packing"


@operator(f"varlen_attention_backward(Tensor grad_out_THD, {SAVED}, {SCORES}) -> (Tensor, Tensor, Tensor)")
def backward(grad_out_THD: Tensor, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """dQ [T, Hq, D], dK and dV [T, Hkv, D], in the inputs' types; 0 in rows behind the last boundary."""
    out_THD, lse_HT, packing, *scores = rest
    scores = Scores(*scores)
    if runs_triton(q_THD):
        given = (grad_out_THD, q_THD, k_THD, v_THD, out_THD, lse_HT)
        dq_THD, dk_THD, dv_THD = gradients(*given[:4])
        launch_backward(given, (dq_THD, dk_THD, dv_THD), packing, scores)
        return dq_THD, dk_THD, dv_THD
    kv_heads, group = k_THD.shape[1], q_THD.shape[1] // k_THD.shape[1]
    lengths, dq_THD = packing.diff().tolist(), q_THD.new_empty(q_THD.shape)
    dq_THD[sum(lengths) :] = 0
    # Pieces of one sequence share keys: their gradients are summed in fp32.
    dk_THD, dv_THD = (k_THD.new_zeros(k_THD.shape, dtype=wide(q_THD)) for _ in range(2))
    grad, q, k, v, out, dq = (
        grouped(x, kv_heads, group) for x in (*map(addressable, (grad_out_THD, q_THD, k_THD, v_THD)), out_THD, dq_THD)
    )
    lse = lse_HT.unflatten(0, (kv_heads, group))
    for span in spans(lengths, scores.window, scores.softcap > 0 or not q.is_cpu):
        rows, keys = slice(span.row, span.end), slice(span.key, span.end)
        own, of_keys = [x[:, :, rows] for x in (grad, q, out, lse)], (k[:, :, keys], v[:, :, keys])
        some = attend_backward(*own, *of_keys, span, scores)  # type: ignore[call-arg]
        dq[:, :, rows] = some[0]
        dk_THD[keys].add_(some[1].sum(1).transpose(0, 1))
        dv_THD[keys].add_(some[2].sum(1).transpose(0, 1))
    return dq_THD, dk_THD.to(q_THD.dtype), dv_THD.to(q_THD.dtype)


@backward.register_fake
def gradients(_: Tensor, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, *__: object) -> tuple[Tensor, Tensor, Tensor]:
    return q_THD.new_empty(q_THD.shape), k_THD.new_empty(k_THD.shape), v_THD.new_empty(v_THD.shape)


def _setup_context(ctx, inputs, output) -> None:
    q_THD, k_THD, v_THD, packing, *ctx.scores = inputs
    out_THD, lse_HT = output
    ctx.mark_non_differentiable(lse_HT)
    ctx.save_for_backward(q_THD, k_THD, v_THD, out_THD, lse_HT, packing)


def _backward(ctx, grad_out_THD: Tensor, _: Tensor | None) -> tuple:
    return *backward(grad_out_THD, *ctx.saved_tensors, *ctx.scores), None, None, None, None


forward.register_autograd(_backward, setup_context=_setup_context)


def placements(x: Tensor) -> tuple[Any, ...]:
    return x.placements if isinstance(x, DTensor) else ()


def as_autocast(x: Tensor) -> Tensor:
    """In autocast's type, as SDPA takes it: the operators below compute in the type that they are given."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) and x.dtype != torch.float64 else x


def check_arguments(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, cu_seqlens: Tensor, scale: float, window: int | None, softcap: float | None
) -> None:
    """ValueError naming the argument, what it conflicts with, and the cure."""

    def shapes() -> str:
        return f"q {tuple(q_THD.shape)}, k {tuple(k_THD.shape)}, v {tuple(v_THD.shape)}"

    require(q_THD.ndim == k_THD.ndim == v_THD.ndim == 3, lambda: f"{shapes()}: give [T, heads, D] each, without a batch dimension")
    tokens, heads, head_dim = q_THD.shape
    kv_heads = k_THD.shape[1]
    require(
        k_THD.shape == v_THD.shape and k_THD.shape[0] == tokens and k_THD.shape[2] == head_dim,
        lambda: f"{shapes()}: k and v must have one shape, and q's number of tokens and head dimension",
    )
    require(
        kv_heads > 0 and heads % kv_heads == 0,
        lambda: f"{heads} query heads cannot share {kv_heads} key heads evenly; the key heads must divide the query heads",
    )
    require(
        head_dim % STEP_D == 0 and SMALLEST_D <= head_dim <= LARGEST_D,
        lambda: (
            f"head dimension {head_dim} is not supported: multiples of {STEP_D} from {SMALLEST_D} to {LARGEST_D} are; pad q, k and v with "
            "zeros and pass `scale`, or use varlen_attention_reference"
        ),
    )
    cast = torch.is_autocast_enabled(q_THD.device.type) and torch.float64 not in (q_THD.dtype, k_THD.dtype, v_THD.dtype)
    for name, x in (("k", k_THD), ("v", v_THD)):
        require(
            x.device == q_THD.device and (cast or x.dtype == q_THD.dtype),
            lambda name=name, x=x: f"{name} is {x.dtype} on {x.device}, q is {q_THD.dtype} on {q_THD.device}; bring them together",
        )
        require(
            placements(x) == placements(q_THD),
            lambda name=name, x=x: f"{name} is placed as {placements(x)}, q as {placements(q_THD)}; redistribute one of them",
        )
    require(
        all(at.is_replicate() or at.is_shard(1) for at in placements(q_THD)),
        lambda: (
            f"q, k and v are placed as {placements(q_THD)}: attention needs whole rows of tokens; redistribute to Replicate() or Shard(1)"
        ),
    )
    require(cu_seqlens.device == q_THD.device, lambda: f"cu_seqlens is on {cu_seqlens.device}, q on {q_THD.device}; move cu_seqlens there")
    require(scale > 0, lambda: f"scale={scale} must be > 0; None = 1/√D")
    require(window is None or window > 0, lambda: f"window={window} must be > 0; None = no window")
    check_softcap(softcap)


def varlen_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    cu_seqlens: Tensor,
    scale: float | None = None,
    *,
    window: int | None = None,
    softcap: float | None = None,
    tiles_N4: Tensor | None = None,
) -> Tensor:
    """Causal attention that never crosses a sequence boundary, with a deterministic backward.

    q_THD [T, Hq, D], k_THD and v_THD [T, Hkv, D] with Hkv dividing Hq, in one type: float32, bfloat16 or float16 (sums in float32), or
    float64; under autocast, its type. D a multiple of 8 from 16 to 256; any strides, copied only where rows are not dense. DTensors of
    one placement, replicated or sharded by heads, give one. `cu_seqlens` [B+1] int32 or int64 on the same device: sequence b holds tokens
    cu_seqlens[b] … cu_seqlens[b+1] − 1; sequences may be empty. Rows from cu_seqlens[B] on belong to none: their output and gradients
    are 0. `scale` of the scores, 1/√D by default; `window`: a token sees that many keys, its own included; `softcap`:
    softcap · tanh(score / softcap). `tiles_N4` from `sequence_tiles(cu_seqlens, T)`, for Triton, saves making it in every layer.

    Returns [T, Hq, D]. What a sequence is packed with, NaN included, changes none of its values, and by Triton none of its bits. On a CPU
    PyTorch's flash attention serves, sequence by sequence, with gradients in float32; for a softcap there, and for float64 on a GPU, scores
    are written down, 256 rows at a time. ValueError names what does not fit. Scores and gradients: FlashAttention-2, arXiv 2307.08691;
    softcap: Gemma 2, arXiv 2408.00118 §2.
    """
    scale = q_THD.shape[-1] ** -0.5 if scale is None else scale
    check_arguments(q_THD, k_THD, v_THD, cu_seqlens, scale, window, softcap)
    if isinstance(q_THD, DTensor):  # heads do not meet: each rank's are its own affair
        spread: tuple[Any, ...] = q_THD, k_THD, v_THD
        local = varlen_attention(
            *(x.to_local() for x in spread), cu_seqlens=cu_seqlens, scale=scale, window=window, softcap=softcap, tiles_N4=tiles_N4
        )
        whole = local.new_empty(spread[0].shape, device="meta")
        mesh, placed = spread[0].device_mesh, spread[0].placements
        return DTensor.from_local(local, mesh, placed, run_check=False, shape=whole.shape, stride=whole.stride())  # type: ignore[attr-defined]
    q_THD, k_THD, v_THD = (as_autocast(x) for x in (q_THD, k_THD, v_THD))
    tokens, packing = q_THD.shape[0], cu_seqlens
    if runs_triton(q_THD):
        packing = sequence_tiles(cu_seqlens, tokens) if tiles_N4 is None else tiles_N4
        shape = (tile_bound(tokens, len(cu_seqlens) - 1), 4)
        require(
            packing.shape == shape and packing.dtype == torch.int32 and packing.device == q_THD.device,
            lambda: (
                f"tiles_N4 {tuple(packing.shape)} {packing.dtype} on {packing.device} was made for another packing; call "
                f"sequence_tiles(cu_seqlens, {tokens})"
            ),
        )
    else:
        require(
            tiles_N4 is None,
            lambda: f"tiles_N4 is for the Triton kernels, which do not run {q_THD.dtype} on {q_THD.device} here; leave it out",
        )
        check_cu_seqlens(cu_seqlens, tokens)
    return forward(q_THD, k_THD, v_THD, packing, scale, min(window or 0, LARGEST_WINDOW), softcap or 0.0)[0]
