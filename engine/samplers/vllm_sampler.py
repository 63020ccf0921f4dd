"""vLLM inside the trainer's process: one engine per tensor-parallel group of torchrun's ranks (vLLM 0.26 – 0.32, CPU and GPU)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from soundrl.engine.config import Model
from soundrl.engine.config import Rollout as RolloutSettings
from soundrl.engine.files.model_folder import end_tokens
from soundrl.engine.launch.last_words import RANK
from soundrl.engine.ranks import Ranks
from soundrl.engine.samplers.sampler import More, Request, no_more
from soundrl.engine.samplers.shared_memory import named_apart
from soundrl.engine.samplers.vllm_routes import Routes
from soundrl.fapo.records import Rollout
from soundrl.genrm.serve.api_server import inspect_here

MAX_SEQUENCES = 256  # rollouts decoded at once; the rest queue inside vLLM
MAX_BATCHED_TOKENS = 8192
ROOMS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # ranks that vLLM makes room for
AGREE = 16  # rounds of decoding between looks whether the ranks of an engine leave


def reload_layerwise(worker: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Runs in vLLM's worker: stream `tensors` through its layerwise reload, the one path for CPU, GPU and fused layers."""
    from vllm.config import set_current_vllm_config

    runner = worker.model_runner
    with torch.device(worker.device), set_current_vllm_config(worker.vllm_config), experts_packed_anew(runner.get_model()):
        runner.reload_weights(weights_iterator=tensors, is_checkpoint_format=True)
        for head, embedding in tied_heads(runner.get_model()):
            pack_tied_head(head, embedding)


def tied_heads(model: Any) -> Iterator[tuple[Any, Any]]:
    """vLLM's heads on a CPU whose weight is an embedding's, each with that embedding."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    layers = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    heads = [layer for layer in layers if isinstance(layer, ParallelLMHead) and layer.weight.device.type == "cpu"]
    yield from ((head, layer) for head in heads for layer in layers if layer is not head and layer.weight is head.weight)


def pack_tied_head(head: Any, embedding: Any) -> None:
    """A tied head is in no tensor list. On CPU vLLM packs its weight at start-up and would keep that packed copy of the old weights
    without a word. The embedding, in which the same values have just been packed, lends it its own: the largest tensor is packed once."""
    if hasattr(embedding, "cpu_linear"):
        head.cpu_linear = embedding.cpu_linear
    else:
        head.quant_method.process_weights_after_loading(head)


@contextmanager
def experts_packed_anew(model: Any) -> Iterator[None]:
    """Within, experts that are loaded are packed as at start-up. On CPU vLLM 0.32 packs them as it sets up their kernel, and at no later
    time: what a reload brings would lie there as it came, and be read as if it were packed, without a word. Experts whose kernel is taken
    away are set up again when they are loaded; those that were not have theirs back."""
    all_methods = (getattr(module, "quant_method", None) for module in model.modules())
    methods: dict[int, Any] = {id(method): method for method in all_methods if hasattr(method, "moe_kernel")}
    kernels = {key: method.moe_kernel for key, method in methods.items() if next(model.parameters()).device.type == "cpu"}
    for key in kernels:
        methods[key].moe_kernel = None
    try:
        yield
    finally:
        for key, kernel in kernels.items():
            methods[key].moe_kernel = methods[key].moe_kernel or kernel


def clear_kv_memory(worker: Any) -> None:
    """Runs in vLLM's worker: what no request holds any more is 0, not what the last one left there."""
    for layer in worker.model_runner.kv_caches:
        layer.zero_()


class Room(NamedTuple):
    """For adapters: the ranks of those held at once, the policy's first, tokens of the longest sequence (0 = as the policy's), and the last
    names of the layers that they add to (none = every layer)."""

    ranks: tuple[int, ...]
    length: int = 0
    layers: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """That each has room for. ValueError for a rank that vLLM has no room for."""
        if (largest := max(self.ranks)) > ROOMS[-1]:
            raise ValueError(f"model.lora or genrm.model has rank {largest}, and vLLM's adapters at most {ROOMS[-1]}; lower it")
        return next(room for room in ROOMS if largest <= room)

    @property
    def arguments(self) -> dict[str, Any]:
        """vLLM's. Left alone it makes room in every layer that it could, the embedding, the head and all experts among them."""
        only = {"lora_target_modules": list(self.layers)} if self.layers else {}
        return {"enable_lora": True, "max_loras": len(self.ranks), "max_lora_rank": self.rank, **only}


class VllmSampler:
    """See `Sampler`. All ranks of a tensor-parallel group must pass the same requests in the same order."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Any,
        model: Model,
        settings: RolloutSettings,
        ranks: Ranks,
        *,
        loads: bool = False,
        adapters: Room | None = None,
    ) -> None:
        """`loads`: the folder's weights at once, where no trainer brings any. `adapters`: the room for those that it will hold, on the
        folder's weights."""
        on_cpu = ranks.device.type == "cpu"
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        if on_cpu:
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # binding would pin the trainer's threads as well
            if settings.eager:  # read as vLLM is imported: a C++ compiler would run for one comparison in its sampler
                os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        try:
            from vllm import LLM
            from vllm.engine.arg_utils import EngineArgs
        except ImportError as error:
            raise ValueError(
                f"rollout.engine is vllm, but it cannot be imported ({error}); install requirements/cpu.txt or requirements/gpu.txt, "
                "or use the slow --rollout.engine torch"
            ) from error
        if on_cpu:
            inspect_here(folder)
        overrides: dict[str, Any] = {"head_dtype": "float32"}  # logits as the trainer's head makes them
        if model.rope_base_length:
            overrides["max_position_embeddings"] = model.rope_base_length
        more = adapters.arguments if adapters else {}  # an older vLLM cannot be told layers: it makes room in all, and computes the same
        threads, longest = torch.get_num_threads(), max(model.max_length, adapters.length if adapters else 0)
        with named_apart(ranks) if on_cpu and settings.tensor_parallel > 1 else nullcontext():
            self.llm = LLM(
                str(folder),
                dtype=model.dtype,
                max_model_len=longest,
                hf_overrides=overrides,
                distributed_executor_backend="external_launcher",
                tensor_parallel_size=settings.tensor_parallel,
                seed=ranks.rank // settings.tensor_parallel,
                logprobs_mode="processed_logprobs",
                gpu_memory_utilization=0.3 if on_cpu else settings.memory,
                kv_cache_memory_bytes=int(settings.memory * 2**30) if on_cpu else None,
                max_num_seqs=MAX_SEQUENCES,
                max_num_batched_tokens=max(MAX_BATCHED_TOKENS, longest),
                # A seeded request whose prompt is cut into chunks ends vLLM's CPU engine: "CPU Generator does not use offset".
                enable_chunked_prefill=not on_cpu,
                enforce_eager=settings.eager,
                enable_sleep_mode=not on_cpu,
                enable_prefix_caching=True,
                disable_log_stats=True,
                use_tqdm_on_load=False,
                load_format="safetensors" if loads or adapters else "dummy",  # the first sync brings every tensor, and the gate proves it
                trust_remote_code=False,
                **{name: value for name, value in more.items() if name in EngineArgs.__dataclass_fields__ or name != "lora_target_modules"},
            )
        torch.set_num_threads(threads)
        self.tokenizer = tokenizer
        self.routes = Routes.of(self.llm, graphs=not (on_cpu or settings.eager))
        self.stop_tokens = end_tokens(folder, tokenizer)
        self.on_cpu, self.longest = on_cpu, longest
        self.version, self.engine, self.slots = 0, ranks.rank // settings.tensor_parallel, MAX_SEQUENCES
        self.requested, self.poisoned, self.adapts = 0, False, bool(adapters)
        self.given, self.wears, self.judge = 0, None, None
        """Adapters taken, the one that requests are answered with, and that of the judge where it is asked here"""
        self.together: Any = None
        self.first = self.engine * settings.tensor_parallel
        self.leads = ranks.rank == self.first
        for first in range(0, ranks.size, settings.tensor_parallel) if settings.tensor_parallel > 1 else ():
            group = dist.new_group(list(range(first, first + settings.tensor_parallel)), backend="gloo")  # a collective of all ranks
            if first <= ranks.rank < first + settings.tensor_parallel:
                self.together = group

    def generate(self, requests: Sequence[Request], leaving: Callable[[], bool] = lambda: False, more: More = no_more) -> Iterator[Rollout]:
        engine, pending, rounds = self.llm.llm_engine, dict[str, Request](), 0
        new: Sequence[Request] | None = requests
        while new is not None or pending:
            pending |= {self._add(request): request for request in new or ()}
            RANK.beat()
            rounds += 1
            if self._agreed(leaving, rounds):
                engine.abort_request(list(pending))
                return
            for output in engine.step() if pending else ():
                if output.finished:
                    yield self._rollout(pending.pop(output.request_id), output.outputs[0])  # type: ignore[index]
            if pending and not engine.has_unfinished_requests():
                lost = next(iter(pending.values()))
                raise RuntimeError(
                    f"vLLM finished with {len(pending)} requests unanswered; the first is {lost.prompt_id} sample {lost.sample}"
                )
            new = more(not pending)

    def _add(self, request: Request) -> str:
        """The number by which vLLM knows it."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_new_tokens,
            ignore_eos=request.ignore_end,
            stop_token_ids=None if request.ignore_end else self.stop_tokens,
            seed=request.seed,
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self.requested += 1
        if self.routes is not None and self.routes.active:
            self.routes.asked[str(self.requested)] = request.prompt_id
        self.llm.llm_engine.add_request(
            str(self.requested), {"prompt_token_ids": request.prompt_tokens.tolist()}, params, lora_request=self.wears
        )
        return str(self.requested)

    def of_engine(self, value: Any) -> Any:
        if self.together is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=self.first, group=self.together)
        return box[0]

    def _agreed(self, leaving: Callable[[], bool], rounds: int) -> bool:
        """Whether all ranks of this engine leave: they decode in step, so that one alone would stand still."""
        if self.together is None:
            return leaving()
        if rounds % AGREE:
            return False
        flag = torch.tensor([float(leaving())])
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.together)
        return bool(flag)

    def _rollout(self, request: Request, completion: Any) -> Rollout:
        tokens = np.array(completion.token_ids, np.int32)
        logprobs = np.array(completion.logprobs.logprobs, np.float32)  # None is NaN
        if len(logprobs) != len(tokens):
            raise RuntimeError(f"vLLM returned {len(logprobs)} log-probabilities for {len(tokens)} tokens of {request.prompt_id}")
        self.poisoned |= bool(np.isnan(logprobs).any())
        return Rollout(
            prompt_id=request.prompt_id,
            sample=request.sample,
            prompt_tokens=request.prompt_tokens,
            tokens=tokens,
            logprobs=logprobs,
            text=self.tokenizer.decode(completion.token_ids, skip_special_tokens=True),
            finish_reason=completion.finish_reason,
            policy_version=self.version,
        )

    def sleep(self) -> None:
        if not self.on_cpu:
            # Level 2 drops weights too: every step loads new ones anyway. A base under adapters is loaded once, and waits on the host.
            self.llm.sleep(level=1 if self.adapts else 2)

    def wake(self, part: str) -> None:
        if not self.on_cpu:
            self.llm.wake_up(tags=[part])

    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self.llm.collective_rpc(reload_layerwise, args=(tensors,))
        self.version += 1

    def adapt(self, folder: Path) -> None:
        """The adapter in `folder` (PEFT's format) is the policy's from now on; the one before goes."""
        if self.wears is not None:  # first, or vLLM would make room by itself, of the judge's maybe
            self.llm.llm_engine.remove_lora(self.wears.lora_int_id)
        self.wears = self._taken(folder, "policy")
        self.version += 1

    def hold(self, folder: Path) -> None:
        """The judge's adapter in `folder`, beside the policy's, for `judging`."""
        self.judge = self._taken(folder, "judge")

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Within, requests are answered with the judge's adapter."""
        assert self.judge is not None
        policy, self.wears = self.wears, self.judge
        try:
            yield
        finally:
            self.wears = policy

    def _taken(self, folder: Path, name: str) -> Any:
        """The adapter, under a number that no other has had: vLLM keeps what it has read of a number or a name."""
        from vllm.lora.request import LoRARequest

        self.given += 1
        request = LoRARequest(f"{name}-{self.given}", self.given, str(folder))
        if not self.llm.llm_engine.add_lora(request):
            raise RuntimeError(f"vLLM did not take the adapter in {folder}")
        return request

    def reset_cache(self) -> None:
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM refused to reset its prefix cache: requests are still running")
        # vLLM's CPU attention multiplies the rest of a sequence's last block by 0: one NaN there, left by weights long gone,
        # makes every later answer NaN. On a GPU kernels read a block only as far as it is filled, and sleep gives the memory back.
        if self.on_cpu and self.poisoned:
            self.llm.collective_rpc(clear_kv_memory)
            self.poisoned = False

    def close(self) -> None:
        self.routes = None
        del self.llm
