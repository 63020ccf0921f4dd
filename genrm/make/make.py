"""One command from problems to a GenRM that is measured, chosen and ready to serve.

    python -m soundrl.genrm.make --problems dapo.parquet --policies models/Qwen2.5-7B-Instruct qwen@http://10.0.0.5:8000/v1 \\
        --teacher Qwen3-32B@http://10.0.0.6:8000/v1 --base models/Qwen3-4B-Instruct-2507 --exclude gsm8k.json math.json \\
        --report gsm8k.json math.json --out models/genrm -- --rollout.prompts 256

| stage | what it does |
|---|---|
| sampled | each policy solves each problem `--samples` times |
| labelled | of the solutions with a right answer the teacher names the first wrong step, `--votes` times; those on which all agree stay |
| split | rows to train on, to choose a checkpoint by, and to report: apart by problem |
| trained | `engine/train.py` with R_process (arXiv 2510.22543 Eq. 7); what follows `--` are settings of it |
| benchmarked | every checkpoint that was kept is served and judges the rows to choose by; step 0 is `--base` itself |
| selected | the earliest within `--distance` of the best F1 under `--mean-tokens` is served once more, for the rows to report |
| written | `--out`: its folder with `card.json`, which `genrm.judge serve` takes |

Work stands in `<out>.work`, a folder a stage. Killed anywhere, the same command goes on and ends in the same card; other settings are
refused with what differs. A fault of a server is asked again, by the same command too, and is never a label or a verdict.

Training on many machines: when `--until split` has ended, run the line that `--plan` prints by torchrun or Slurm; the same command finds
it done.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from soundrl.fapo.named import is_named
from soundrl.genrm import evaluate, selection
from soundrl.genrm.journal import digest
from soundrl.genrm.make import card
from soundrl.genrm.make.rows import Making, labelled, sampled, split
from soundrl.genrm.make.stages import STAGES, Found, Stages, digests, file_digest
from soundrl.genrm.make.training import train, train_command
from soundrl.genrm.make.world import World, world_of
from soundrl.genrm.scores import Score

Until = Literal["sampled", "labelled", "split", "trained", "benchmarked", "selected", "written"]


@dataclass(frozen=True, kw_only=True)
class Arguments(Making, selection.Choosing):
    """Command line of `python -m soundrl.genrm.make`."""

    base: Path
    """Model folder that becomes the GenRM."""
    out: Path
    """Folder of the GenRM; the work stands in `<out>.work`."""
    recipe: str = "genrm-4b"
    """Recipe of the training (`engine/recipes.py`)."""
    prompt: str = "own"
    """The judge's prompt, by name (`genrm/prompts.py`), in training and in every measurement."""
    steps: int = 200
    """Training steps."""
    every: int = 20
    """Steps between checkpoints, all of which are kept and measured."""
    until: Until = "written"
    """Last stage to do."""
    plan: bool = False
    """Say what would be done, with sizes and commands, and do nothing."""

    def check(self) -> None:
        super().check()
        if not (self.base / "config.json").is_file():
            raise ValueError(f"--base {self.base} is no model folder (it has no config.json)")
        if self.steps < 1 or self.every < 1:
            raise ValueError(f"--steps {self.steps} --every {self.every}: both must be at least 1")

    @property
    def work(self) -> Path:
        return self.out.with_name(self.out.name + ".work")

    def training(self, more: Sequence[str]) -> list[str]:
        """The command that trains."""
        rows, kept = self.work / "split" / "train.jsonl", (self.every, 2, self.every)
        settings: dict[str, tuple[object, ...]] = {"model.path": (self.base,), "data.train": (rows,), "data.test": ()}
        settings |= {"warm-start.steps": (0,), "run.seed": (self.seed,), "run.steps": (self.steps,), "run.eval-every": (0,)}
        # A solution that is too long for the recipe is counted and left out; nobody wants to edit rows that a policy has sampled.
        settings |= {"run.save": kept, "genrm.prompt": (self.prompt,), "data.skip-unusable": ()}
        return train_command(self.work / "trained", self.recipe, settings, more)

    def choosing(self, out: Path, data: Sequence[Path | str]) -> selection.Arguments:
        """How checkpoints are measured on `data`: greedily, with the rows' own reference answers."""
        own = {field.name: getattr(self, field.name) for field in fields(selection.Choosing)} | {"votes": 1, "temperature": 0.0}
        run = self.work / "trained" / "run"
        return selection.Arguments(run=run, data=tuple(map(str, data)), out=out, references="own", **own)

    def stamp(self, *names: str) -> dict[str, Any]:
        return {name.replace("_", "-"): json.loads(json.dumps(getattr(self, name), default=str)) for name in names}


def identity(who: str) -> str:
    """What a model is known by in a stamp: an endpoint's name, a function's path, the digest of a folder's weights."""
    return who.partition("@http")[0] if "@http" in who or is_named(who) else weights(Path(who))


def weights(folder: Path) -> str:
    """One digest of a folder's files."""
    return digest(digests(folder))[:16]


def pipeline(arguments: Arguments, more: Sequence[str], world: World, stages: Stages) -> dict[str, Found]:
    """What each stage has found, by its name, up to `--until`."""
    work, found = arguments.work, dict[str, Found]()
    problems = digest([[p.id, p.text, p.answer, p.messages] for p in world.problems])[:16]
    asked = {"problems": problems, "policies": [identity(who) for who in arguments.policies]}
    asked |= arguments.stamp("samples", "temperature", "solution_tokens", "seed")
    teacher = {"teacher": identity(arguments.teacher[0])} | arguments.stamp("votes", "temperature", "max_tokens", "prompt")
    command = arguments.training(more)
    trained = {"recipe": arguments.recipe, "base": weights(arguments.base), "settings": shlex.join(more)}
    trained |= arguments.stamp("seed", "prompt", "steps", "every")
    reported = {"report": {source: source if is_named(source) else file_digest(Path(source)) for source in arguments.report}}
    measured = arguments.stamp("max_tokens", "dtype", "prompt")

    def benchmarked(folder: Path) -> Found:
        choosing = arguments.choosing(folder, [work / "split" / "selection.jsonl"])
        return {"checkpoints": [asdict(selection.measure(choosing, path)) for path in selection.exported(choosing.run)]}

    def selected(folder: Path) -> Found:
        checkpoints = [selection.Checkpoint(**one) for one in found["benchmarked"]["checkpoints"]]
        selection.show(checkpoints)
        chosen = selection.choose(checkpoints, arguments.distance, arguments.mean_tokens)
        choosing = arguments.choosing(folder, [work / "split" / "report.jsonl", *arguments.report])
        path = choosing.run / "policy" / f"step-{chosen.step:06d}"
        return {"step": chosen.step, "folder": str(path), "scores": selection.measured(choosing, path)}

    makers = {
        "sampled": (asked, lambda folder: sampled(arguments, world, folder)),
        "labelled": (teacher, lambda folder: labelled(arguments, world, folder)),
        "split": (arguments.stamp("held_out", "per_question", "seed"), lambda folder: split(arguments, folder)),
        "trained": (trained, lambda folder: train(command, folder, arguments.base, arguments.prompt)),
        "benchmarked": (measured, benchmarked),
        "selected": (measured | arguments.stamp("distance", "mean_tokens") | reported, selected),
        "written": ({"out": str(arguments.out)}, lambda folder: written(arguments, found, makers)),
    }
    if not arguments.out.exists():
        (work / "written" / "stage.json").unlink(missing_ok=True)
    for name in STAGES[: STAGES.index(arguments.until) + 1]:
        print(f"{name}: {'done' if (work / name / 'stage.json').exists() else 'begins'}", file=sys.stderr, flush=True)
        found[name] = stages.done(name, *makers[name])
    return found


def written(arguments: Arguments, found: dict[str, Found], makers: dict[str, Any]) -> Found:
    """The folder `--out`, and its card."""
    scores, step = found["selected"]["scores"], found["selected"]["step"]
    made: dict[str, Any] = {
        "prompt": arguments.prompt,
        "says": card.says(step, scores["report"], "right solutions"),
        "made": f"step {step} of {arguments.steps} of the recipe {arguments.recipe}",
        "command": shlex.join(["python", "-m", "soundrl.genrm.make", *sys.argv[1:]]),
        "recipe": arguments.recipe,
        "seed": arguments.seed,
        "step": step,
        "versions": card.versions(),
        "figures": card.figures(scores["report"]),
        "intervals": card.intervals(scores["report"]),
    }
    for name in [name for name in scores if name not in ("report", "all")]:
        made |= {f"figures on {name}": card.figures(scores[name]), f"intervals on {name}": card.intervals(scores[name])}
    made["selection"] = found["benchmarked"]["checkpoints"]
    made["made from"] = {name: stamp for name, (stamp, _) in makers.items() if name in found}
    made["data"] = {name: {k: v for k, v in found[name].items() if k != "seconds"} for name in ("sampled", "labelled", "split")}
    made["seconds"] = {name: part["seconds"] for name, part in found.items()}
    whole = card.write(Path(found["selected"]["folder"]), arguments.out, made)
    return {"card": digest({key: value for key, value in whole.items() if key != "seconds"})}


def plan(arguments: Arguments, more: Sequence[str], world: World, left_out: int) -> None:
    """Stages, sizes and commands."""
    count, solutions = len(world.problems), len(world.problems) * len(arguments.policies) * arguments.samples
    checkpoints = -(-arguments.steps // arguments.every) + 1
    votes = (
        "" if is_named(arguments.teacher[0]) else f", at most {solutions * arguments.votes:,} critiques of {arguments.max_tokens:,} tokens"
    )
    says = {
        "sampled": f"{count:,} problems ({left_out:,} left out) × {len(arguments.policies)} policies × {arguments.samples} = "
        f"{solutions:,} solutions of at most {arguments.solution_tokens:,} tokens",
        "labelled": f"those with a right answer, {arguments.votes} votes of {arguments.teacher[0]}{votes}",
        "split": "{1:.0%} of the problems to choose by, {2:.0%} to report, {0:.0%} to train on".format(
            1 - sum(arguments.held_out), *arguments.held_out
        ),
        "trained": f"{arguments.steps} steps: {shlex.join(arguments.training(more))}",
        "benchmarked": f"{checkpoints} checkpoints, step 0 among them, each served by {arguments.workers} workers",
        "selected": f"the earliest within {arguments.distance} of the best F1, tokens at most {arguments.mean_tokens or 'any'}; told of "
        + " ".join(["the rows to report", *arguments.report]),
        "written": f"{arguments.out}, for --genrm.judge serve --genrm.model {arguments.out}",
    }
    for name, what in says.items():
        print(f"{name:>11}{' (done)' if (arguments.work / name / 'stage.json').exists() else ''}: {what}")


def make(arguments: Arguments, more: Sequence[str] = ()) -> None:
    """All stages up to `--until`; says what came of it."""
    arguments.check()
    exclude = (*arguments.exclude, *arguments.report)
    with world_of(arguments.problems, arguments.max_problems, arguments.seed, exclude) as (world, left_out):
        if arguments.plan:
            return plan(arguments, more, world, left_out)
        if not world.problems:
            raise ValueError(f"{arguments.problems}: no problem is left, {left_out} stand in --exclude or --report")
        print(f"{len(world.problems):,} problems; left out, known from --exclude or --report: {left_out:,}")
        stages = Stages(arguments.work)
        try:
            found = pipeline(arguments, more, world, stages)
        finally:
            stages.close()
    for name, part in found.items():
        print(f"{name:>11}: {part['seconds']:7.1f} s")
    if "selected" in found:
        for name, part in found["selected"]["scores"].items():
            print(
                f"{name}: " + ", ".join(f"{key} {Score(**part[key])}" for key in ("f1", "precision", "recall", "over_critic", "coverage"))
            )
    if "written" in found:
        print(f"--genrm.judge serve --genrm.model {arguments.out}")


def command(argv: Sequence[str] | None = None) -> None:
    """What follows `--` are settings of the training."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--") if "--" in words else len(words)
    try:
        evaluate.command(lambda arguments: make(arguments, words[at + 1 :]), Arguments, words[:at])
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
