"""Does it hold for real text? A small real model as judge and as policy on GSM8K, in stages.

    python bench/science/real_text.py smoke        # minutes: every stage, too small to say anything
    python bench/science/real_text.py cpu          # two cores, a night
    python bench/science/real_text.py gpu          # one GPU, minutes (predicted)

| stage | what it does |
|---|---|
| speed | tokens a second of training and of sampling here; then the hours to come are printed |
| rows | flaws planted into GSM8K's worked solutions: of training problems to train on, of test problems to measure by |
| judge | warm start on critiques of these that end in a box; half of the rows show the reference answer |
| benchmark | the model as it is, and the judge, on ProcessBench and on the held-out planted flaws, with the reference answer and without |
| policy | warm start on worked solutions |
| flawed | its samples of test problems: right, and of these the flawed share by the judge, corrected for its errors, and by stated sums |
| kinds | the judge's verdicts on the planted flaws by kind: how many it calls flawed, and at the right step |
| pair | a few steps of FAPO and of GRPO from that policy, where `--hours` leaves time: one seed, far too few to tell them apart |

A stage that has ended is not repeated. Killed within one, the same command goes on: training from its last checkpoint, the benchmark from
its last verdict, an evaluation from its beginning, with the same bits. A row a stage goes to `--results`.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tyro

sys.path.append(str(Path(__file__).resolve().parent.parent))  # files of bench/ know each other by name
from record import machine
from text_budget import PRESETS, Arguments, estimate
from text_shares import shares, sums_in

from soundrl.engine.files.model_folder import load_tokenizer
from soundrl.engine.files.run_reader import RunReader, read_lines
from soundrl.engine.tools.trace import read_trace
from soundrl.fapo.corrected import Errors
from soundrl.fapo.data.files import boxed_solution, load_prompts
from soundrl.fapo.records import Verdict
from soundrl.genrm import selection
from soundrl.genrm.critic_data.critic_data import Planted, planted_rows, select
from soundrl.genrm.critic_data.labelled import Critiqued, Labelled, load_labelled, write_rows
from soundrl.genrm.journal import digest
from soundrl.genrm.make import card
from soundrl.genrm.make.stages import Found, Stages, digests, file_digest, write_json
from soundrl.genrm.make.training import to_its_end, train_command
from soundrl.genrm.prompts import PROMPTS
from soundrl.genrm.scores import difference

STAGES = {
    "speed": "seed dtype solution_tokens",
    "rows": "seed problems rows",
    "judge": "critic_steps batch lr critique_tokens solution_tokens",
    "benchmark": "",
    "policy": "policy_steps",
    "flawed": "test_rows samples",
    "kinds": "",
    "pair": "rl_steps rl_prompts rl_samples",
}
"""In their order, and the arguments that each adds to those of the stages before."""
START = "step-000000"
WAYS = ("standard", "assisted")
JUDGES = ("before", "after")
PROMPT_TOKENS = 768
"""Of a critic's prompt; a row with a longer one is left out of the warm start, and counted."""


AT_ONCE = 8
"""Questions on a CPU. A server reads all that wait before it writes a word, and counts as stuck after two minutes without one."""


class Text:
    """The stages; `found` holds what those that have ended say, by name."""

    def __init__(self, arguments: Arguments, preset: str) -> None:
        self.arguments, self.preset, self.found = arguments, preset, dict[str, Found]()
        self.slow = arguments.dtype == "float32"  # a CPU
        self.train, self.test = (arguments.data / f"gsm8k-{part}.jsonl" for part in ("train", "test"))
        self.benchmarks = arguments.data / "processbench" / "gsm8k.json"
        for file in (arguments.model / "config.json", self.train, self.test, self.benchmarks):
            if not file.is_file():
                raise ValueError(f"{file} is missing; name its folder by --model (make smollm2 makes one) or --data")
        self.tokenizer = load_tokenizer(arguments.model)
        if self.tokenizer.chat_template is None:
            raise ValueError(f"{arguments.model} has no chat template, by which a judge is asked; take an instruct model")

    def run(self, folder: Path, recipe: str, model: Path, **settings: Sequence[object]) -> RunReader:
        """A run in `folder`/run, begun or gone on with. ValueError where it fails."""
        a, length = self.arguments, PROMPT_TOKENS + max(self.arguments.critique_tokens, self.arguments.solution_tokens)
        own: dict[str, Sequence[object]] = {"model.path": (model,), "model.dtype": (a.dtype,), "model.max-length": (length,)}
        own |= {"run.seed": (a.seed,), "run.steps": (0,), "run.eval-every": (0,), "run.save": (2, 1, 0), "data.skip-unusable": ()}
        own |= {"warm-start.steps": (0,), "optim.microbatch-tokens": (max(length, 2048 if self.slow else 16384),)}
        own |= {
            "rollout.memory": (1.0 if self.slow else 0.3,),
            "data.test": (),
            "model.save-memory": (),
            "rollout.eager": (),
        }
        given = own | {name.replace("__", ".").replace("_", "-"): value for name, value in settings.items()}
        to_its_end(train_command(folder, recipe, {name: tuple(value) for name, value in given.items()}, ()), folder / "run")
        return RunReader(folder / "run")

    def warm_start(self, steps: int) -> dict[str, Sequence[object]]:
        a = self.arguments
        return {"warm_start__steps": (steps,), "warm_start__batch": (a.batch,), "warm_start__lr": (a.lr,)}

    def judged(self, judge: Path) -> dict[str, Sequence[object]]:
        """Settings of a run that samples test problems and serves its judge."""
        a = self.arguments
        own: dict[str, Sequence[object]] = {"data__train": (self.train,), "data__test": (self.test,), "data__test_rows": (a.test_rows,)}
        own |= {"rollout__max_new_tokens": (a.solution_tokens,), "run__eval_sampling": (a.samples, 1.0, 1.0)}
        own |= {"genrm__concurrency": (AT_ONCE if self.slow else 128,)}
        own |= {"genrm__judge": ("serve",), "genrm__model": (judge,), "genrm__max_tokens": (a.critique_tokens,)}
        return own | {"genrm__unknown": ("drop", 1.0)}  # a small judge often gives no verdict: that is measured, not a reason to stop

    @property
    def judge(self) -> Path:
        return self.arguments.out / "judge" / "run" / "policy" / START

    @property
    def policy(self) -> Path:
        return self.arguments.out / "policy" / "run" / "policy" / START

    def tokens(self, texts: Iterable[str]) -> float:
        """Of a text, in the mean."""
        return statistics.fmean(len(self.tokenizer(text)["input_ids"]) for text in texts)

    def speed(self, folder: Path) -> Found:
        """A warm start of a few rows, and an evaluation of a few samples, as a run does them."""
        a, steps, rows, samples = self.arguments, 4, 8, 2
        short = {"data__test_rows": (rows,), "run__eval_sampling": (samples, 1.0, 1.0), "rollout__max_new_tokens": (a.solution_tokens,)}
        sets = {"data__train": (self.train,), "data__test": (self.test,)}
        begun, before = time.monotonic(), cpu_seconds()
        run = self.run(folder, "smollm2-gsm8k", a.model, **sets, **short, **self.warm_start(steps) | {"warm_start__batch": (4,)})
        cores = (cpu_seconds() - before) / (time.monotonic() - begun)
        phases = Counter[str]()
        for event in read_trace(run.path / "trace.json"):
            phases[event["name"]] += event.get("dur", 0) / 1e6 if event.get("cat") == "phase" else 0
        problems = load_prompts(self.train, max_rows=200)
        worked = self.tokens(f"{p.text}\n{boxed_solution(p.solution or '', p.answer)}" for p in problems)
        planted = planted_rows(Planted(problems=str(self.train), out=folder, max_problems=50))
        asked = self.tokens(PROMPTS["own"].messages(row.problem, row.steps, row.answer)[0]["content"] for row in planted)
        said = self.tokens(row.said(PROMPTS["own"]) for row in planted if isinstance(row, Critiqued))
        made = sum(len(row["tokens"]) for row in run.rollouts(0, "eval"))
        return {
            "trained a second": round(steps * 4 * worked / phases["warm_start"], 1),
            "sampled a second": round(made / phases["evaluate"], 1),
            "cores": round(cores, 2),
            "load": round(os.getloadavg()[0], 1),
            "tokens": {"solution": round(worked), "judge's prompt": round(asked), "critique": round(said)},
            "seconds of phases": {name: round(seconds, 1) for name, seconds in phases.items() if seconds >= 0.05},
        }

    def rows(self, folder: Path) -> Found:
        """`train.jsonl` and `planted.jsonl`, half of them flawed, and `processbench.json`; what sums tell of all of the latter two."""
        a, found, read = self.arguments, Found(), dict[str, list[Labelled]]()
        for name, source, problems in (("train", self.train, a.problems), ("planted", self.test, 0)):
            every = planted_rows(Planted(problems=str(source), out=folder, max_problems=problems, seed=a.seed))
            kept, left = select(every, 5, a.seed)
            if name == "train":
                kept = [replace(row, answer=None) if number % 2 else row for number, row in enumerate(kept)]
            else:
                kept = kept[: a.rows or 400]
                for row in every:
                    read.setdefault(kind_of(row), []).append(row)
            write_rows(folder / f"{name}.jsonl", kept, name)
            kinds = Counter(map(kind_of, kept))
            found[name] = {"rows": len(kept), **kinds} | {f"left out, {reason}": count for reason, count in left.items()}
        rows = json.loads(self.benchmarks.read_text())
        rows = random.Random(a.seed).sample(rows, a.rows) if 0 < a.rows < len(rows) else rows
        write_json(folder / "processbench.json", rows)
        for row in load_labelled(str(self.benchmarks)):
            read.setdefault(f"processbench, {'sound' if row.label < 0 else 'flawed'}", []).append(row)
        return found | {"processbench": {"rows": len(rows)}, "false sums": {name: sums_in(own) for name, own in read.items()}}

    def trained_judge(self, folder: Path) -> Found:
        data, a = self.arguments.out / "rows" / "train.jsonl", self.arguments
        own = {"run__task": ("critic",), "data__train": (data,), "rollout__max_new_tokens": (a.critique_tokens,)}
        run = self.run(
            folder, "genrm-4b", a.model, **own, fapo__overlong=(0, 1.0), genrm__prompt=("own",), **self.warm_start(a.critic_steps)
        )
        return trained(run) | {"steps": a.critic_steps, "rows seen": a.critic_steps * a.batch}

    def trained_policy(self, folder: Path) -> Found:
        a = self.arguments
        own = {"data__train": (self.train,), "rollout__max_new_tokens": (a.solution_tokens,)}
        run = self.run(folder, "smollm2-gsm8k", a.model, **own, **self.warm_start(a.policy_steps))
        return trained(run) | {"steps": a.policy_steps, "rows seen": a.policy_steps * a.batch}

    def benchmark(self, folder: Path) -> Found:
        """Of each judge, way and set every measure with its interval and n, and what the warm start has changed, paired by row."""
        a, found, said = self.arguments, Found(), dict[tuple[str, str], list[Verdict]]()
        files = [a.out / "rows" / name for name in ("processbench.json", "planted.jsonl")]
        how_served = {"dtype": a.dtype, "max_tokens": a.critique_tokens, "prompt": "own", "eager": True}
        how_served |= {"workers": a.threads if self.slow else 1, "concurrency": AT_ONCE if self.slow else 64}
        for how in WAYS:
            for who, model in zip(JUDGES, (a.model, self.judge), strict=True):
                out, references = folder / f"{who}-{how}", str(self.test) if how == "assisted" else ""
                data = tuple(map(str, files))
                asked = selection.Arguments(run=Path("text"), data=data, out=out, references=references, **how_served)
                scores = selection.measured(asked, model)
                records = {one["id"]: one["verdict"] for one in read_lines(out / model.name / "verdicts.jsonl")[1:]}
                for name, file in ((file.stem, file) for file in files):
                    rows = load_labelled(str(file))
                    said[who, name] = [Verdict(*records[f"{name}/{row.id}"]) for row in rows]
                    counts = {"rows": len(rows), "unknown": scores[name]["unknown"], "tokens": round(scores[name]["tokens"], 1)}
                    measures = {measure: triple(scores[name][measure]) for measure in card.FIGURES}
                    found[f"{who}, {how}, {name}"] = measures | counts | {"errors": [*scores[name]["errors"].values()]}
            for name, file in ((file.stem, file) for file in files):
                for measure in ("f1", "flawed_f1"):
                    gain = difference(load_labelled(str(file)), said["after", name], said["before", name], measure)
                    found[f"after − before, {how}, {name}, {measure}"] = triple(vars(gain))
        return found

    def flawed(self, folder: Path) -> Found:
        run = self.run(folder, "smollm2-gsm8k", self.policy, **self.judged(self.judge), fapo__lam=(1.0,))
        known = {name: Errors(*self.found["benchmark"][f"after, assisted, {name}"]["errors"]) for name in ("processbench", "planted")}
        return shares(run.rollouts(0, "eval"), known)

    def kinds(self, folder: Path) -> Found:
        """By who has judged, how, and kind of flaw (or sound): rows, those called flawed, those called so at the right step."""
        a, found = self.arguments, Found()
        every = planted_rows(Planted(problems=str(self.test), out=a.out / "rows", seed=a.seed))
        kinds = map(kind_of, select(every, 5, a.seed)[0])  # as in `rows`, whose file does not name them
        rows = list(zip(load_labelled(str(a.out / "rows" / "planted.jsonl")), kinds, strict=False))
        for how in WAYS:
            for who, model in zip(JUDGES, (a.model, self.judge), strict=True):
                file = a.out / "benchmark" / f"{who}-{how}" / model.name / "verdicts.jsonl"
                said = {one["id"]: Verdict(*one["verdict"]) for one in read_lines(file)[1:]}
                table: dict[str, list[int]] = {}
                for row, kind in rows:
                    verdict, own = said[f"planted/{row.id}"], table.setdefault(kind, [0, 0, 0])
                    flawed = verdict.kind == "flawed"
                    table[kind] = [own[0] + 1, own[1] + flawed, own[2] + (flawed and verdict.step == row.label)]
                found[f"{who}, {how}"] = dict(sorted(table.items()))
        return found

    def pair(self, folder: Path) -> Found:
        """Before and after of both arms, of the first half of the test problems."""
        a, found = self.arguments, Found()
        for lam in (1.0, 0.0):
            own = self.judged(self.judge) | {"data__test_rows": (max(1, (a.test_rows or 1319) // 2),), "run__steps": (a.rl_steps,)}
            own |= {"rollout__prompts": (a.rl_prompts,), "rollout__samples": (a.rl_samples,), "optim__minibatch_prompts": (a.rl_prompts,)}
            arm = folder / f"lam-{lam:g}"
            run = self.run(arm, "smollm2-gsm8k", self.policy, **own, fapo__lam=(lam,))
            found[f"λ = {lam:g}"] = {f"step {step}": shares(run.rollouts(step, "eval"), {}) for step in run.steps("eval")}
        return found | {"steps": a.rl_steps, "seeds": 1, "says": "one seed and few steps: nothing about a difference between the two"}

    def stamp(self, name: str) -> dict[str, Any]:
        """What a stage is made from, beside the stages before."""
        a = self.arguments
        files = {file.name: file_digest(file)[:16] for file in (self.train, self.test, self.benchmarks)}
        return {key: getattr(a, key) for key in STAGES[name].split()} | files | {"model": digest(digests(a.model))[:16]}

    def __call__(self) -> None:
        a = self.arguments
        make = {"speed": self.speed, "rows": self.rows, "judge": self.trained_judge, "benchmark": self.benchmark}
        make |= {"policy": self.trained_policy, "flawed": self.flawed, "kinds": self.kinds, "pair": self.pair}
        stages = Stages(a.out, [*STAGES])
        try:
            for name in STAGES:
                if name == "pair" and (why := self.left_out()):
                    print(f"pair: left out: {why}; the same command with more --hours goes on")
                    break
                print(f"{name}: {'done' if (a.out / name / 'stage.json').exists() else 'begins'}", file=sys.stderr, flush=True)
                self.found[name] = stages.done(name, self.stamp(name), make[name])
                write_row(
                    a.results, {"stage": name, "preset": self.preset, "folder": a.model.name, **self.stamp(name), "found": self.found[name]}
                )
                print(f"{name}: {json.dumps(self.found[name], indent=1, ensure_ascii=False)}", flush=True)
                if name == "speed":
                    seconds, got = estimate(a, self.found["speed"]), self.found["speed"].get("cores", a.threads)
                    print("to come, in hours: " + ", ".join(f"{stage} {s / 3600:.2f}" for stage, s in seconds.items()))
                    print(
                        f"together {sum(seconds.values()) / 3600:.2f} of {a.hours:g}; measured with {got:g} of {a.threads} cores",
                        flush=True,
                    )
        finally:
            stages.close()

    def left_out(self) -> str:
        """Why there is no last stage; empty: there is. One that was begun goes on."""
        a = self.arguments
        if not a.rl_steps:
            return "--rl-steps 0"
        spent, needs = sum(part["seconds"] for part in self.found.values()), estimate(a, self.found["speed"])["pair"]
        fits = (a.out / "pair").exists() or spent + needs <= 3600 * a.hours
        return "" if fits else f"it takes {needs / 3600:.1f} hours, and {a.hours - spent / 3600:.1f} of {a.hours:g} are left"


def kind_of(row: Labelled) -> str:
    """Of a planted row: its flaw, or sound."""
    return row.id.rpartition("/")[2]


def cpu_seconds() -> float:
    """Of all processes that we have started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def triple(score: dict[str, float]) -> list[float]:
    return [round(score[end], 4) for end in ("value", "low", "high")]


def trained(run: RunReader) -> Found:
    """What a warm start has left out."""
    file = run.path / "left_out.jsonl"
    return {"rows left out": len(read_lines(file)) if file.exists() else 0, "model": digest(digests(run.path / "policy" / START))[:16]}


def write_row(results: Path, row: dict[str, Any]) -> None:
    """Added once, however often its stage is read again."""
    row = {"id": digest(row)[:16], **row}
    results.parent.mkdir(parents=True, exist_ok=True)
    if not results.exists() or all(known.get("id") != row["id"] for known in read_lines(results)):
        with results.open("a", encoding="utf-8") as file:
            device = "cuda" if os.path.exists("/dev/nvidiactl") else "cpu"
            file.write(json.dumps(row | {"stamp": machine(device)}, ensure_ascii=False) + "\n")


def main(words: Sequence[str]) -> None:
    arguments = tyro.extras.overridable_config_cli(PRESETS, prog="bench/science/real_text.py", args=words)
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    if arguments.dtype == "float32":
        os.environ.setdefault("NPROC", "1")
    try:
        Text(arguments, words[0])()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers are ended, and a run saves its state
    main(sys.argv[1:])
