"""What an evaluation asks: sets by their names, by file, folder or Hub name, generated ones, and those of environments.

A set by name lies below the data folder, as `hf download --repo-type dataset` or one's own script has left it, or comes from the Hub where
the package `datasets` is installed. Its problems' ids begin with the name and not with a path, so that they, and all that is sampled of
them, are the same wherever it lies.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from soundrl.engine.config import Config
from soundrl.engine.environments.environment import Environment, build_environment, is_environment
from soundrl.engine.environments.files import ProblemFiles, load_file
from soundrl.engine.problems import content, set_names
from soundrl.fapo.data.examples import examples, formless
from soundrl.fapo.data.left_out import LeftOut
from soundrl.fapo.data.rows import RowError
from soundrl.fapo.data.sources import on_disk
from soundrl.fapo.records import Prompt
from soundrl.genrm.journal import digest


@dataclass(frozen=True)
class Known:
    """A public set."""

    places: tuple[str, ...]
    """Where it is looked for below the data folder, the first that is there."""
    hub: str
    folder: str
    """Into which it is downloaded as one of these places."""
    rows: int
    """Problems that it is published with; another number is said."""


SETS = {
    "aime24": Known(("aime24.jsonl", "aime24.parquet", "aime24", "AIME_2024", "aime_2024"), "HuggingFaceH4/aime_2024#train", "aime24", 30),
    "aime25": Known(("aime25.jsonl", "aime25.parquet", "aime25", "AIME2025", "aime_2025"), "math-ai/aime25#test", "aime25", 30),
    "math500": Known(("math500.jsonl", "MATH-500#test", "math500"), "HuggingFaceH4/MATH-500#test", "MATH-500", 500),
    "gsm8k": Known(("gsm8k-test.jsonl", "gsm8k/main#test", "gsm8k#test"), "openai/gsm8k@main#test", "gsm8k", 1319),
    "amc23": Known(("amc23.jsonl", "amc23.parquet", "amc23"), "math-ai/amc23#test", "amc23", 40),
    "gpqa-diamond": Known(
        ("gpqa_diamond.csv", "gpqa/gpqa_diamond.csv", "gpqa-diamond.jsonl", "gpqa-diamond"),
        "Idavidrein/gpqa@gpqa_diamond#train",
        "gpqa",
        198,
    ),
    "olympiadbench": Known(
        (
            "olympiadbench.jsonl",
            "OlympiadBench/OE_TO_maths_en_COMP",
            "OlympiadBench/OlympiadBench/OE_TO_maths_en_COMP",
            "olympiadbench",
        ),
        "Hothan/OlympiadBench@OE_TO_maths_en_COMP#train",
        "OlympiadBench",
        674,
    ),
}
"""GPQA's options stand in an order that follows from seed and content (`fapo/data/options.py`), whoever has built the file."""


def reads_the_hub() -> bool:
    return importlib.util.find_spec("datasets") is not None


def resolved(source: str, data_dir: str) -> str:
    """The place of a set that is known by its name; anything else as it is. ValueError, with what to download, where it is nowhere."""
    if source not in SETS or on_disk(source):
        return source
    known = SETS[source]
    for place in known.places:
        path = os.path.join(data_dir, place)
        if os.path.exists(path.partition("#")[0]):
            return path
    if reads_the_hub():
        return known.hub
    name = known.hub.partition("#")[0].partition("@")[0]
    raise ValueError(
        f"--data {source}: none of {', '.join(known.places)} is below {data_dir} (--data-dir); hf download --repo-type dataset {name} "
        f"--local-dir {os.path.join(data_dir, known.folder)}, or pip install datasets, which brings it by itself"
    )


@dataclass(kw_only=True, eq=False)
class ProblemSet:
    """One set, its problems checked."""

    name: str
    source: str
    """As it was named."""
    prompts: list[Prompt]
    environment: Environment
    """Who checks the responses."""
    config: Config
    """As a run on this set alone would have it."""
    tokens: dict[str, np.ndarray]
    """Token ids of the prompts by id, int32; of a model elsewhere none."""

    @property
    def sha256(self) -> str:
        """Of all that is asked and of what it is compared with."""
        return digest([[p.id, p.text, p.messages, p.answer, p.form, p.verifier, dict(p.row)] for p in self.prompts])


def load_sets(
    sources: Sequence[str], data_dir: str, config_of: Callable[[str], Config], tokenizer: Any
) -> tuple[list[ProblemSet], LeftOut]:
    """The sets that `sources` name, and the rows of their files that cannot be read. `config_of`: a run on a place. All files share one
    environment. ValueError for a source that is none, for two that are one, and for an environment without test sets."""
    places = [resolved(source, data_dir) for source in sources]
    try:
        names = set_names(places)
    except ValueError as error:
        raise ValueError(str(error).replace("data.test", "--data")) from None
    left_out, sets, files = LeftOut(), list[ProblemSet](), dict[str, Environment]()
    for source, place, name in zip(sources, places, names, strict=True):
        config = config_of(place)
        if is_environment(place):
            environment = build_environment(place, config, tokenizer)
            parts = environment.tests()
            if not parts:
                raise ValueError(f"--data {source}: the environment has no test sets of its own; name a file, or give it tests()")
        else:
            environment = files.setdefault("", ProblemFiles(config, tokenizer))
            parts = {source if source in SETS else name: list(load_file(config, place, left_out))}
        for part, prompts in parts.items():
            taken = any(part == other.name for other in sets)
            called = f"{part} of {source}" if taken else part
            sets.append(ProblemSet(name=called, source=source, prompts=prompts, environment=environment, config=config, tokens={}))
    return sets, left_out


def check(
    sets: Sequence[ProblemSet], left_out: LeftOut, encode: Callable[[ProblemSet], Callable[[Prompt], np.ndarray]], beside: Path
) -> list[str]:
    """Prompts become tokens, references are tried; what is to be said of it. Rows that cannot be used are all named in one ValueError and
    listed in the file `beside`; with `data.skip_unusable` the sets go on without them."""
    said = list[str]()
    for part in sets:
        encoder, faults, read = encode(part), dict[str, RowError](), len(part.prompts)
        for prompt, why in zip(part.prompts, part.environment.unusable(part.prompts), strict=True):
            try:
                part.tokens[prompt.id] = encoder(prompt)
            except RowError as error:
                reason = error.reason.replace("model.max_length", "the model's context").replace(
                    "rollout.max_new_tokens", "--max-new-tokens"
                )
                faults[prompt.id] = RowError(reason, error.field, error.place)
            if why:
                faults.setdefault(prompt.id, RowError(why, "answer", prompt.id))
        if faults:
            for file in dict.fromkeys(id_.rpartition(":")[0] for id_ in faults):
                left_out.add(file, read, [fault for id_, fault in faults.items() if id_.rpartition(":")[0] == file])
            part.prompts = [prompt for prompt in part.prompts if prompt.id not in faults]
    if left_out.rows:
        left_out.write(beside)
        if not sets[0].config.data.skip_unusable:
            raise ValueError(f"{left_out}; all are listed in {beside}: correct them, or go on without them by --skip-unusable")
        said += left_out.counts()
    for part in sets:
        said += of_set(part)
    return said


def of_set(part: ProblemSet) -> list[str]:
    """What there is to say of a set that has been checked; a public one's problems get the ids that they have everywhere. ValueError where
    none of it can be used."""
    if not part.prompts:
        raise ValueError(f"--data {part.source}: no row is left that can be used")
    verifier, count = part.config.data.verifier, len(part.prompts)
    said = [line for line in part.environment.ready(part.prompts[0])]
    if isinstance(part.environment, ProblemFiles):
        said += filter(None, [formless(part.name, part.prompts, verifier)])
        said += examples(part.name, part.prompts, verifier)[:1]
    if (distinct := len(set(map(content, part.prompts)))) < count:
        said.append(f"{part.name}: {count:,} rows, {distinct:,} distinct problems")
    if part.source in SETS:
        if (published := SETS[part.source].rows) != count and not part.config.data.test_rows:
            said.append(f"{part.name}: {count:,} problems, but it is published with {published:,}: figures of others are of other problems")
        files = {prompt.id.rpartition(":")[0] for prompt in part.prompts}

        def own(id_: str) -> str:
            file, _, row = id_.rpartition(":")
            return f"{part.source}:{row}" if len(files) == 1 else f"{part.source}/{Path(file).stem}:{row}"

        part.tokens = {own(id_): tokens for id_, tokens in part.tokens.items()}
        part.prompts = [replace(prompt, id=own(prompt.id)) for prompt in part.prompts]
    return said
