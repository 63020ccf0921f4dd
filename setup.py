"""Maps each folder of the repository, and the rooms inside it, to any depth, to a module of `soundrl` (docs: README, "Layout")."""

from pathlib import Path

from setuptools import setup

# Of the whole, or of the kernels alone (package/kernels_alone.py).
FOLDERS = [folder for folder in ("kernels", "fapo", "genrm", "engine", "view") if Path(folder).is_dir()]
ROOMS = [str(init.parent) for folder in FOLDERS for init in sorted(Path(folder).rglob("*/__init__.py"))]

# The plain folder names cannot be installed: `kernels` is a package that transformers itself imports. `soundrl` itself lies in package/:
# at the root it would stand before the installed one.
MODULES = {"soundrl": "package/soundrl"} | {f"soundrl.{folder.replace('/', '.')}": folder for folder in (*FOLDERS, *ROOMS)}
setup(
    packages=list(MODULES),
    package_dir=MODULES,
    package_data={
        "soundrl": ["py.typed"],
        "soundrl.engine.planning": ["models.json"],
        "soundrl.kernels": ["README.md"],
        "soundrl.view": ["page/*"],
    },
)
