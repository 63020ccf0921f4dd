"""Maps each folder of the repository, and the rooms inside it, to any depth, to a module of `soundrl` (docs: README, "Layout")."""

from pathlib import Path

from setuptools import setup

FOLDERS = ("kernels", "fapo", "genrm", "engine")
ROOMS = [str(init.parent) for folder in FOLDERS for init in sorted(Path(folder).rglob("*/__init__.py"))]

# The plain folder names cannot be installed: `kernels` is a package that transformers itself imports.
setup(
    packages=[f"soundrl.{folder.replace('/', '.')}" for folder in (*FOLDERS, *ROOMS)],
    package_dir={f"soundrl.{folder.replace('/', '.')}": folder for folder in (*FOLDERS, *ROOMS)},
    package_data={"soundrl.kernels": ["README.md"]},
)
