"""The kernels as a distribution of their own, soundrl-kernels (torch, and triton where it exists): `python package/kernels_alone.py dist`.

Writes an sdist and, built from it, a wheel into the folder. Same modules, same version, same setup.py as the whole.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUMMARY = (
    "Triton kernels for reinforcement learning of language models: log-probabilities and policy losses without logits, packed attention"
)


def lay_out(tree: Path) -> None:
    """The files that packaging reads, the kernels' README as the page of the index."""
    shutil.copytree(ROOT / "kernels", tree / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "package" / "soundrl", tree / "package" / "soundrl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "kernels" / "README.md", tree / "README.md")
    for name in ("setup.py", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree)
    settings = (ROOT / "pyproject.toml").read_text()
    for pattern, new in (
        (r'^name = "soundrl"$', 'name = "soundrl-kernels"'),
        (r"^description = .*$", f'description = "{SUMMARY}"'),
        (r"^\[project\.optional-dependencies\]\n(?:(?!\[)[^\n]*\n)*", ""),
    ):
        settings, found = re.subn(pattern, new, settings, flags=re.MULTILINE)
        assert found == 1, f"pyproject.toml has {found} times {pattern}"
    (tree / "pyproject.toml").write_text(settings)


def build(kind: str, tree: Path, into: Path) -> Path:
    """The sdist or wheel of `tree`, by this Python's setuptools and without network."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(into)], cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: no {kind}: {done.stderr[-3000:]}")
    return into / done.stdout.split()[-1]


def main(into: Path) -> tuple[Path, Path]:
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch, "tree")
        lay_out(tree)
        sdist = build("sdist", tree, into)
        with tarfile.open(sdist) as archive:
            archive.extractall(scratch, filter="data")
        return sdist, build("wheel", Path(scratch, sdist.name.removesuffix(".tar.gz")), into)


if __name__ == "__main__":
    print(*main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist").absolute()), sep="\n")
