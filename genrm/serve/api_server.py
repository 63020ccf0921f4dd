"""vLLM's API server on a machine without GPUs, started without the process in which vLLM looks at the model's class:

python -m soundrl.genrm.serve.api_server --model models/genrm …          arguments as of vllm.entrypoints.openai.api_server
"""

from __future__ import annotations

import json
from pathlib import Path


def inspect_here(folder: Path) -> None:
    """Register the class of the folder's model as one already imported. vLLM would import all of itself once more, in a process of its
    own, to ask the class what it can do (10 to 30 s of a core, the first time on a machine): lest CUDA begin in a process that forks."""
    from vllm import ModelRegistry

    for name in json.loads((folder / "config.json").read_text()).get("architectures") or ():
        if name in ModelRegistry.models:  # of others vLLM says that it does not know them
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


if __name__ == "__main__":
    import runpy
    import sys

    inspect_here(Path(sys.argv[sys.argv.index("--model") + 1]))
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
