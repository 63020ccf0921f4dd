"""What the pages say: every command is proved by a rule of `RULES`, programs run, links lead somewhere, and what is named exists."""

import ast
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro
from conftest import ROOT, apart, start
from fork_server import fork
from test_checkpoint import written
from test_memory_plan import QWEN_7B
from tiny import write_tiny
from transformers import AutoConfig

from soundrl.engine.config import GROUPS
from soundrl.engine.environments.environment import own_world
from soundrl.engine.evaluation.arguments import Arguments as Evaluating
from soundrl.engine.files.run_folder import RunFolder
from soundrl.engine.launch.last_words import RANK
from soundrl.engine.launch.launch import UserError, parse_arguments, plan_arguments, profile_argument
from soundrl.engine.launch.launcher import processes
from soundrl.engine.planning.command import everything, planned, report
from soundrl.engine.recipes import RECIPES
from soundrl.engine.telemetry.timeline import Timeline
from soundrl.engine.tools import convert, replay
from soundrl.fapo.records import Group, Outcome, Prompt, Rollout, Verdict
from soundrl.genrm import evaluate, label, selection
from soundrl.genrm.critic_data.critic_data import Planted, Sampled
from soundrl.genrm.make import make as making
from soundrl.genrm.serve.prm import Scoring
from soundrl.genrm.serve.server import Serving
from soundrl.kernels.certificate import __main__ as certificate
from soundrl.view import __main__ as viewing
from soundrl.view import sink

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "kernels" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"([A-Z_]+=\S+ )*(make|python|torchrun|bash|source) \S")
SHELL = {">", "2>&1", "|", "||", "&&", ";"}


def blocks(text: str, language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(text) if kind == language]


def spans(text: str) -> list[str]:
    return SPAN.findall(BLOCK.sub("", text))


def commands(text: str) -> list[str]:
    """Every line of its shell blocks, continued lines joined, and what stands between backticks and begins like a command."""
    lines = [line for body in blocks(text, "sh") for line in body.replace("\\\n", " ").splitlines()]
    return [line for line in lines if shlex.split(line, comments=True)] + [span for span in spans(text) if COMMAND.match(span)]


ALL = list(dict.fromkeys((page.name, command) for page in PAGES for command in commands(page.read_text())))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two models and a run's folder, all written by the project's own writers."""
    folder = tmp_path_factory.mktemp("place")
    write_tiny(folder / "tiny")
    AutoConfig.for_model("qwen2", **QWEN_7B, tie_word_embeddings=False).save_pretrained(folder / "7b")
    config = RECIPES["arith-genrm"]()
    ranks = SimpleNamespace(rank=0, size=1, main=True, gather=lambda value: [value])
    before = RANK.home, RANK.folder
    run = RunFolder(replace(config, run=replace(config.run, folder=str(folder / "runs"))), ranks)  # type: ignore[arg-type]
    phases = Timeline()
    with run.claimed():
        pass
    with phases("step"), phases("generate"):
        pass
    for kind in ("train", "eval"):
        run.save_rollouts(12, [group()], kind, "arith-test")
    run.log(12, {"reward/mean": 0.5})
    run.save_trace(phases.drain())
    run.close()
    written(run.path / "checkpoints", 40)
    RANK.home, RANK.folder = before
    return folder


def group() -> Group:
    """One right rollout, flawed in its second step."""
    rollout = {"prompt_tokens": (1,), "tokens": (2, 3), "logprobs": (-0.5, -0.1), "finish_reason": "stop", "policy_version": 1}
    return Group(
        prompt=Prompt(id="a", text="58+7?1\n", answer="5"),
        rollouts=[Rollout(prompt_id="a", sample=0, text="58+7=55\n#5\n", **rollout)],  # type: ignore[arg-type]
        outcomes=[Outcome.CORRECT],
        verdicts=[Verdict.flawed(1)],
        rewards=[0.0],
        advantages=[-1.0],
        kept=[True],
    )


# How a command is proved: words after the assignments in front, and the folder `place`.


def as_it_stands(words: list[str], place: Path) -> None:
    """Run, where a run's folder lies, in a process of its own: what it does with signals or threads is its own."""
    log = place / "said.log"
    process = fork(words[2], words[3:], apart(), log, place)
    process.join()
    said = log.read_text()
    log.unlink()
    assert process.exitcode == 0 and said, said


def says_its_help(words: list[str], place: Path) -> None:
    done = start([sys.executable, *words[1:]])
    assert done.returncode == 0 and "usage: engine/train.py" in done.stdout, done.stderr


def plan_of_run(words: list[str], place: Path):
    """The command line of a run up to its memory plan, as `--plan` makes it: of a model's files only config.json is read, a tiny one's or,
    where a plan is asked for, that of a 7B. GPUs are as many as torchrun is to start, or 8, of 80 GiB."""
    script = words.index("engine/train.py")
    asked, arguments = plan_arguments(words[script + 1 :])
    config = parse_arguments(profile_argument(arguments)[1])
    on_gpu = config.model.dtype == "bfloat16"
    if not own_world(config.model.path):
        config = replace(config, model=replace(config.model, path=str(place / ("7b" if asked and on_gpu else "tiny"))))
    counts = {"--nnodes": 1, "--nproc-per-node": 8}
    counts |= {name: int(words[words.index(name) + 1]) for name in counts if name in words[:script]}
    gpus = (asked and asked.gpus) or (counts["--nnodes"] * counts["--nproc-per-node"] if on_gpu else processes())
    plan = planned(config, gpus, (asked and asked.gpu_gib) or (80.0 if on_gpu else None))
    plan.check()
    return plan


def reads_its_arguments(words: list[str], place: Path) -> None:
    """The module's own command line; nothing is done with it."""
    kinds = {
        "serve": Serving,
        "evaluate": evaluate.Arguments if "genrm" in words[2] else Evaluating,
        "selection": selection.Arguments,
        "critic_data": Planted | Sampled,
    }
    kinds |= {"make": making.Arguments, "prm": Scoring, "label": label.Arguments, "replay": replay.Arguments, "sink": sink.Arguments}
    kinds |= {"view": viewing.Arguments}
    arguments = words[3 : words.index("--") if "--" in words else None]  # what follows are settings of the training
    if words[2].endswith(("serve", "prm")):  # looks for the model
        arguments[arguments.index("--model") + 1] = str(place / "tiny")
    if words[2].endswith("convert"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convert, "convert", lambda *_: place / "tiny")
            tyro.cli(convert.main, args=arguments)
    else:
        tyro.cli(kinds[words[2].rpartition(".")[2]], args=arguments)


def is_certified(words: list[str], place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words[2:])
        assert all(path.exists() for path in (certificate.arguments().against,) if path)


def has_its_options(words: list[str], place: Path) -> None:
    """A bench or another script: the file is there and knows each option, by argparse or as a field of its `Arguments`."""
    script = ROOT / words[1]
    texts = [script.read_text()]
    if "from harness import" in texts[0]:
        texts.append((ROOT / "bench" / "harness.py").read_text())
    if beside := re.search(r"^from (\w+) import .*\bArguments\b", texts[0], re.MULTILINE):
        texts.append(script.with_name(f"{beside[1]}.py").read_text())
    known = set(re.findall(r'"(--[a-z-]+)"', "\n".join(texts)))
    for node in (node for text in texts for node in ast.walk(ast.parse(text))):
        if isinstance(node, ast.ClassDef) and node.name == "Arguments":
            known |= {"--" + ast.unparse(part.target).replace("_", "-") for part in node.body if isinstance(part, ast.AnnAssign)}
    assert {word.partition("=")[0] for word in words[2:] if word.startswith("--")} <= known


def expands(words: list[str], place: Path) -> None:
    """`make -n`: the target is there, its commands parse as shell, and those of ours are proved in turn."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)
    for line in done.stdout.replace("\\\n", " ").splitlines():
        parts = shlex.split(line)
        end = next((number for number, word in enumerate(parts) if word in SHELL), len(parts))
        if any(word == "engine/train.py" or word.startswith(("soundrl.", "bench/", "starts/")) for word in parts[:end]):
            prove(shlex.join(parts[:end]), place)


def has_its_files(words: list[str], place: Path) -> None:
    paths = [word for word in words[3:] if "/" in word]
    assert paths == [word for word in paths if (ROOT / word).exists()]


def is_the_librarys(words: list[str], place: Path) -> None:
    """Of a folder that a bundle has made; its own command line."""
    done = start([sys.executable, *words[1:3], "--help"])
    assert done.returncode == 0 and "-d DIRECTORY" in done.stdout, done.stderr


def is_packaged(words: list[str], place: Path) -> None:
    """What is built from `.` is what tests/test_packaging.py builds; any other package is pinned as the converter says."""
    what = [word for word in words[4:] if not word.startswith("--")]
    assert what == ["."] or set(what) <= set(convert.PINNED.values())


def parses_as_shell(words: list[str], place: Path) -> None:
    """A script of ours, with words that it knows."""
    subprocess.run(["bash", "-n", words[1]], cwd=ROOT, check=True)
    assert [word for word in words[2:] if word not in (ROOT / words[1]).read_text()] == []


def is_the_installs(words: list[str], place: Path) -> None:
    assert words[1].startswith(".venv/") and re.search(r"^VENV\s*\?= \.venv$", (ROOT / "Makefile").read_text(), re.MULTILINE)


def assigns(words: list[str], place: Path) -> None:
    assert all(re.fullmatch(r"\w+=\S+", word) for word in words[1:])


Proof = Callable[[list[str], Path], object]
RULES: list[tuple[str, Proof]] = [
    (r"source ", is_the_installs),
    (r"export ", assigns),
    (r"make ", expands),
    (r"(\S*python|torchrun) (.* )?engine/train\.py (.* )?--help$", says_its_help),
    (r"(\S*python|torchrun) (.* )?engine/train\.py( |$)", plan_of_run),
    (r"python -m soundrl\.engine\.(files\.run_reader|tools\.(trace|export)) ", as_it_stands),
    (
        r"\S*python -m soundrl\.(genrm\.(serve|serve\.prm|evaluate|selection|critic_data|make|label)"
        r"|engine\.(evaluate|tools\.(convert|replay))|view|view\.sink) ",
        reads_its_arguments,
    ),
    (r"\S*python -m soundrl\.kernels\.certificate( |$)", is_certified),
    (r"python -m http\.server -d \S+$", is_the_librarys),
    (r"python -m pytest ", has_its_files),
    (r"python -m pip (install|wheel) ", is_packaged),
    (r"\S*python (bench|starts)/(\w+/)?\w+\.py( |$)", has_its_options),
    (r"bash \S+\.sh( |$)", parses_as_shell),
]
"""The first whose pattern fits."""


def proof_of(command: str) -> tuple[Proof | None, list[str]]:
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    return next((proof for pattern, proof in RULES if re.match(pattern, " ".join(words))), None), words


def prove(command: str, place: Path) -> None:
    proof, words = proof_of(command)
    assert proof is not None, f"no rule of tests/test_docs.py proves {command!r}; add one"
    proof(words, place)


@pytest.mark.parametrize(("page", "command"), ALL)
def test_every_command_is_proved(page, command, place):
    prove(command, place)


def test_each_page_and_each_rule_has_commands():
    """Witness: they are found."""
    assert {page for page, _ in ALL} >= {"README.md", "CONTRIBUTING.md", "first-run.md", "judges.md", "many-gpus.md", "run-folder.md"}
    assert {proof_of(command)[0] for _, command in ALL} == {proof for _, proof in RULES}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("frobnicate --all", "no rule"),
        ("python engine/train.py fapo-7b --optim.lrr 1", "did you mean --optim.lr"),
        ("python engine/train.py fapo-7b --rollout.prompts 500", "no multiple of optim.minibatch_prompts"),
        ("torchrun --nproc-per-node 2 engine/train.py fapo-7b --plan --gpu-gib 24", "rollout.memory leaves vLLM"),
        ("make nonsense", "No rule to make target"),
        ('make run ARGS="--run.stops 3"', "unknown setting --run.stops"),
        ("python bench/deal.py --nonsense", "--nonsense"),
        ("python bench/nonsense.py", "No such file"),
        ("python -m soundrl.genrm.serve --model x --wokers 2", "2"),
        ("python -m soundrl.engine.files.run_reader runs/arith-genrm 13", "no rollouts of step 13"),
        ("bash tests/gpu/run.sh nonsense", "nonsense"),
        ("python -m pytest tests/test_nonsense.py", "test_nonsense"),
        ("python -m pip install nonsense", "nonsense"),
    ],
)
def test_a_made_up_command_is_not(command, said, place):
    with pytest.raises((AssertionError, UserError, ValueError, OSError, SystemExit), match=re.escape(said)):
        prove(command, place)


def test_commands_are_found_in_blocks_and_between_backticks():
    text = "`make run` and `run.steps`\n```sh\n# a comment\npython a.py \\\n    --b 1  # why\n```\n```text\npython not.py\n```\n"
    assert [shlex.split(command, comments=True) for command in commands(text)] == [["python", "a.py", "--b", "1"], ["make", "run"]]


def test_the_plan_on_the_page_is_what_is_printed(place):
    page = (ROOT / "docs" / "many-gpus.md").read_text()
    config = RECIPES["fapo-7b"]()
    config = replace(config, model=replace(config.model, path=str(place / "7b")))
    printed = report(config, everything(config, 32, 80.0), "GPU")
    (shown,) = blocks(page, "text")
    assert shown == f"{printed}\n  it fits\n"


PROGRAMS = [(page.name, body) for page in PAGES if page.parent.name == "docs" for body in blocks(page.read_text(), "python")]


@pytest.mark.parametrize(("page", "program"), PROGRAMS)
def test_programs_of_the_pages_run(page, program, place, monkeypatch, tmp_path):
    """Those of kernels/README.md run in tests/test_kernels_readme.py."""
    monkeypatch.chdir(place)
    (tmp_path / "program.py").write_text(program)
    runpy.run_path(str(tmp_path / "program.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_say_what_they_are_and_json_is_json(page):
    text = page.read_text()
    assert {kind for kind, _ in BLOCK.findall(text)} <= {"sh", "text", "json", "python"}
    for body in blocks(text, "json"):
        assert all(isinstance(json.loads(line), dict) for line in body.splitlines())


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them: `## A benchmark's row` → `a-benchmarks-row`."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(file.read_text()), f"{page.name}: {target}"


def test_every_page_is_reached_from_the_readme():
    linked = {ROOT / target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())}
    assert set(PAGES) - linked == {ROOT / "README.md"}


def named_settings(text: str) -> list[str]:
    return [
        f"{found[1]}.{found[2].removeprefix('no-').replace('-', '_')}"
        for span in spans(text)
        if not span.startswith("error: ")
        for found in re.finditer(rf"(?:^|(?<=\s)|--)({'|'.join(GROUPS)})\.([a-z][\w-]*)", span)
    ]


FOLDERS = "kernels|fapo|genrm|engine|view|bench|tests|docs|starts|requirements|examples"


def named_files(text: str) -> list[str]:
    return [span for span in spans(text) if re.fullmatch(rf"({FOLDERS})/([\w./-]*/)?([\w-]+\.\w+)?", span)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_and_files_that_are_named_exist(page):
    text = page.read_text()
    known = {f"{group}.{name}" for group, kind in GROUPS.items() for name in kind.__dataclass_fields__}
    assert set(named_settings(text)) <= known
    assert [file for file in named_files(text) if not (ROOT / file).exists()] == []


def test_what_is_named_is_found():
    """Witness, and the inverse."""
    assert named_settings("`optim.lr`, `--run.no-overlap`, `model.attention triton`, `data.jsonl:3`, `a/run.sh`") == [
        "optim.lr",
        "run.overlap",
        "model.attention",
        "data.jsonl",
    ]
    assert named_files("`engine/train.py`, `bench/results/`, `engine/x/y.py`, `fapo/rho`, `runs/a.py`, `docs/`") == [
        "engine/train.py",
        "bench/results/",
        "engine/x/y.py",
        "docs/",
    ]


def test_metrics_of_the_run_folders_page_are_written_by_the_code():
    source = "\n".join(path.read_text() for folder in ("fapo", "genrm", "engine") for path in (ROOT / folder).rglob("*.py"))
    names = [name for name in spans((ROOT / "docs" / "run-folder.md").read_text()) if re.fullmatch(r"[a-z]+/[a-z]\w*", name)]
    assert len(names) >= 40
    written = [name for name in names if f'"{name}"' in source or f'"{name}{{' in source]
    unknown = [name for name in names if name not in written and not re.search(rf'"{name.partition("/")[2]}"', source)]
    assert unknown == []


def test_findings_that_are_pointed_to_stand_in_the_changelog():
    page = (ROOT / "docs" / "measured.md").read_text().partition("## Findings")[2]
    changelog = " ".join((ROOT / "CHANGELOG.md").read_text().split())
    phrases = re.findall(r'"([^"]+)"', page)
    assert len(phrases) > 20 and [phrase for phrase in phrases if phrase not in changelog] == []


def test_pages_are_short():
    lines = {page.relative_to(ROOT): len(page.read_text().splitlines()) for page in PAGES}
    assert lines[Path("README.md")] <= 150 and lines[Path("CONTRIBUTING.md")] <= 80
    assert max(len(line) for page in PAGES for line in page.read_text().splitlines() if not line.startswith("|")) <= 160
