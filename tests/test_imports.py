"""Import directions (kernels · fapo → genrm → engine → view), what the kernels need, and names that would shadow the standard library."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "kernels": {"kernels"},
    "fapo": {"fapo", "kernels"},
    "genrm": {"genrm", "fapo", "kernels"},
    "engine": {"engine", "genrm", "fapo", "kernels"},
    "view": {"view", "engine", "genrm", "fapo", "kernels"},
}
OF_KERNELS = {"torch", "triton", "soundrl", *sys.stdlib_module_names}
PLUGIN = defaultdict(set, {"plugin.py": {"pytest"}})
HOSTS = {"verl"}
FILES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))


def imported(tree: ast.AST, nested: bool = True) -> set[str]:
    """Full names of everything a module imports, at any depth; without `nested` what its import itself imports."""
    names = set()
    for node in ast.walk(tree) if nested else ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}: one spelling everywhere, from soundrl.…"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_import_direction_and_size(path):
    text = path.read_text()
    folder = path.relative_to(ROOT).parts[0]
    # Adapters import their hosts where they are called.
    nested = path.parent.name != "adapters"
    assert nested or {name.split(".")[0] for name in imported(ast.parse(text))} <= OF_KERNELS | HOSTS
    for name in imported(ast.parse(text), nested):
        parts = name.split(".")
        assert parts[0] not in MAY_IMPORT, f"{path.name} imports {name}; write soundrl.{name}"
        if parts[0] == "soundrl":
            assert parts[1] in MAY_IMPORT[folder], f"{folder}/{path.name} may not import soundrl.{parts[1]}"
        if folder == "kernels":
            assert parts[0] in OF_KERNELS | PLUGIN[path.name], (
                f"kernels/{path.name} imports {parts[0]}; the kernels need torch and triton alone"
            )
    assert len(text.splitlines()) <= 350, f"{path.name} is longer than 350 lines: does it still hold one noun?"
    on_path = path.parent.name in MAY_IMPORT  # `torchrun engine/train.py` puts engine/ first on sys.path, and no room of it
    assert not (on_path and path.stem in sys.stdlib_module_names), f"{path.name} would shadow the standard library's {path.stem}"


def test_the_check_finds_a_wrong_import():
    assert imported(ast.parse("def f():\n    from soundrl.engine.config import Config")) == {"soundrl.engine.config.Config"}


LIGHT = (
    "engine.config engine.files.rollout_file engine.files.run_reader engine.files.saved_step engine.phases engine.recipes "
    "engine.tools.trace fapo.flips fapo.measures fapo.records fapo.reward_rule genrm.labels genrm.prompts genrm.watch.alarms"
).split()
"""What reads a run for the inspector, whose process has no room for torch."""


def test_a_run_is_read_without_torch():
    code = (
        f"import importlib, sys\nfor name in {LIGHT}: importlib.import_module('soundrl.' + name)\n"
        "print(sorted({'torch', 'vllm', 'transformers', 'pandas'} & {*sys.modules}), 'pyarrow' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert said.stdout == "[] True\n", said.stdout + said.stderr


def parameters(tree: ast.Module) -> dict[str, int]:
    """How many parameters a function takes, beside the object it belongs to."""
    out = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            out[node.name] = max(out.get(node.name, 0), len(given) - (given[:1] != [] and given[0].arg in ("self", "cls")))
    return out


@pytest.mark.parametrize("path", [p for p in FILES if p.relative_to(ROOT).parts[0] != "kernels"], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_function_takes_at_most_seven_parameters(path):
    many = {name: count for name, count in parameters(ast.parse(path.read_text())).items() if count > 7}
    assert not many, f"{path.name}: {many}; what belongs together is an object"


def test_parameters_are_counted():
    tree = ast.parse("class A:\n    def f(self, a, /, b, *c, d=1): ...\ndef g(): ...")
    assert parameters(tree) == {"f": 3, "g": 0}


def test_the_entry_reads_as_the_pipeline():
    text = (ROOT / "engine" / "train.py").read_text()
    (main,) = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    assert len(text.splitlines()) <= 120 and main.end_lineno - main.lineno < 50


def test_nothing_is_unpickled_or_evaluated():
    """Static: no eval, exec, pickle, marshal, shelve or unguarded torch.load anywhere in the four folders."""
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert not {n.split(".")[0] for n in imported(tree)} & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}, path
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load", "parse_expr", "sympify", "os.system"), f"{path}:{node.lineno} {called}"
                flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert flags.get("shell") != "True" and flags.get("trust_remote_code") != "True", f"{path}:{node.lineno}"
