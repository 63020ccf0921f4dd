"""A user's mistakes end in one line that names setting and cure, before any training step; no traceback, no hang."""

import json
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import start
from tiny import write_tiny

from soundrl.engine.config import GROUPS, Config, Data, Genrm, Model, Run
from soundrl.engine.launch.launch import UserError, parse_arguments
from soundrl.engine.recipes import RECIPES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["arith", "--fapo.lamm", "1"], "unknown setting --fapo.lamm; did you mean --fapo.lam?"),
        (["arith", "--lam", "1"], "unknown setting --lam; did you mean --fapo.lam?"),
        (["--optim.learning-rate=1"], "unknown setting --optim.learning-rate"),
        (["airth"], "unknown recipe 'airth'; choose one of arith, arith-genrm, arith-tools, smollm2-gsm8k"),
        (["arith", "--run.steps", "many"], "--run.steps: invalid literal for int() with base 10: 'many'"),
        (["arith", "--run.steps", "-1"], "run.steps is -1, but must be ≥ 0"),
        (["arith", "--loss.correction", "magic"], "loss.correction='magic' is unknown; use one of none, tis, icepop, sequence"),
        (["arith", "--optim.minibatch-prompts", "5"], "rollout.prompts 32 is no multiple of optim.minibatch_prompts 5"),
        (["arith", "--rollout.max-new-tokens", "90"], "rollout.max_new_tokens 90 leaves no room for a prompt in model.max_length 80"),
        (["arith", "--optim.microbatch-tokens", "64"], "optim.microbatch_tokens 64 cannot hold one sequence"),
        (["arith", "--model.save-memory", "offload", "offload"], "model.save_memory names offload twice; name any of recompute, offload"),
        (["arith", "--rollout.samples", "1"], "rollout.samples 1 leaves no group to compare with"),
        (["arith", "--rollout.refill", "-1"], "rollout.refill is -1, but must be ≥ 0"),
        (["arith", "--data.difficulty", "level", "-2"], "data.difficulty -2 is a number of visits; use at least 1, or 0 for"),
        (["arith", "--loss.kl", "-0.1", "k3", "cpu"], "loss.kl -0.1 would reward leaving the reference, or is no"),
        (["arith", "--genrm.sampling", "0", "3"], "genrm.sampling is 0.0 3; use a temperature"),
        (["arith", "--genrm.deadline", "9", "5"], "genrm.deadline is 9.0 5.0; use seconds above 0"),
        (["arith", "--run.eval-sampling", "0", "1", "1"], "run.eval_sampling is 0 1.0 1.0; use at least 1 rollout"),
        (["arith", "--fapo.lam", "-1"], "fapo.lam -1.0 would reward flaws"),
        (["arith", "--genrm.judge", "serve"], "genrm.judge is serve, but genrm.model is empty"),
        (["arith", "--genrm.judge", "serve", "--genrm.model", "x", "--genrm.workers", "0", "1"], "genrm.workers is 0 1; use at"),
        (["arith", "--genrm.probe", "arith", "5"], "genrm.probe is arith 5, but genrm.judge is oracle; probes need judge endpoint"),
        (["genrm-arith", "--genrm.judge", "oracle"], "run.task critic needs no judge, but genrm.judge is oracle"),
        (["arith", "--genrm.judge", "none"], "genrm.judge is none, so fapo.lam 1.0 has no verdicts to act on"),
        (["arith", "--genrm.judge", "endpoint"], "genrm.urls is empty; give one or more, e.g. --genrm.urls http://"),
        (["smollm2-gsm8k", "--genrm.judge", "oracle"], "genrm.judge is oracle, which knows the embedded world only"),
        (["arith", "--data.train", "x.jsonl", "--genrm.judge", "none", "--fapo.lam", "0"], "model.path arith knows only the characters"),
    ],
)
def test_mistakes_in_settings(arguments, message):
    with pytest.raises(UserError) as caught:
        parse_arguments(arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_overrides_reach_the_config():
    config = parse_arguments(["arith", "--fapo.lam", "0.5", "--data.test", "a.jsonl", "b.jsonl", "--no-fapo.normalize-std"][:-1])
    assert (config.fapo.lam, config.data.test, config.run.steps) == (0.5, ("a.jsonl", "b.jsonl"), RECIPES["arith"]().run.steps)
    assert parse_arguments([]).run.name == "arith"
    assert parse_arguments(["--run.seed=7"]).run.seed == 7
    assert not parse_arguments(["arith", "--fapo.no-normalize-std"]).fapo.normalize_std


def test_settings_stay_few_and_explained():
    settings = sum(len(fields(group)) for group in GROUPS.values())
    assert settings <= 72
    shown = subprocess.run([sys.executable, "engine/train.py", "arith", "--help"], capture_output=True, text=True, check=True).stdout
    assert shown.count("(default:") >= settings


def test_recipes_hold_the_papers_values():
    """arXiv 2510.22543 Tab. 1 and the released scripts."""
    for size, response, steps, parallel in (("7b", 8192, 200, 1), ("32b", 20480, 500, 4)):
        for name, lam in ((f"grpo-{size}", 0.0), (f"fapo-{size}", 1.0)):
            c = RECIPES[name]()
            assert (c.rollout.prompts, c.rollout.samples, c.optim.minibatch_prompts) == (512, 8, 32)
            assert (c.rollout.max_new_tokens, c.max_prompt_tokens) == (response, 2048)
            assert (*c.fapo.overlong, c.fapo.lam) == (4096, 1.0, lam)
            assert (c.rollout.temperature, *c.run.eval_sampling) == (1.0, 32, 1.0, 0.7)
            assert (c.optim.lr, c.optim.warmup_steps, c.optim.adamw) == (1e-6, 10, (0.9, 0.999, 0.1))
            assert (c.optim.grad_clip, c.loss.clip) == (1.0, (0.2, 0.28, 10.0))
            assert (c.run.steps, c.run.eval_every, c.rollout.tensor_parallel) == (steps, 10, parallel)
            assert (c.genrm.max_tokens if lam else 16384) == 16384


def small(folder: Path, data: Path, **genrm) -> list[str]:
    """Arguments of the smallest run on a tiny model and a data file."""
    return [
        "smollm2-gsm8k",
        *("--model.path", str(folder), "--model.dtype", "float32", "--model.max-length", "64", "--rollout.max-new-tokens", "16"),
        *("--data.train", str(data), "--data.test", "--data.instruction", "", "--data.form", "box", "--warm-start.steps", "0"),
        *("--rollout.engine", "torch"),
        *("--rollout.prompts", "2", "--optim.minibatch-prompts", "2", "--rollout.samples", "2", "--run.steps", "1"),
        *("--run.folder", str(data.parent / "runs")),
        *(part for key, value in genrm.items() for part in (f"--genrm.{key}", value)),
    ]


def rows(path: Path, *lines: object) -> Path:
    path.write_bytes(b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines))
    return path


GOOD = {"problem": "1+1?1\n", "answer": "2"}


MISTAKES: dict[str, tuple[object, tuple[str, ...]]] = {
    # One row a kind: every other malformed one is refused by the same readers, see test_data.py and test_critic_data.py.
    "invalid-utf8": (b'{"problem": "\xff\xfe", "answer": "2"}', ("data.jsonl:2", "UTF-8")),
    "unreadable-answer": ({"problem": "1+1?1\n", "answer": "\\frac{1}{"}, ("data.jsonl:2", "reference answer")),
    "longer-than-context": ({"problem": "1+1" * 40 + "?1\n", "answer": "2"}, ("data.jsonl:2", "tokens", "model.max_length")),
    "critic": (
        {"problem": "1+1?", "steps": ["2"], "final_answer_correct": True, "label": 1},
        ("data.jsonl:2", "label: 1 is no step of the 1"),
    ),
    "no-safetensors": (GOOD, ("no .safetensors file", "soundrl.engine.tools.convert")),
}


@pytest.fixture(scope="module")
def said(torchrun_once, tmp_path_factory) -> dict[str, str | None]:
    """What the main job says of each mistake, and of a run with none."""
    runs = {}
    for name, (bad, _) in (MISTAKES | {"none": (GOOD, ())}).items():
        root = tmp_path_factory.mktemp(name)
        folder = write_tiny(root / "tiny")
        if name == "no-safetensors":
            (folder / "model.safetensors").unlink()
        first = bad | {"label": 0} if name == "critic" and isinstance(bad, dict) else GOOD
        critic = ["--run.task", "critic", "--data.form", ""] if name == "critic" else []
        runs[name] = [*small(folder, rows(root / "data.jsonl", first, bad)), *critic]
    return dict(zip(runs, torchrun_once("runs", 1, runs=list(runs.values())), strict=True))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_files_is_named(said, mistake):
    message = said[mistake]
    assert message is not None and all(part in message for part in MISTAKES[mistake][1]), message
    assert "\n" not in message
    assert said["none"] is None  # inverse: the same run without a mistake goes through


def test_a_dead_judge_is_named_before_training(train, tmp_path):
    """As a user sees any of them: one line, status 2, no traceback."""
    folder = write_tiny(tmp_path / "tiny")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    arguments = small(folder, rows(tmp_path / "data.jsonl", GOOD, GOOD), judge="endpoint", urls=url, model="judge")
    done = train(*arguments, "--fapo.lam", "1", NPROC="1", timeout=1200)
    assert done.returncode == 2, (done.returncode, done.stdout[-2000:], done.stderr[-3000:])
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "genrm.urls" in errors[0] and url in errors[0], done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr


def test_a_mistake_in_settings_is_told_before_anything_heavy_is_imported():
    """Importing torch and transformers takes ten seconds; plain python leaves that to the processes that torchrun starts."""
    script = "import runpy, sys; sys.argv[0] = 'engine/train.py'; run = lambda: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    script += "try: run()\nfinally: print({'torch', 'transformers', 'vllm'} & set(sys.modules))"
    shown = start([sys.executable, "-c", script, "arith", "--help"])
    assert "--fapo.lam" in shown.stdout and shown.stdout.endswith("set()\n"), shown.stdout[-200:] + shown.stderr[-2000:]
    done = start([sys.executable, "engine/train.py", "arith", "--fapo.lam", "-1"])
    assert done.returncode == 2 and done.stderr.startswith("error: fapo.lam -1.0 would reward flaws"), done.stderr[-2000:]


def test_a_config_made_in_python_is_checked_as_well():
    with pytest.raises(ValueError, match="genrm.judge is endpoint, but genrm.urls is empty"):
        Config(model=Model(path="x"), data=Data(train=("y",)), run=Run(name="z"), genrm=Genrm())
