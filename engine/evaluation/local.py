"""A model folder in this process: no FSDP, no optimizer, no trainer; vLLM reads the weights itself, or plain torch does."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from soundrl.engine.config import Config, Model
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.environment import answers
from soundrl.engine.evaluation.protocol import LONGEST
from soundrl.engine.evaluation.sets import ProblemSet
from soundrl.engine.files.model_folder import check_folder, companions, load_config, load_tokenizer, weight_files
from soundrl.engine.ranks import Ranks
from soundrl.engine.samplers.sampler import Request, Sampler
from soundrl.engine.samplers.turns import Turns
from soundrl.fapo.records import Prompt, Rollout
from soundrl.genrm.journal import digest
from soundrl.genrm.make.stages import file_digest


class Local:
    """`settings`: of the model, whose `max_length` is its context here. ValueError, one line, where the folder is none or incomplete."""

    remote = False
    come: Sequence[Rollout] = ()
    """See `Served`: what the engine holds when it is stopped costs nobody but us."""

    def __init__(self, settings: Model, engine: str, ranks: Ranks) -> None:
        self.folder = check_folder(settings.path, "--model")
        self.tokenizer, self.settings, self.engine, self.ranks = load_tokenizer(self.folder), settings, engine, ranks
        self.context = settings.rope_base_length or load_config(self.folder).max_position_embeddings
        self.encoders: dict[str, Encoder] = {}
        self.sampler: Sampler | None = None

    @property
    def made_from(self) -> dict[str, object]:
        """What its rollouts follow from, beside protocol and problems: by content, not by the folder's name."""
        same = {"dtype": self.settings.dtype, "rope_base_length": self.settings.rope_base_length, "engine": self.engine}
        template = self.tokenizer.chat_template
        prompt = "as it stands, without a chat template" if template is None else f"chat template, SHA-256 {digest(template)}"
        return {"model": {"sha256": folder_digest(self.folder), "on": self.ranks.device.type} | same, "prompt": prompt}

    @property
    def part(self) -> int:
        """Requests that are sampled anew together: with torch a batch's last bits depend on what is in it."""
        if self.engine != "torch":
            return 1
        from soundrl.engine.samplers.torch_sampler import MAX_SEQUENCES

        return MAX_SEQUENCES

    def encoder(self, part: ProblemSet, max_new_tokens: int) -> Encoder:
        """ValueError where the context has no room for a prompt beside so many new tokens."""
        if (room := self.context - max(max_new_tokens, 1)) < 1:
            raise ValueError(
                f"--max-new-tokens {max_new_tokens} leaves no room for a prompt in the context of {self.folder}, {self.context} tokens; "
                "lower it, or set --rope-base-length for a model that reads further than its config says"
            )
        self.encoders[part.name] = Encoder(self.tokenizer, room, part.environment.schemas)
        return self.encoders[part.name]

    def lengths(self, sets: Sequence[ProblemSet], max_new_tokens: int) -> tuple[int, int]:
        """Tokens of the longest prompt and its response, and of the longest response."""
        longest = max(len(tokens) for part in sets for tokens in part.tokens.values())
        new = max_new_tokens or min(LONGEST, self.context - longest)
        return longest + new, new

    def sample(self, part: ProblemSet, config: Config, requests: Sequence[Request]) -> Generator[Rollout]:
        """Each rollout as it is whole. The engine starts with the first request, with `config`."""
        if not requests:
            return
        sampler = self.sampler = self.sampler or self._started(config)
        prompts: Mapping[str, Prompt] = {prompt.id: prompt for prompt in part.prompts}
        turns = Turns(sampler, self.encoders[part.name], part.environment, config.rollout.turns[0]) if answers(part.environment) else None
        step = self.part if self.part > 1 else len(requests)
        for start in range(0, len(requests), step):
            batch = requests[start : start + step]
            yield from sampler.generate(batch) if turns is None else turns.generate(batch, prompts, lambda: False)

    def _started(self, config: Config) -> Sampler:
        if self.engine == "torch":
            from transformers.utils.logging import disable_progress_bar

            from soundrl.engine.samplers.torch_sampler import TorchSampler

            disable_progress_bar()
            return TorchSampler(self.folder, self.tokenizer, config.model, self.ranks)
        from soundrl.engine.samplers.vllm_sampler import VllmSampler

        return VllmSampler(self.folder, self.tokenizer, config.model, config.rollout, self.ranks, loads=True)

    def check(self, sets: Sequence[ProblemSet]) -> None:
        """Nothing is left to check."""

    def close(self) -> None:
        if self.sampler is not None:
            self.sampler.close()
            self.sampler = None


def folder_digest(folder: Path) -> str:
    """SHA-256 of a model: of its weights, configuration and tokenizer, by the names of their files. Some seconds for 15 GB."""
    found = {file.name: file for file in (*weight_files(folder), folder / "config.json")}
    whole = {name: hashlib.sha256(content).hexdigest() for name, content in companions(folder).items() if not name.startswith("LICENSE")}
    for name, file in found.items():
        whole[name] = file_digest(file)
    return hashlib.sha256("".join(f"{name} {whole[name]}\n" for name in sorted(whole)).encode()).hexdigest()
