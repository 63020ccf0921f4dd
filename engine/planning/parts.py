"""What a rank holds in memory, part by part, in bytes: each formula once, with what stands behind it.

Counted: shapes of tensors, what FSDP2 allocates of them (torch/distributed/fsdp/_fully_shard), what autograd saves (`shapes`). *Predicted*,
as no GPU has measured them here: CUDA's context, CUDA graphs, NCCL's buffers, vLLM's work. N parameters, W ranks that share a copy of the
model, T tokens of a micro-batch, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from soundrl.engine.config import Config
from soundrl.engine.gather import most_alive
from soundrl.engine.memory.moments import BLOCK, PLACES
from soundrl.engine.planning.shapes import Shapes, shard
from soundrl.engine.policy import KEEP_GATHERED
from soundrl.engine.ranks import shards_of
from soundrl.engine.samplers.vllm_sampler import MAX_BATCHED_TOKENS, MAX_SEQUENCES
from soundrl.engine.weight_sync import AGAIN
from soundrl.kernels.head_chunks import USUAL, bytes_per_logit, chunk_rows, head_memory

GIB = 2**30
CONTEXT = {"cuda": 1.0 * GIB, "cpu": 0.8 * GIB}
"""CUDA's context, libraries' kernels and the allocator's slack (predicted), of a sleeping judge as well; on CPU the interpreter with torch,
transformers and vLLM loaded (measured, 775 to 801 MiB)."""
NCCL = 0.5 * GIB
"""Predicted, of a communicator: 4 MiB a channel and direction and protocol (NCCL_BUFFSIZE), 16 to 32 channels."""
GRAPH = 0.2 * 2**20
"""Predicted, of one layer in one CUDA graph: nodes and parameters; what a graph computes with lies in one pool that all share."""
PACKED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that vLLM's models compute in one product."""
STREAMED = PLACES * BLOCK
"""Elements of each moment that are on the device while an update streams through."""
WIDEST_ALIVE = 4  # tensors as wide as the widest that a layer holds at once without gradient: residual, gate, up and their product


def element_size(config: Config) -> int:
    return 4 if config.model.dtype == "float32" else 2


def trainer_state(of: Shapes, size: int, ranks: int, save_memory: tuple[str, ...] = ()) -> dict[str, float]:
    """What one of `ranks` that share a copy keeps of weights and optimizer, in bytes: 12 and 4 for gradients a trained parameter, and
    `size` a frozen one. With `moments` the two of AdamW stay on the host, but for the blocks under way."""
    own = shard(of.adapters or of.tensors, ranks)
    # A gradient in `size`, and in float32 to be reduced: of a layer, while the head's waits for the others that are in none; or of these.
    reduced = max(of.layer * (size + 4) + of.hidden * of.vocabulary * size, of.outside * (size + 4))
    if of.adapters:
        reduced = of.adapted / of.layers * (size + 4)
    moments = 8 * (min(own, STREAMED) if "moments" in save_memory else own)
    return {
        **({"frozen weights": size * shard(of.tensors, ranks)} if of.adapters else {}),
        "master weights, float32": 4 * own,
        "AdamW moments, float32": moments,
        "gradients, float32": 4 * own,
        "gathered weights and one layer's gradient": gathered(of, size, ranks) + reduced,
    }


def gathered(of: Shapes, size: int, ranks: int) -> float:
    """Weights gathered for computing, in bytes: all where the model is small (ZeRO-2), else two layers and what is in no layer: of one
    layer the parameters, of the next the all-gather's output, which FSDP2 copies out of and then frees. A single rank gathers nothing
    ahead."""
    small = of.parameters <= KEEP_GATHERED
    return size * (of.parameters if small else (2 if ranks > 1 else 1) * of.layer + of.outside)


def slots(of: Shapes, names: Iterable[str], rank: int, held: int) -> int:
    """Elements that vLLM has for `held` adapters of at most `rank` on layers of these (last) names: A [rank, inputs] and B
    [outputs, rank] of each. What it computes in one product has room as a whole (vllm/lora/layers/base_linear.py).

    Worked example: 3 layers with q_proj 8 → 8, k_proj and v_proj 8 → 4; adapters on q_proj have room for 3 · (16 + 12 + 12) · rank each.
    """
    asked = {*names}
    wide = asked.union(*(group for group in PACKED if asked.intersection(group)))
    return held * rank * sum(of.linear.get(name, 0) for name in wide)


def on_host(of: Shapes, size: int, ranks: int, a_machine: int, save_memory: tuple[str, ...]) -> float:
    """Pinned bytes of one machine with so many ranks, for the trainer's own. With `offload` a frozen base goes there as well."""
    own, offload = shard(of.adapters or of.tensors, ranks), "offload" in save_memory
    frozen = size * shard(of.tensors, ranks) if of.adapters and offload else 0
    return a_machine * (own * (8 * ("moments" in save_memory or offload) + 4 * offload) + frozen)


def reference_state(config: Config, of: Shapes, size: int, ranks: int, on_gpu: bool) -> dict[str, float]:
    """What one rank keeps of the KL term's reference, in bytes; nothing where there is no such term, or where it is the frozen base, with
    the adapters of step 0 or without any. Its pass needs less than training."""
    weight, _, place = config.loss.kl
    away = on_gpu and place != "sharded"
    return {f"reference{', on the host' if away else ''}": shard(of.tensors, ranks) * size} if weight and not of.adapters else {}


def trainer_work(of: Shapes, size: int, tokens: int, recomputed: bool, on_gpu: bool) -> dict[str, float]:
    """What one micro-batch of `tokens` needs, in bytes: activations that wait for the backward pass, what that pass makes of a layer, and
    the fused head; the last two are not there at once (`at_once`). A frozen head has chunks of logits and no gradient of its weight."""
    whole, layer = of.saved * tokens, of.saved * tokens / of.layers
    # The gradient of the widest product and what that is made of, and the gradient of what layers hand on.
    back = (2 * of.widest + size * of.hidden) * tokens
    head = head_memory(tokens, of.hidden, of.vocabulary, size, True, USUAL, on_gpu).peak  # fp32 logits, as `Policy` calls it
    if of.adapters:
        head = logits(of, size, tokens, on_gpu) + size * of.hidden * tokens
    kept = {"activations": whole, "gradients of activations": back}
    if recomputed:
        kept = {"activations between layers": of.layers * of.hidden * size * tokens, "activations and gradients of one layer": layer + back}
    return kept | {"head: chunk of logits, gradient of its weight": head}


def at_once(work: dict[str, float]) -> float:
    """Of `trainer_work`: the head is done, gradient and all, before the first layer goes back."""
    kept, back, head = work.values()
    return kept + max(back, head)


def logits(of: Shapes, size: int, tokens: int, on_gpu: bool) -> float:
    """One chunk of the head's, in bytes."""
    each = bytes_per_logit(size, True)
    return chunk_rows(tokens, of.vocabulary, each, USUAL, on_gpu) * of.vocabulary * each


def gate_work(of: Shapes, size: int, tokens: int, on_gpu: bool) -> float:
    """The gate's own forward pass over a micro-batch of probes, beside a sampler that is wholly awake; nothing is kept for a backward."""
    return WIDEST_ALIVE * of.widest * tokens + logits(of, size, min(tokens, AGAIN), on_gpu)


def in_flight(of: Shapes, size: int, ranks: int) -> float:
    """Weight sync from shards over `ranks`: the buckets that are alive, and what vLLM's loaders hold: the largest tensor, or the experts of
    a layer, which it takes as a whole."""
    experts = Counter[str]()
    for name, elements in of.named.items():
        experts[name.partition(".experts.")[0]] += elements * (".experts." in name)
    alive = most_alive({name: elements * size for name, elements in of.named.items()}, ranks)
    return alive + max(of.largest, *experts.values()) * size


def captured(sequences: int) -> list[int]:
    """Batch sizes that vLLM captures a CUDA graph of: 1, 2, 4, eights up to 256, then sixteens up to twice the sequences, at most 512
    (vllm/config/vllm.py, `_set_cudagraph_sizes`; 1024 on Blackwell)."""
    most = min(2 * sequences, 512)
    return [n for n in (1, 2, 4, *range(8, 256, 8), *range(256, most + 1, 16)) if n <= most]


def cuda_graphs(of: Shapes, sequences: int) -> float:
    """Bytes, predicted: each size once in pieces, and those a decoding batch can have once as a whole. vLLM takes them out of its share
    (`profile_cudagraph_memory`, since 0.2x by default), so the KV cache shrinks by them."""
    sizes = captured(sequences)
    return (len(sizes) + sum(size <= sequences for size in sizes)) * of.layers * GRAPH


def engine_work(of: Shapes, eager: bool, batched: int = MAX_BATCHED_TOKENS, sequences: int = MAX_SEQUENCES) -> float:
    """What vLLM keeps free of its share on a GPU for computing, predicted: a batch's widest tensor twice, logits, CUDA graphs."""
    return batched * of.widest * 2 + sequences * of.vocabulary * 4 + (0.0 if eager else cuda_graphs(of, sequences))


def communicators(config: Config, ranks: int, on_gpu: bool) -> dict[str, float]:
    """NCCL's buffers, predicted: one communicator over the ranks that share a copy, one over replicas, one of a vLLM engine's ranks."""
    replicas, parallel = config.model.replicas, config.rollout.tensor_parallel
    shared = shards_of(ranks, replicas)
    count = (shared > 1) + (replicas > 1) + (parallel > 1)
    return {"NCCL's buffers": NCCL * count} if on_gpu and count else {}
