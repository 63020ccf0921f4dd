"""Low-level RL training for language models: `soundrl.kernels` alone, or with `fapo`, `genrm` and `engine` around it.

This file makes `soundrl` a regular package: a folder of that name in the working directory, such as a clone, then no longer stands before
the installed one. Nothing is imported here; each public name has one path, e.g. `soundrl.kernels.linear_logprob.linear_logprob`.
"""

from pathlib import Path

__version__ = "0.1.0"

_here = Path(__file__).resolve().parent
if _here.parent.name == "package":  # in the repository, whose folders lie at its root
    __path__.append(str(_here.parents[1]))

# Two distributions hold the same kernels, soundrl and soundrl-kernels, and whichever came last wrote the files.
_installed = sorted(path.name.removesuffix(".dist-info") for path in _here.parent.glob("soundrl*.dist-info"))
if len({name.rpartition("-")[2] for name in _installed}) > 1:
    raise ImportError(
        f"{' and '.join(_installed)} are installed in one place, hold the same kernels and differ: "
        "pip uninstall soundrl-kernels, then pip install --force-reinstall --no-deps soundrl"
    )
