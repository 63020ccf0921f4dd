"""What a run writes reads back: each rank's rollouts, evaluations, an older run's JSON lines, and whatever a killed run leaves."""

import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT

from soundrl.engine.files.rollout_file import OF_JUDGE, SCHEMA, RolloutWriter, file_name, ragged, read_file
from soundrl.engine.files.rollout_rows import verdict_of
from soundrl.engine.files.run_folder import RunFolder, goes_on
from soundrl.engine.files.run_reader import FORMAT, RunReader
from soundrl.engine.files.saved_step import config_of
from soundrl.engine.launch.last_words import RANK, explained
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict


def group(name: str, size: int = 3, arrays: bool = False) -> Group:
    """The last rollout has no token at all."""
    make = (lambda row, kind: np.array(row, kind)) if arrays else (lambda row, kind: tuple(row))
    lengths = [*range(7, 6 + size), 0]
    rollouts = [
        Rollout(
            prompt_id=name,
            sample=i,
            prompt_tokens=(1, 2, 3, 4),
            tokens=make(range(length), "int64"),  # type: ignore[arg-type]
            logprobs=make([-0.1 * k for k in range(length)], "float64"),  # type: ignore[arg-type]
            text=f"{name} says ∑ {i}",
            finish_reason="stop",
            policy_version=5,
        )
        for i, length in enumerate(lengths)
    ]
    outcomes = [Outcome.CORRECT, Outcome.CORRECT, *[Outcome.WRONG] * size][:size]
    verdicts = [Verdict.flawed(2, "gap"), Verdict.unknown("timeout"), *[None] * size][:size]
    numbers = {"rewards": [0.1 * i for i in range(size)], "advantages": [-1.5] * size, "kept": [i != 1 for i in range(size)]}
    if arrays:
        numbers = {name: np.array(values) for name, values in numbers.items()}
    prompt = Prompt(id=name, text="1 + 1?", answer="2", source="sums")
    return Group(prompt=prompt, rollouts=rollouts, outcomes=outcomes, verdicts=verdicts, **numbers)  # type: ignore[arg-type]


class Ranks:
    """Rank `rank` of several that write one after the other, rank 0 last: what they said is on `board`."""

    def __init__(self, rank: int, board: dict[int, object]) -> None:
        self.rank, self.main, self.board = rank, rank == 0, board

    def gather(self, value: object) -> list[object]:
        self.board[self.rank] = value
        return [self.board[rank] for rank in range(len(self.board))]


def folder_of(path: Path, rank: int = 0, board: dict[int, object] | None = None) -> RunFolder:
    path.joinpath("rollouts").mkdir(parents=True, exist_ok=True)
    path.joinpath("config.json").write_text(json.dumps({"format": FORMAT, "rollout": {"samples": 3}}))
    folder = RunFolder.__new__(RunFolder)
    ranks = Ranks(rank, {} if board is None else board)
    folder.path, folder.ranks, folder.writes = path, ranks, ranks.main  # type: ignore[assignment]
    return folder


def save(path: Path, step: int, groups: list[list[Group]], kind: str = "train", set: str = "") -> None:
    """By as many ranks as there are lists of groups."""
    board: dict[int, object] = {rank: None for rank in range(len(groups))}
    for rank in reversed(range(len(groups))):
        folder_of(path, rank, board).save_rollouts(step, groups[rank], kind, set)


def test_a_rollout_reads_back_as_it_was(tmp_path):
    save(tmp_path, 7, [[group("a"), group("b", arrays=True)]])
    run = RunReader(tmp_path)
    assert run.format == FORMAT and run.config["rollout"] == {"samples": 3} and run.steps() == [7] and run.steps("eval") == []
    rows = run.rollouts(7)
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [(name, i) for name in "ab" for i in range(3)]
    logprobs = np.array([-0.1 * k for k in range(8)], np.float32).tolist()
    assert rows[1] == dict.fromkeys(SCHEMA.names) | {
        **{"prompt_id": "a", "sample": 1, "kind": "train", "set": "sums", "prompt": "1 + 1?", "answer": "2", "text": "a says ∑ 1"},
        **{"tokens": list(range(8)), "logprobs": logprobs, "prompt_length": 4, "outcome": "correct", "kept": False},
        **{"verdict": {"kind": "unknown", "step": None, "reason": "timeout"}, "reward": 0.1, "advantage": -1.5},
        **{"finish_reason": "stop", "policy_version": 5},
    }
    assert rows[0]["verdict"] == {"kind": "flawed", "step": 2, "reason": "gap"}
    assert rows[2]["verdict"] is None and rows[2]["tokens"] == [] == rows[2]["logprobs"]
    same = ("tokens", "logprobs", "outcome", "verdict", "reward", "advantage", "kept")
    assert [[row[name] for name in same] for row in rows[:3]] == [[row[name] for name in same] for row in rows[3:]]  # arrays or tuples


def test_what_a_record_carries_of_the_judges_work_is_kept(tmp_path):
    told = group("a", 2)
    votes = ("flawed 2", "no_box", "flawed 2")
    told.verdicts[0] = said = Verdict("flawed", 2, critique="Step 2 …", tokens=90, seconds=1.5, worker="j1", votes=votes)
    told.extracted = ["2", None]
    save(tmp_path, 1, [[told]])
    rows, names = RunReader(tmp_path).rollouts(1), ("extracted", *OF_JUDGE)
    assert [[row[name] for name in names] for row in rows] == [["2", "Step 2 …", 90, 1.5, "j1", [*votes]], [None] * 6]
    assert vars(verdict_of(rows[0])) == vars(said)  # what an interrupted step reads


def test_paragraphs_times_and_window_read_back_and_are_null_where_nobody_said_them(tmp_path):
    told = group("a", 3)
    told.verdicts[0] = said = Verdict("flawed", 1, asked=1003.5, answered=1007.25)
    first, second, _ = told.rollouts
    first.sampled, first.verified, first.paragraphs, first.window = 1000.5, 1001.5, ("It is 2.", "So 3."), 10_002
    second.sampled, second.window = 1002.0, 0
    save(tmp_path, 1, [[told]])
    rows = RunReader(tmp_path).rollouts(1)
    assert [row["times"] for row in rows] == [
        {"sampled": 1000.5, "verified": 1001.5, "asked": 1003.5, "answered": 1007.25},
        {"sampled": 1002.0, "verified": None, "asked": None, "answered": None},
        None,
    ]
    assert [row["paragraphs"] for row in rows] == [["It is 2.", "So 3."], None, None]
    assert [row["window"] for row in rows] == [10_002, 0, None]
    assert vars(verdict_of(rows[0])) == vars(said)


def test_a_run_of_format_2_has_none_of_what_came_later(tmp_path):
    save(tmp_path, 1, [[group("a")]])
    (file,) = (tmp_path / "rollouts" / "step-000001").iterdir()
    (tmp_path / "config.json").write_text('{"format": 2}')
    table, rows, _ = read_file(file)
    older = table.drop_columns(["paragraphs", "times", "window"])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, older.schema) as stream:
        stream.write_table(older)
        stream.write_batch(pa.RecordBatch.from_pylist([], schema=older.schema), custom_metadata={"rows": json.dumps(rows)})
    run = RunReader(tmp_path)
    assert run.table(1).equals(table) and {row["window"] for row in run.rollouts(1)} == {None} and run.trained(1).num_rows == 0


def test_each_rank_writes_its_own_and_one_without_rollouts_nothing(tmp_path):
    save(tmp_path, 3, [[group("a")], [], [group("b"), group("c")]])
    assert sorted(file.name for file in (tmp_path / "rollouts" / "step-000003").iterdir()) == ["rank-0.arrows", "rank-2.arrows"]
    assert [row["prompt_id"] for row in RunReader(tmp_path).rollouts(3)] == [*"aaabbbccc"]
    # Rank 0 says that the step is whole, though it may have no rollouts itself.
    save(tmp_path, 4, [[], [group("d")]])
    assert RunReader(tmp_path).steps() == [3, 4] and len(RunReader(tmp_path).rollouts(4)) == 3


def test_evaluations_stand_beside_by_set(tmp_path):
    """A set's name may be a path; an evaluation before training belongs to step 0."""
    for step in (0, 2):
        for name in ("aime24/test", "a%2Fb", "100.arrows-x", ""):
            measured = group(f"{name}:1")
            measured.rewards, measured.advantages, measured.kept = [], [], []
            save(tmp_path, step, [[], [measured]], "eval", name)
    save(tmp_path, 2, [[group("t")]])
    run = RunReader(tmp_path)
    assert run.steps("eval") == [0, 2] and run.steps() == [2]
    rows = run.rollouts(2, "eval")
    assert {row["kind"] for row in rows} == {"eval"} and len(rows) == 4 * 3
    assert {row["set"] for row in rows} == {"aime24/test", "a%2Fb", "100.arrows-x", "sums"}  # without a name: the prompts' source
    assert rows[0]["reward"] is rows[0]["advantage"] is rows[0]["kept"] is None
    assert [row["prompt_id"] for row in run.rollouts(2, "eval", "aime24/test")] == ["aime24/test:1"] * 3
    assert [row["prompt_id"] for row in run.rollouts(2)] == ["t"] * 3
    assert file_name(3, "eval", "aime24/test") == "rank-3.eval-aime24%2Ftest.arrows"
    with pytest.raises(ValueError, match=r"has no rollouts of step 1 \(eval\); steps that it has: 0, 2$"):
        run.rollouts(1, "eval")


def test_a_cut_file_reads_up_to_its_last_whole_batch_and_is_no_whole_step(tmp_path, caplog):
    save(tmp_path, 1, [[]])
    file = tmp_path / "rollouts" / "step-000001" / "rank-0.arrows"
    with RolloutWriter(file) as writer:
        for name in "abc":
            writer.add([group(name)])
        writer.end([9])
    whole, part = file.read_bytes(), file.with_name("rank-0.arrows.part")
    assert read_file(file)[1:] == ([9], "")
    file.unlink()
    run, seen = RunReader(tmp_path), []
    for size in (*range(0, len(whole), 501), len(whole) - 9):
        part.write_bytes(whole[:size])
        caplog.clear()
        rows = run.rollouts(1)
        assert [row["prompt_id"] for row in rows] == [name for name in "abc" for _ in range(3)][: len(rows)] and len(rows) % 3 == 0
        assert caplog.messages == [f"{part.parent}: cut off, or being written; {len(rows)} rollouts are whole"]
        assert run.steps() == []
        seen.append(len(rows))
        # Under its final name the file has been whole, so this is damage.
        part.rename(file)
        with pytest.raises(ValueError, match=rf"^{file}: damaged after {len(rows)} rollouts \(.+\); restore it, or read those: add .part"):
            run.rollouts(1)
        file.unlink()
    assert set(seen) == {0, 3, 6, 9}  # witness: cuts between and within all batches


def test_a_step_that_not_all_ranks_have_ended_is_not_whole(tmp_path, caplog):
    parts = [[group("a")], [group("b")], [group("c"), group("d")]]
    save(tmp_path, 1, parts)
    folder = tmp_path / "rollouts" / "step-000001"
    run = RunReader(tmp_path)
    assert len(run.rollouts(1)) == 12 and not caplog.messages
    # Killed before rank 0 had ended: nobody says how many there should be.
    (folder / "rank-0.arrows").rename(folder / "kept")
    assert run.steps() == [] and [row["prompt_id"] for row in run.rollouts(1)] == [*"bbbcccddd"]
    assert caplog.messages == [f"{folder}: cut off, or being written; 9 rollouts are whole"]
    (folder / "kept").rename(folder / "rank-0.arrows")
    # Files that were whole, and are short or gone.
    (folder / "rank-2.arrows").rename(folder / "kept")
    with pytest.raises(ValueError, match=rf"^{folder}: the file with rank 2's 6 rollouts is missing; where nodes share no"):
        run.rollouts(1)
    with RolloutWriter(folder / "rank-2.arrows") as file:
        file.add([group("c")])
    with pytest.raises(ValueError, match=r"rank-2.arrows: damaged after 3 rollouts \(there should be 6\)"):
        run.rollouts(1)
    (folder / "rank-2.arrows").rename(folder / "rank-2.arrows.part")  # as the message advises
    assert len(run.rollouts(1)) == 9 and caplog.messages[-1].endswith("9 rollouts are whole")
    # The step is done again, by fewer ranks: what a larger attempt has left is none of it.
    save(tmp_path, 1, parts[:2])
    assert [row["prompt_id"] for row in run.rollouts(1)] == [*"aaabbb"] and (folder / "rank-2.arrows.part").exists()


def test_a_failure_leaves_nothing_half_written(tmp_path):
    broken = group("b")
    broken.outcomes.pop()
    folder = folder_of(tmp_path)
    with pytest.raises(ValueError, match="not all the same length"):
        folder.save_rollouts(1, [group("a"), broken])
    assert not list((tmp_path / "rollouts" / "step-000001").iterdir()) and RunReader(tmp_path).steps() == []


def test_a_folder_that_has_gone_is_not_made_anew(tmp_path):
    folder = folder_of(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        folder.save_rollouts(1, [group("a")])
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line_that_names_the_file():
    for groups in (1, 200):  # at the end, and before it
        with pytest.raises(OSError) as caught, RolloutWriter(Path("/dev/full")) as file:
            for _ in range(groups):
                file.add([group("a")])
        kind, _, text = explained(caught.value, RANK)
        assert kind == "user" and text.startswith("no space left on device, or no inodes (/dev/full); what was whole stays whole")


def test_flipped_bytes_end_in_one_line_or_in_rows(tmp_path):
    """In a process of its own: a library that dies of a damaged file would take the tests with it."""
    save(tmp_path, 1, [[group("a"), group("b")]])
    script = tmp_path / "flip.py"
    script.write_text(FLIPS)
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, read = map(int, done.stdout.split())
    assert refused > 50 and refused + read == 300


FLIPS = """
import random, sys
from pathlib import Path
from soundrl.engine.files.run_reader import RunReader
run, choose, refused = RunReader(sys.argv[1]), random.Random(0), 0
file = Path(sys.argv[1]) / "rollouts" / "step-000001" / "rank-0.arrows"
whole = file.read_bytes()
for _ in range(300):
    broken = bytearray(whole)
    broken[choose.randrange(len(whole))] ^= 1 << choose.randrange(8)
    file.write_bytes(broken)
    try:
        run.rollouts(1)
    except ValueError as error:
        assert str(file) in str(error) and "\\n" not in str(error), error
        refused += 1
print(refused, 300 - refused)
"""


def test_an_older_run_still_opens(tmp_path):
    """Format 1, as it was written: a JSON object a line, rounded log-probabilities, null for those that the sampler did not say."""
    row = {"prompt_id": "p", "sample": 0, "prompt": "1 + 1?", "answer": "2", "text": "2", "outcome": "correct"}
    row |= {"verdict": {"kind": "flawed", "step": 1, "reason": ""}, "reward": 0.0, "advantage": -0.5, "kept": True}
    row |= {"finish_reason": "stop", "policy_version": 1, "tokens": [5, 6], "logprobs": [-0.25, None]}
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "config.json").write_text('{"fapo": {"lam": 1.0}}')
    file = tmp_path / "rollouts" / "step-000012.jsonl"
    file.write_text(json.dumps(row) + "\n" + json.dumps(row | {"sample": 1, "verdict": None}) + "\n")
    run = RunReader(tmp_path)
    assert run.format == 1 and run.steps() == [12] and run.steps("eval") == []
    first, second = run.rollouts(12)
    assert first == dict.fromkeys(SCHEMA.names) | row | {"kind": "train"} and (second["sample"], second["verdict"]) == (1, None)
    file.write_text(json.dumps(row) + "\n{]\n")
    with pytest.raises(ValueError, match=rf"^{file}:2: no JSON object \(.*\); restore it, or remove that line$"):
        run.rollouts(12)
    file.write_text(json.dumps(row | {"sample": "first"}) + "\n")
    with pytest.raises(ValueError, match=rf"^{file} holds no rollouts \(.*\); restore it$"):
        run.rollouts(12)


def test_metrics_of_a_killed_run_end_before_the_line_it_was_writing(tmp_path, caplog):
    run = RunReader(folder_of(tmp_path).path)
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss/policy": null}\n{"step": 2}\n{"step": 3, "lo')
    assert run.metrics() == [{"step": 1, "loss/policy": None}, {"step": 2}] and caplog.messages == [f"{file}:3: cut off, left out"]
    file.write_text('{"step": 1}\n7\n')
    with pytest.raises(ValueError, match=rf"^{file}:2: no JSON object"):
        run.metrics()


def test_what_is_no_run_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="is no run's folder"):
        RunReader(tmp_path / "nowhere")
    for text, words in (("{", "holds no JSON object"), ("[]", "holds no JSON object"), ('{"format": 99}', "format 99 is none that this")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            RunReader(tmp_path)


def test_the_command_prints_a_rollout_a_line(tmp_path):
    save(tmp_path, 2, [[group("a")]])
    command = [sys.executable, "-m", "soundrl.engine.files.run_reader", str(tmp_path)]
    done = subprocess.run([*command, "2"], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    refused = subprocess.run([*command, "3"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and refused.stderr == f"error: {tmp_path} has no rollouts of step 3 (train); steps that it has: 2\n"
    assert [row["text"] for row in rows] == [f"a says ∑ {i}" for i in range(3)] and "tokens" not in rows[0]


def test_ragged_rows_keep_every_bit():
    values = [-0.0, math.inf, -math.inf, 1e-45, random.Random(1).random()]
    column = ragged([values, (), np.array([math.nan])], "float32")
    assert column.type == pa.list_(pa.float32()) and column.null_count == column.values.null_count == 0
    assert column.values.to_numpy().tobytes() == np.array([*values, math.nan], np.float32).tobytes()


def test_settings_of_an_earlier_version_have_their_places_of_today(tmp_path):
    """Of a run that was begun with them, which goes on; inverse: with another value of one of them it does not."""
    old = json.loads((ROOT / "tests/browser/runs/small/config.json").read_text())
    assert (
        not old["model"]["activation_checkpointing"]
        and old["genrm"]["min_f1"] == 0.0
        and old["run"]["grace"] == 25.0
        and old["loss"]["correction_band"] == [0.5, 2.0]
    )  # witness
    config, missing = config_of(RunReader(ROOT / "tests/browser/runs/small"))
    assert (config.genrm.probe[1:], config.run.patience, config.loss.correction) == ((4, 0.0), (60.0, 25.0), ("tis", 0.5, 2.0))
    assert not {*missing} & {"genrm.probe", "run.patience", "loss.correction", "model.save_memory"} and config.model.save_memory == ()
    config = replace(config, run=replace(config.run, resume=True))
    (saved := tmp_path / "checkpoints" / "step-000002").mkdir(parents=True)
    (saved / "manifest.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert goes_on(tmp_path, config)
    old["loss"]["correction_band"] = [0.5, 3.0]
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"loss.correction \['tis', 0.5, 3.0\] \(now \['tis', 0.5, 2.0\]\)"):
        goes_on(tmp_path, config)
