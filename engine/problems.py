"""The problems of a run: training rows and evaluation sets by name, checked over all ranks, and what is made from them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path, PurePath

import numpy as np

from soundrl.engine.config import Config
from soundrl.engine.encode import Encoder
from soundrl.engine.environments.environment import Environment, answers, build_environment, is_environment
from soundrl.engine.environments.files import load_file, worked
from soundrl.engine.packing import Sample
from soundrl.engine.ranks import Ranks
from soundrl.engine.weight_sync import PROBES
from soundrl.fapo.data.left_out import LeftOut
from soundrl.fapo.data.puzzles import PREFIX
from soundrl.fapo.data.rows import RowError, file_id
from soundrl.fapo.records import Prompt, Reply, Turn

PROBE_CHARACTERS = 16
Tests = dict[str, list[Prompt]]
Demonstrations = Callable[[int, int], list[Sample]]
Faults = dict[tuple[str, str | bytes], str]
"""Why a thing cannot be used, by the field and what the rows that hold it share."""


def set_names(paths: Sequence[str]) -> list[str]:
    """A name each, as short as can be: a file's last part without suffix, and as many folders before it as tell the sets apart.

    ValueError where two are one file, or one generated set.

    >>> set_names(["aime24/test.jsonl", "math500/test.jsonl", "gsm8k.jsonl", "rg:chain_sum?seed=1"])
    ['aime24/test', 'math500/test', 'gsm8k', 'rg:chain_sum']
    """
    known: dict[str, str] = {}
    names: list[list[str]] = []
    for path in paths:
        kind, _, query = path.partition("?")
        if generated := is_environment(path) or path.startswith(PREFIX):
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


def load_tests(config: Config, left_out: LeftOut) -> Tests:
    """The sets of `data.test` by name: a named environment's own, and files."""
    named = {path: build_environment(path, config, None).tests() for path in config.data.test if is_environment(path)}
    own = {name for sets in named.values() for name in sets}
    tests: Tests = {}
    for path, name in zip(config.data.test, set_names(config.data.test), strict=True):
        if path in named:
            tests |= named[path]
        else:  # a file may be called like one of an environment's sets
            tests[file_id(path) if name in own else name] = load_file(config, path, config.data.test_rows or None, left_out)
    return tests


class Problems:
    """Loads the problems that `config` names; `check` leaves those that the run can use.

    `train` is a list or an endless source; `tests` the evaluation sets by name; `left_out` what is unusable.
    """

    def __init__(self, config: Config, environment: Environment) -> None:
        self.config, self.environment, self.left_out = config, environment, LeftOut()
        self.train, self.tests = environment.problems(self.left_out), load_tests(config, self.left_out)

    def check(self, encode: Encoder, ranks: Ranks, say: Callable[[str], None]) -> None:
        """Prompt lengths, references and worked solutions of all rows; a collective, each rank checks its share of what is distinct.

        Where rows cannot be used every rank raises the same ValueError, which names the first; `<run>.left_out.jsonl` beside the run's
        folder holds all. With `data.skip_unusable` the run goes on without them, and `say` counts them, file by file; a row of which the
        solution alone is unusable remains, without it.
        """
        if self.config.warm_start.steps:
            encode.response("")  # a tokenizer without end token is no fault of a row
        self.reply(encode)  # nor is a template that takes none
        sets = ({" ".join(self.config.data.train): self.train} if isinstance(self.train, list) else {}) | self.tests
        keys = {name: [content(row) for row in part] for name, part in sets.items()}
        rows = [row for part in sets.values() for row in part]
        asked = dict(zip([key for part in keys.values() for key in part], rows, strict=True))
        share = slice(ranks.rank, None, ranks.size)
        golds = {reference(row): row for row in rows}
        warm = self.train if isinstance(self.train, list) and self.config.warm_start.steps else []
        lines, mine = self._try_checks()
        for key, row in list(asked.items())[share]:
            try:
                encode(row)
            except RowError as error:
                mine["prompt", key] = error.reason
        compared = list(golds.items())[share]
        unusable = self.environment.unusable([row for _, row in compared])
        mine |= {("answer", gold): why for (gold, _), why in zip(compared, unusable, strict=True) if why}
        mine |= {("solution", row.id): why for row in warm[share] if (why := self._solution_fault(row, encode))}
        faults: Faults = {key: why for part in ranks.gather(mine) for key, why in part.items()}
        if ("check", "") in faults:
            raise ValueError(faults["check", ""])
        for line in lines:
            say(line)
        for name, part in keys.items():
            if (distinct := len(set(part))) < len(part):
                say(f"{name}: {len(part):,} rows, {distinct:,} distinct problems")
        for name, part in sets.items():
            if formless := sum(row.form is None for row in part):
                say(f"{name}: {formless:,} of {len(part):,} prompts ask for no known form of answer; a \\boxed{{…}} is looked for there")
        if self.left_out.rows or faults:
            self._leave_out(rows, faults, ranks, say)
        for name, part in {" ".join(self.config.data.train): self.train, **self.tests}.items():
            if isinstance(part, list) and not part:
                raise ValueError(f"{name}: no row is left that can be used: {self.left_out}")

    def _try_checks(self) -> tuple[list[str], Faults]:
        """How responses are checked, tried on the first training row that has a reference: what there is to say, and what is at fault."""
        rows = self.train if isinstance(self.train, list) else [self.train.prompt(0)]
        try:
            return self.environment.ready(next((row for row in rows if row.answer), rows[0])) if rows else [], {}
        except ValueError as error:
            return [], {("check", ""): str(error)}

    def _leave_out(self, rows: Sequence[Prompt], faults: Faults, ranks: Ranks, say: Callable[[str], None]) -> None:
        read = Counter(id.rpartition(":")[0] for id in {row.id for row in rows})
        found: dict[str, list[RowError]] = {file: [] for file in read}
        for row in rows:
            shared = (("prompt", content(row)), ("answer", reference(row)), ("solution", row.id))
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
            length = 0 if row.solution is None else len(encode(row)) + len(encode.response(worked(row)))
        except ValueError as error:
            return error.reason if isinstance(error, RowError) else str(error)
        if length > longest:
            return f"{length} tokens with its prompt, more than model.max_length {longest}; raise it or remove the row"
        return None

    def demonstrations(self, encode: Encoder) -> Demonstrations:
        """(step, steps in all) → the warm start's samples of that step, over all ranks; `check` has seen that they can be made."""
        made = self.environment.demonstrations(self.train)
        return lambda step, steps: [worked_sample(row, said, encode) for row, said in made(step, steps)]

    def reply(self, encode: Encoder) -> np.ndarray:
        """Token ids of a reply for the gate's probes, where the environment answers: the first problem's words, with what the template has
        around them; else none."""
        if not answers(self.environment):
            return np.empty(0, np.int32)
        first = self.train[0] if isinstance(self.train, list) else self.train.prompt(0)
        return encode.reply(Reply(text=first.text[:PROBE_CHARACTERS]))

    def probes(self, encode: Encoder) -> list[np.ndarray]:
        """Token ids of the first training problems, for the gate of the weight sync."""
        first = self.train[:PROBES] if isinstance(self.train, list) else map(self.train.prompt, range(PROBES))
        return [encode(prompt) for prompt in first]


def worked_sample(row: Prompt, said: str | Sequence[Turn], encode: Encoder) -> Sample:
    """What a warm start trains."""
    tokens, mask = encode.worked(said)
    return Sample(prompt_tokens=encode(row), tokens=tokens, mask=None if mask.all() else mask)


def reference(row: Prompt) -> bytes:
    """16 bytes that stand for what its answer is compared with, and how."""
    parts = "\0".join((row.answer, row.verifier, str(row.form), row.text, str(row.row.get("options"))))
    return blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def content(prompt: Prompt) -> bytes:
    """16 bytes that stand for what the policy is asked."""
    parts = [prompt.text] if prompt.messages is None else [part for message in prompt.messages for part in message.values()]
    return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()
