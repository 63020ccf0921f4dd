"""What wandb (offline) and trackio (local) have stored of a run: the very numbers of metrics.jsonl, and tables of rollouts. With libraries
that only look so the rest: what is sent once, what waits, what is refused."""

import importlib
import json
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from soundrl.engine.files.rollout_file import RolloutWriter
from soundrl.engine.files.run_reader import RunReader
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict
from soundrl.view import sinks
from soundrl.view.sinks import COLUMNS, SERIES, Sink

SEVENTH = 0.1 + 1 / 7  # no short decimal
CLOCK = {"time/step": 1.5, "memory/peak_rss_mib": 1000.25}


def line(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "reward/mean": SEVENTH * step,
        "loss/policy": -1e-17 / step,
        "genrm/alarm": 0.0,
        "fapo/rho": None,
        "verify/timeout": 3.0,
    } | CLOCK


def evaluation(step: int) -> dict[str, Any]:
    return {"step": step, "eval/a/b/accuracy": 2 / 3, "eval/a/b/sound_low": 5e-324, "eval/a/b/pass@2": 0.75, "time/evaluate": 2.0}


def group(name: str) -> Group:
    tokens = {"prompt_tokens": (1,), "tokens": (2,), "logprobs": (0.0,)}
    texts = [f"{i} ∑\n" * (800 + 100 * i) for i in range(4)]
    rollouts = [
        Rollout(prompt_id=name, sample=i, text=text, finish_reason="stop", policy_version=1, **tokens)  # type: ignore[arg-type]
        for i, text in enumerate(texts)
    ]
    verdicts = [Verdict.sound(), Verdict.flawed(2), None, Verdict.unknown("timeout")]
    outcomes = [Outcome.WRONG if verdict is None else Outcome.CORRECT for verdict in verdicts]
    prompt = Prompt(id=name, text="1+1?", answer="2")
    numbers = {"rewards": [1.0, 0.0, -1.0, 0.0], "advantages": [SEVENTH, -SEVENTH, -1 / 3, 0.0], "kept": [True, True, True, False]}
    return Group(prompt=prompt, rollouts=rollouts, outcomes=outcomes, verdicts=verdicts, **numbers)


def write_step(run: Path, step: int) -> None:
    folder = run / "rollouts" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    with RolloutWriter(folder / "rank-0.arrows") as file:
        file.add([group(name) for name in "abcde"])
        file.end([20])


def write_lines(run: Path, *rows: dict[str, Any]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path):
    """Two steps and two evaluations."""
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"format": 3, "fapo": {"lam": 1.0}}))
    for step in (1, 2):
        write_step(folder, step)
    write_lines(folder, evaluation(0), line(1), line(2), evaluation(2))
    return folder


def expected(run: Path, everything: bool = False) -> dict[tuple[int, str], float]:
    """By step and name, of metrics.jsonl; all numbers, or the usual ones."""
    found = {
        (row["step"], name): value
        for row in RunReader(run).metrics()
        for name, value in row.items()
        if name != "step" and value is not None
    }
    return found if everything else {key: value for key, value in found.items() if key[1] in SERIES or sinks.EVALUATED.fullmatch(key[1])}


def send(run: Path, which: str, *arguments: str) -> str:
    """By the command, in a process of its own, as these libraries hold on to a process."""
    environment = os.environ | {"TRACKIO_DIR": str(run / "trackio"), "HOME": str(run), "HF_HUB_OFFLINE": "1"}
    environment.pop("WANDB_MODE", None)
    command = [sys.executable, "-m", "soundrl.view.sink", str(run), which, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1] if which == "wandb" else done.stdout


def wandb_records(file: Path) -> list[bytes]:
    """Of a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    data, at, out, part = file.read_bytes(), 7, [], b""
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last of several
            out.append(part)
            part = b""
    return out


def in_wandb(run: Path) -> tuple[dict[tuple[int, str], float], dict[int, list[list[Any]]]]:
    """Series and tables that offline runs have stored."""
    record_of = importlib.import_module("wandb.proto.wandb_internal_pb2").Record.FromString
    series, tables = dict[tuple[int, str], float](), dict[int, list[list[Any]]]()
    for file in sorted((run / "sinks" / "wandb").glob("offline-run-*/*.wandb")):
        for data in wandb_records(file):
            record = record_of(data)
            if record.WhichOneof("record_type") != "history":
                continue
            row = {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
            step = row.pop("_step")
            if "rollouts/path" in row:
                table = json.loads((file.parent / "files" / row["rollouts/path"]).read_bytes())
                assert table["columns"] == [*COLUMNS]
                tables[step] = table["data"]
            for name, value in row.items():
                if not name.startswith(("_", "rollouts/")):
                    assert (step, name) not in series
                    series[step, name] = value
    return series, tables


def in_trackio(run: Path) -> tuple[dict[tuple[int, str], float], dict[int, list[list[Any]]]]:
    series, tables = dict[tuple[int, str], float](), dict[int, list[list[Any]]]()
    (file,) = (run / "trackio").glob("*.db")
    with sqlite3.connect(file) as base:
        for step, text in base.execute("SELECT step, metrics FROM metrics"):
            for name, value in json.loads(text).items():
                if isinstance(value, dict):
                    tables[step] = [[row[column] for column in COLUMNS] for row in value["_value"]]
                else:
                    assert (step, name) not in series
                    series[step, name] = value
    return series, tables


@pytest.mark.parametrize(("which", "stored"), [("wandb", in_wandb), ("trackio", in_trackio)])
def test_what_is_stored_are_the_very_numbers_of_the_run_and_its_rows(run, which, stored):
    pytest.importorskip(which)
    assert "4 lines of metrics and 10 rollouts in " + which in send(run, which, "--rollouts", "5")
    series, tables = stored(run)
    assert series == expected(run) and series[2, "reward/mean"] == 2 * SEVENTH and series[2, "eval/a/b/sound_low"] == 5e-324
    assert tables.keys() == {1, 2} and [len(rows) for rows in tables.values()] == [5, 5]
    rows = {(row["prompt_id"], row["sample"]): row for row in RunReader(run).rollouts(2)}
    for prompt_id, sample, prompt, text, outcome, verdict, reward, advantage in tables[2]:
        row = rows[prompt_id, sample]
        assert (prompt, outcome, reward, advantage) == tuple(row[name] for name in ("prompt", "outcome", "reward", "advantage"))
        assert verdict == {0: "sound", 1: "flawed 2", 2: None, 3: "unknown"}[sample]
        assert text == row["text"] if len(row["text"]) <= 4000 else text.startswith(row["text"][:4000])
    # The run has gone on; the same command sends what is new, and no more.
    write_step(run, 3)
    write_lines(run, *RunReader(run).metrics(), line(3))
    send(run, which, "--rollouts", "5")
    series, tables = stored(run)
    assert series == expected(run) and [*tables] == [1, 2, 3]


class Board:
    """Looks like either library, and says in `sent` what it was told."""

    def __init__(self) -> None:
        self.sent, self.begun = list[tuple[int, dict[str, Any]]](), list[dict[str, Any]]()

    def init(self, **settings: Any) -> "Board":
        self.begun.append(settings)
        return self

    def log(self, row: dict[str, Any], step: int) -> None:
        self.sent.append((step, row))

    def finish(self) -> None:
        pass

    def Table(self, columns: list[str], data: list[list[Any]]) -> list[list[Any]]:  # noqa: N802
        assert columns == [*COLUMNS]
        return data

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802
        return settings


@pytest.fixture
def board(monkeypatch):
    found, module = Board(), ModuleType("wandb")
    for name in ("init", "Table", "Settings"):
        setattr(module, name, getattr(found, name))
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return found


def sink(run: Path, everything: bool = False) -> Sink:
    return Sink(run, "wandb", "soundrl", 2, everything)


def test_a_line_waits_for_its_rollouts_and_the_sink_for_the_runs_end(run, board, monkeypatch):
    monkeypatch.setattr(sinks, "holder", lambda folder: "held")
    write_lines(run, line(1), line(2), line(3))  # the third's rollouts are being written
    with sink(run) as out:
        assert out.send() and [step for step, _ in board.sent] == [1, 2]
        assert out.send() and len(board.sent) == 2
        write_step(run, 3)
        assert out.send() and [step for step, _ in board.sent] == [1, 2, 3] and len(board.sent[2][1]["rollouts"]) == 2
        write_lines(run, line(1), line(2), line(3), line(4))
        monkeypatch.setattr(sinks, "holder", lambda folder: "free")  # it was killed: there will be no rollouts of step 4
        assert not out.send() and board.sent[3][0] == 4 and "rollouts" not in board.sent[3][1]
    assert os.environ["WANDB_MODE"] == "offline" and board.begun[0]["id"] == out.state["id"]


def test_a_run_that_goes_back_to_a_checkpoint_is_sent_on_from_where_it_was(run, board):
    with sink(run) as out:
        out.send()
    assert len(board.sent) == 4
    before = json.loads((run / "sinks" / "wandb.json").read_bytes())
    write_lines(run, evaluation(0), line(1))
    with sink(run) as out:
        assert not out.send() and len(board.sent) == 4 and out.state == before
        write_lines(run, evaluation(0), line(1), line(2), evaluation(2), line(3))
        assert not out.send() and [step for step, _ in board.sent] == [0, 1, 2, 2, 3]
    assert board.begun[1]["id"] == board.begun[0]["id"] and board.begun[1]["resume"] == "allow"


def test_all_series_on_demand_and_the_same_rollouts_each_time(run, board):
    with sink(run, everything=True) as out:
        out.send()
    told = {(step, name): value for step, row in board.sent for name, value in row.items() if name != "rollouts"}
    assert told == expected(run, everything=True) and (1, "verify/timeout") in told and (1, "fapo/rho") not in told
    assert [*out.table(1)] == [*out.table(1)] == board.sent[1][1]["rollouts"]
    other = {(row[0], row[1]) for row in out.table(2)}
    assert len(other) == 2 and other != {(row[0], row[1]) for row in out.table(1)}


def test_mistakes_are_one_line(run, board, monkeypatch, tmp_path):
    with sink(run) as out:
        out.send()
    with pytest.raises(ValueError, match="--project other: it has been sent to soundrl"):
        Sink(run, "wandb", "other", 2)
    write_lines(run, evaluation(0) | {"time/evaluate": 3.0}, line(1))  # begun anew
    with sink(run) as out, pytest.raises(ValueError, match="what has been sent to wandb is of another run; remove .*wandb.json"):
        out.send()
    (run / "sinks" / "wandb.json").write_text("{")
    with pytest.raises(ValueError, match="wandb.json holds no JSON object"):
        sink(run)
    (run / "sinks" / "wandb.json").unlink()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"wandb is not installed .*pip install 'soundrl\[sinks\]'"):
        sink(run)
    with pytest.raises(ValueError, match="is no run's folder"):
        sink(tmp_path)
