"""What the training needs beyond the kernels, told in one line where it is missing."""

from importlib.util import find_spec

NEEDED = ("transformers", "accelerate", "aiohttp", "tyro", "rich", "safetensors", "pyarrow", "math_verify")
"""Modules of the extra `train` that are imported wherever the training is."""


def check_extra(package: str) -> None:
    """ModuleNotFoundError with the command that installs them; called where `package` is first imported."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"{package} needs {', '.join(missing)}: pip install 'soundrl[train]'", name=missing[0])
