"""The problems of a run: training rows and evaluation sets by name, checked over all ranks, and demonstrations made from them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path, PurePath

from soundrl.engine.config import Config
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.arithmetic import chains
from soundrl.engine.environments.arithmetic.critic import ArithCriticSource
from soundrl.engine.packing import Sample
from soundrl.engine.ranks import Ranks
from soundrl.fapo.data.files import boxed_solution, load_prompts
from soundrl.fapo.data.left_out import LeftOut
from soundrl.fapo.data.prompt_stream import PromptStream
from soundrl.fapo.data.puzzles import PREFIX
from soundrl.fapo.data.rows import RowError, file_id
from soundrl.fapo.records import Prompt
from soundrl.fapo.verify.verifier import Verifier
from soundrl.genrm.critic_data.labelled import load_critic

ENDLESS_TEST_ROWS = 400

Source = chains.ArithSource | ArithCriticSource | list[Prompt]
Tests = dict[str, list[Prompt]]
Faults = dict[tuple[str, str | bytes], str]
"""Why a thing cannot be used, by the field and what the rows that hold it share."""


def set_names(paths: Sequence[str]) -> list[str]:
    """A name each, as short as can be: a file's last part without suffix, and as many folders before it as tell the sets apart.

    ValueError where two are one file, or one generated set.

    >>> set_names(["aime24/test.jsonl", "math500/test.jsonl", "gsm8k.jsonl", "arith", "rg:chain_sum?seed=1"])
    ['aime24/test', 'math500/test', 'gsm8k', 'arith', 'rg:chain_sum']
    """
    known: dict[str, str] = {}
    names: list[list[str]] = []
    for path in paths:
        kind, _, query = path.partition("?")
        if generated := path == "arith" or path.startswith(PREFIX):
            same = "?".join([kind, *sorted(query.split("&"))])
        else:
            same = os.path.realpath(path)
        if same in known:
            raise ValueError(f"data.test names one set twice, as {known[same]} and {path}; name it once")
        known[same] = path
        if generated:
            names.append([kind, path])
            continue
        whole = PurePath(file_id(path)).parts
        short = PurePath(os.path.splitext(file_id(path))[0]).parts
        # At last the path as it was given, which is unique.
        names.append([str(PurePath(*parts[-n:])) for parts in (short, whole) for n in range(1, len(parts) + 1)])
    return [next((name for name in own if all(name not in other for other in names if other is not own)), own[-1]) for own in names]


def build_sources(config: Config, left_out: LeftOut | None = None) -> tuple[Source, Tests]:
    """Training problems, and evaluation sets by name. Unusable rows as in `load_prompts`."""
    data, critic = config.data, config.run.task != "reasoning"

    def load(path: str, rows: int | None) -> list[Prompt]:
        if critic:
            return load_critic(path, max_rows=rows, left_out=left_out)
        return load_prompts(path, instruction=data.instruction, max_rows=rows, left_out=left_out)

    # One evaluation seed for all runs, so that seeds can be compared; p = 2 asks for the tens digit, where carries pay, and a critic meets
    # flaws as in training, and others.
    if critic:
        embedded = (ArithCriticSource(0, "test"), ArithCriticSource(0, "test", unseen=True))
    else:
        embedded = (chains.ArithSource(0, "test"), chains.ArithSource(0, "test", place=2))
    train: Source = type(embedded[0])(config.run.seed) if data.train == "arith" else load(data.train, None)
    tests: Tests = {}
    for path, name in zip(data.test, set_names(data.test), strict=True):
        if path == "arith":
            tests |= {source.name: [source.prompt(i) for i in range(data.test_rows or ENDLESS_TEST_ROWS)] for source in embedded}
        else:
            # A file may be called like one of the embedded sets.
            tests[file_id(path) if name in {source.name for source in embedded} else name] = load(path, data.test_rows or None)
    return train, tests


class Problems:
    """Loads the problems that `config` names; `check` leaves those that the run can use.

    `train` is a list or, for the embedded world, an endless source; `tests` the evaluation sets by name; `left_out` what is unusable.
    """

    def __init__(self, config: Config) -> None:
        self.config, self.left_out = config, LeftOut()
        self.train, self.tests = build_sources(config, self.left_out)

    def check(self, encode: Encoder, verifier: Verifier | None, ranks: Ranks, say: Callable[[str], None]) -> None:
        """Prompt lengths, references and worked solutions of all rows; a collective, each rank checks its share of what is distinct.

        Where rows cannot be used every rank raises the same ValueError, which names the first; `<run>.left_out.jsonl` beside the run's
        folder holds all. With `data.skip_unusable` the run goes on without them, and `say` counts them, file by file; a row of which the
        solution alone is unusable remains, without it.
        """
        if self.config.warm_start.steps:
            encode.response("")  # a tokenizer without end token is no fault of a row
        sets = ({self.config.data.train: self.train} if isinstance(self.train, list) else {}) | self.tests
        keys = {name: [content(row) for row in part] for name, part in sets.items()}
        rows = [row for part in sets.values() for row in part]
        asked = dict(zip([key for part in keys.values() for key in part], rows, strict=True))
        golds = list(dict.fromkeys(row.answer for row in rows)) if verifier is not None else []
        warm = self.train if isinstance(self.train, list) and self.config.warm_start.steps else []
        mine: Faults = {}
        for key, row in list(asked.items())[ranks.rank :: ranks.size]:
            try:
                encode(row)
            except RowError as error:
                mine["prompt", key] = error.reason
        own = golds[ranks.rank :: ranks.size]
        checked = verifier.check_golds(own) if verifier is not None else []
        mine |= {("answer", gold): why for gold, why in zip(own, checked, strict=True) if why}
        mine |= {("solution", row.id): why for row in warm[ranks.rank :: ranks.size] if (why := self._solution_fault(row, encode))}
        faults: Faults = {}
        for part in ranks.gather(mine):
            faults |= part
        for name, part in keys.items():
            if (distinct := len(set(part))) < len(part):
                say(f"{name}: {len(part):,} rows, {distinct:,} distinct problems")
        for name, part in sets.items() if verifier is not None else ():
            if formless := sum(row.form is None for row in part):
                say(f"{name}: {formless:,} of {len(part):,} prompts ask for no known form of answer; a \\boxed{{…}} is looked for there")
        if self.left_out.rows or faults:
            self._leave_out(rows, faults, ranks, say)
        for name, part in {self.config.data.train: self.train, **self.tests}.items():
            if isinstance(part, list) and not part:
                raise ValueError(f"{name}: no row is left that can be used: {self.left_out}")

    def _leave_out(self, rows: Sequence[Prompt], faults: Faults, ranks: Ranks, say: Callable[[str], None]) -> None:
        read = Counter(id.rpartition(":")[0] for id in {row.id for row in rows})
        found: dict[str, list[RowError]] = {file: [] for file in read}
        for row in rows:
            shared = (("prompt", content(row)), ("answer", row.answer), ("solution", row.id))
            if (field := next((pair for pair in shared if pair in faults), None)) is not None:
                found[row.id.rpartition(":")[0]].append(RowError(faults[field], field[0], row.id))
        for file, errors in found.items():
            self.left_out.add(file, read[file], errors)
        if not self.config.data.skip_unusable:
            # Beside the run's folder, which a run that does not start leaves as it was.
            path = Path(self.config.run.folder) / f"{self.config.run.name}.left_out.jsonl"
            if ranks.main:
                self.left_out.write(path)
            raise ValueError(f"{self.left_out}; all are listed in {path}: correct them, or go on without them by --data.skip-unusable")
        for line in self.left_out.counts():
            say(line)
        out = self.left_out.rows

        def usable(part: list[Prompt]) -> list[Prompt]:
            kept = [row for row in part if row.id not in out or out[row.id].field == "solution"]
            return [replace(row, solution=None) if row.id in out else row for row in kept]

        self.train = usable(self.train) if isinstance(self.train, list) else self.train
        self.tests = {name: usable(part) for name, part in self.tests.items()}

    def _solution_fault(self, row: Prompt, encode: Encoder) -> str | None:
        longest = self.config.model.max_length
        try:
            length = 0 if row.solution is None else demonstration(row, encode).length
        except ValueError as error:
            return error.reason if isinstance(error, RowError) else str(error)
        if length > longest:
            return f"{length} tokens with its prompt, more than model.max_length {longest}; raise it or remove the row"
        return None


def content(prompt: Prompt) -> bytes:
    """16 bytes that stand for what the policy is asked."""
    parts = [prompt.text] if prompt.messages is None else [part for message in prompt.messages for part in message.values()]
    return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def demonstration(row: Prompt, encode: Encoder) -> Sample:
    """A row's worked solution as a supervised sample. ValueError where it cannot be used."""
    return Sample(prompt_tokens=encode(row), tokens=encode.response(boxed_solution(row.solution or "", row.answer)))


Demonstrations = Callable[[int, int], list[Sample]]


def build_demonstrations(config: Config, source: Source, encode: Encoder) -> Demonstrations:
    """(step, steps in all) → the warm start's samples of that step, over all ranks; `Problems.check` has seen that they can be made.

    The embedded world plants errors (and its critic leaves its drills) in the last 40 %: from the first step on, arithmetic never forms.
    """
    batch = config.warm_start.batch
    encode.response("")
    if not isinstance(source, list):

        def made(step: int, steps: int) -> list[Sample]:
            # Far from the indices that the rollouts use, so that no RL prompt has been a demonstration.
            pairs = [source.demonstration(2**40 + step * batch + i, step >= 0.6 * steps) for i in range(batch)]
            return [Sample(prompt_tokens=encode(prompt), tokens=encode.response(said)) for prompt, said in pairs]

        return made
    rows = [prompt for prompt in source if prompt.solution is not None]
    if not rows:
        raise ValueError(
            f"warm_start.steps is {config.warm_start.steps}, but no row of {config.data.train} has a solution; set --warm-start.steps 0"
        )
    stream = PromptStream(rows, config.run.seed)
    # The stream is the same on every rank; each takes its part of the batch itself, so any number of ranks fits.
    return lambda step, steps: [demonstration(row, encode) for row in stream.take(batch)]
