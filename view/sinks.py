"""A run's series and some of its rollouts in wandb or trackio, whose interfaces are one: `init`, `log`, `finish`, `Table`.

What has been sent is kept in `runs/<name>/sinks/<which>.json`, so that the same command goes on. A line of metrics.jsonl is sent once, as
the numbers that it holds; what was not finite is in no series.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from soundrl.engine.files.run_reader import RunReader
from soundrl.engine.files.whole import whole
from soundrl.view.lock import holder

SERIES = (
    "reward/mean reward/correct reward/groups_with_signal fapo/flawed_ratio fapo/flawed_corrected fapo/flawed_corrected_low "
    "fapo/flawed_corrected_high fapo/rho fapo/past_shift fapo/flawed_advantage genrm/unknown genrm/probe_f1 genrm/second_agreement "
    "genrm/overlap genrm/alarm mismatch/gate mismatch/exp_abs_dlogp loss/policy loss/entropy optim/grad_norm optim/lr tokens/response "
    "tokens/cut time/step speed/tokens speed/mfu memory/peak_gpu_mib memory/peak_rss_mib"
).split()
"""The usual ones of a step; and of each evaluation those of `EVALUATED`, `critic/…` of a critic's run."""
EVALUATED = re.compile(
    r"eval/.*/(accuracy|accuracy_low|accuracy_high|sound|sound_low|sound_high|flawed_ratio|flawed_corrected|tokens|exact|f1)"
)
COLUMNS = ("prompt_id", "sample", "prompt", "text", "outcome", "verdict", "reward", "advantage")
LONGEST = 4000
"""Characters of a text in a table; a longer one ends in a word that says how many more there are."""


class Sink(AbstractContextManager["Sink"]):
    """`send` what is new. ValueError where the folder is no run's, the library is not installed, or what was sent is of another run."""

    def __init__(self, run: Path, which: str, project: str, rollouts: int, everything: bool = False) -> None:
        self.run, self.path, self.which, self.rollouts, self.everything = RunReader(run), run, which, rollouts, everything
        self.file = run / "sinks" / f"{which}.json"
        self.state: dict[str, Any] = {"id": secrets.token_hex(4), "project": project, "lines": 0, "first": "", "rows": 0}
        if self.file.is_file():
            try:
                self.state |= json.loads(self.file.read_bytes())
            except ValueError as error:
                raise ValueError(f"{self.file} holds no JSON object ({error}); remove it, and all is sent anew") from None
            if self.state["project"] != project:
                raise ValueError(f"--project {project}: it has been sent to {self.state['project']}; name that one, or remove {self.file}")
        self.library = library(which)
        self.seen, self.waits = (0, 0), False
        """metrics.jsonl as it was last read, and whether a line of it waits for its rollouts"""

    def __enter__(self) -> Sink:
        offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
        for name, value in offline.items():
            os.environ.setdefault(name, value)
        own = {"name": self.path.resolve().name, "project": self.state["project"], "config": self.run.config}
        if self.which == "wandb":
            self.file.parent.mkdir(exist_ok=True)
            quiet = self.library.Settings(x_disable_stats=True, console="off")  # the run's own machine and output are none of it
            self.to = self.library.init(**own, id=self.state["id"], resume="allow", dir=str(self.file.parent), settings=quiet)
        else:
            self.to = self.library.init(**own, resume="allow", auto_log_gpu=False, auto_log_cpu=False)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.to.finish()

    def said(self) -> str:
        return f"{self.state['lines']} lines of metrics and {self.state['rows']} rollouts in {self.which}, project {self.state['project']}"

    def send(self) -> bool:
        """What is new and whole; whether the run goes on. A line waits for its step's rollouts, where the run is about to write them."""
        under_way = holder(self.path) != "free"  # before the lines: what a run that has ended has written is all there
        if (now := changed(self.path / "metrics.jsonl")) == self.seen and not self.waits:
            return under_way
        self.seen, self.waits = now, False
        lines = self.run.metrics()
        before = self.state["lines"]
        if lines and before and digest(lines[0]) != self.state["first"]:
            raise ValueError(f"{self.path}: what has been sent to {self.which} is of another run; remove {self.file}, and all is sent anew")
        written = set(self.run.steps())
        for number, line in enumerate(lines[before:], before + 1):
            step, trained = line["step"], "loss/policy" in line
            if self.rollouts and trained and step not in written and number == len(lines) and under_way:
                self.waits = True
                break
            row = dict(self.series(line))
            if self.rollouts and trained and step in written:
                table = [*self.table(step)]
                self.state["rows"] += len(table)
                row["rollouts"] = self.library.Table(columns=[*COLUMNS], data=table)
            if row:
                self.to.log(row, step=step)
            self.state |= {"lines": number, "first": digest(lines[0])}
        if self.state["lines"] > before:
            self.file.parent.mkdir(exist_ok=True)
            with whole(self.file) as beside:
                beside.write_text(json.dumps(self.state) + "\n")
        return under_way

    def series(self, line: dict[str, Any]) -> Iterator[tuple[str, float]]:
        for name, value in line.items():
            usual = name in SERIES or name.startswith("critic/") or EVALUATED.fullmatch(name)
            if name != "step" and value is not None and (self.everything or usual):
                yield name, value

    def table(self, step: int) -> Iterator[list[Any]]:
        """Those of the step that come first by a digest of prompt and sample: the same whenever it is asked."""
        table = self.run.table(step).select(COLUMNS)
        keys = zip(table.column("prompt_id").to_pylist(), table.column("sample").to_pylist(), strict=True)
        order = sorted((hashlib.blake2b(f"{step}/{id_}/{sample}".encode()).digest(), i) for i, (id_, sample) in enumerate(keys))
        for row in table.take(sorted(i for _, i in order[: self.rollouts])).to_pylist():
            verdict = row["verdict"]
            row["verdict"] = verdict and " ".join(map(str, (verdict["kind"], *([] if verdict["step"] is None else [verdict["step"]]))))
            yield [short(row[name]) for name in COLUMNS]


def changed(file: Path) -> tuple[int, int]:
    """When, and its size; zeros where it is not there."""
    return (said.st_mtime_ns, said.st_size) if file.is_file() and (said := file.stat()) else (0, 0)


def library(which: str) -> Any:
    """wandb or trackio."""
    try:
        return importlib.import_module(which)
    except ImportError as error:
        raise ValueError(f"{which} is not installed ({error}); pip install 'soundrl[sinks]'") from None


def digest(line: dict[str, Any]) -> str:
    """Of a run's first line, whose times no other run has."""
    return hashlib.blake2b(json.dumps(line).encode(), digest_size=8).hexdigest()


def short(value: Any) -> Any:
    """
    >>> short("a" * 4003)[-9:], short(None)
    ('aaaa … +3', None)
    """
    if not isinstance(value, str) or len(value) <= LONGEST:
        return value
    return f"{value[:LONGEST]} … +{len(value) - LONGEST}"
