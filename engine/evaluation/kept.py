"""An evaluation's folder: what it was made from, and every rollout, in a run's format (`docs/run-folder.md`).

    runs/eval-x/config.json                                   configuration, and `evaluation`: what all of it was made from
                rollouts/step-000000/rank-0.eval-<set>.arrows whole once a set is
                underway/<set>/                               what has been sampled and judged of a set that is not
                metrics.jsonl, scores.json                    the figures
                judged/<judge>/step-000000-eval/              verdicts of another judge (`again`)

Killed at any point, the same command goes on; another one is refused.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from soundrl.engine.config import Config
from soundrl.engine.evaluation.served import ERROR
from soundrl.engine.evaluation.sets import ProblemSet
from soundrl.engine.files.rollout_file import RolloutWriter, file_name
from soundrl.engine.files.run_folder import locked
from soundrl.engine.files.run_reader import FORMAT, RunReader
from soundrl.engine.files.underway import Key, Underway, next_start, read_rollouts
from soundrl.engine.files.whole import whole
from soundrl.engine.launch.last_words import remove
from soundrl.engine.ranks import Ranks
from soundrl.engine.samplers.sampler import Request
from soundrl.engine.samplers.turns import LOST
from soundrl.fapo.records import Group, Rollout
from soundrl.genrm.verdict import UNASKED

GROUPS = 32  # written at once
CHANGED = 8  # settings that a refusal names


@contextmanager
def unbroken() -> Iterator[None]:
    """What is written here is written whole: Ctrl-C or SIGTERM is heard behind it."""
    if threading.current_thread() is not threading.main_thread():  # which hears none
        yield
        return
    heard: list[signal.Signals] = []
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, frame: heard.append(signal.Signals(number)))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in heard[:1]:
            signal.raise_signal(number)


class Kept(AbstractContextManager["Kept"]):
    """ValueError where another process writes to the folder, or it is of another evaluation or of a run."""

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self.path, self.ranks = path, ranks
        self.rollouts = path / "rollouts" / "step-000000"

    def __enter__(self) -> Kept:
        self.new = not self.path.exists()
        self.rollouts.mkdir(parents=True, exist_ok=True)
        try:
            self.lock = locked(self.path)
        except ValueError as error:
            raise ValueError(str(error).replace("--run.name", "--out")) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self.new and not (self.path / "config.json").is_file():
            remove(self.path)  # it has not begun
        self.lock.close()

    def begin(self, config: Config, made_from: dict[str, Any]) -> None:
        """Takes the folder, or goes on with it where it is of the same evaluation."""
        self.name = config.model.path
        file, made_from = self.path / "config.json", json.loads(json.dumps(made_from))
        if file.is_file():
            before = RunReader(self.path).config.get("evaluation")
            if not isinstance(before, dict):
                raise ValueError(f"{self.path} is a training run's folder; name another --out")
            was, now = flat(before), flat(made_from)
            if changed := sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name)):
                what = ", ".join(f"{name} {_short(was.get(name))} (now {_short(now.get(name))})" for name in changed[:CHANGED])
                raise ValueError(f"{self.path} is an evaluation with {what}; give it the same, or name another --out")
            return
        with whole(file) as beside:
            beside.write_text(json.dumps({"format": FORMAT, **dataclasses.asdict(config), "evaluation": made_from}, indent=2) + "\n")

    def file(self, part: ProblemSet) -> Path:
        return self.rollouts / file_name(0, "eval", part.name)

    def underway(self, part: ProblemSet) -> Underway:
        folder = self.path / "underway" / file_name(0, "eval", part.name).removeprefix("rank-0.eval-").removesuffix(".arrows")
        return Underway(folder, self.ranks, next_start(folder))

    def known(self, part: ProblemSet, underway: Underway) -> dict[Key, Rollout]:
        """What has been sampled of a set, and, told to `underway`, its verdicts; but for what was lost on the way, or never judged."""
        mine = {prompt.id: (prompt, part.tokens[prompt.id]) for prompt in part.prompts}
        found = underway.begin(0, 0, mine)
        if (file := self.file(part)).is_file():
            for rollout, verdict in read_rollouts(file, mine, kinds=("eval",)):
                found[key := (rollout.prompt_id, rollout.sample)] = rollout
                if verdict is not None and verdict.reason not in UNASKED:
                    underway.told[key] = verdict
        return {key: rollout for key, rollout in found.items() if keeps(rollout)}

    def save(self, part: ProblemSet, groups: Sequence[Group]) -> None:
        """A set that is whole."""
        with whole(self.file(part)) as beside, RolloutWriter(beside, "eval", part.name) as file:
            for start in range(0, len(groups), GROUPS):
                file.add(groups[start : start + GROUPS])
            file.end([sum(len(group.rollouts) for group in groups)])

    def end(self, metrics: dict[str, float]) -> None:
        """All sets are whole."""
        with whole(self.path / "metrics.jsonl") as beside:
            beside.write_text(json.dumps({"step": 0, **metrics}) + "\n")
        remove(self.path / "underway")


def keeps(rollout: Rollout) -> bool:
    """Whether a rollout is the model's; one that the way to it, or the machine, has lost is sampled again."""
    return not rollout.finish_reason.startswith(ERROR) and rollout.finish_reason != LOST


def lacking(requests: Sequence[Request], known: dict[Key, Rollout], part: int) -> list[Request]:
    """Requests that are to be sampled, and dropped from what is `known`: parts of so many are sampled anew together or not at all.

    Worked example, `part` 2: of requests a b | c d, where b, c and d are known, a and b.
    """
    out = list[Request]()
    for start in range(0, len(requests), part):
        together = requests[start : start + part]
        if any((request.prompt_id, request.sample) not in known for request in together):
            out += together
    for request in out:
        known.pop((request.prompt_id, request.sample), None)
    return out


def flat(said: dict[str, Any], within: str = "") -> dict[str, Any]:
    """
    >>> flat({"sampling": {"seed": 0}, "judge": "none"})
    {'sampling.seed': 0, 'judge': 'none'}
    """
    out = dict[str, Any]()
    for name, value in said.items():
        out |= flat(value, f"{within}{name}.") if isinstance(value, dict) else {f"{within}{name}": value}
    return out


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
