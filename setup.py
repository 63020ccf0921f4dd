"""Maps each folder of the repository to a module of `soundrl` (docs: README, "Layout")."""

from setuptools import setup

FOLDERS = ("kernels", "fapo", "genrm", "engine")

# The plain folder names cannot be installed: `kernels` is a package that transformers itself imports.
setup(
    packages=[f"soundrl.{folder}" for folder in FOLDERS],
    package_dir={f"soundrl.{folder}": folder for folder in FOLDERS},
)
