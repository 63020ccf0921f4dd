"""`bench/science/real_text.py` several times, its runs in forks of this process: calls of `arguments["calls"]`, each with words and what is
to happen: `kill` ("stage", n): the stage's run is killed (SIGKILL) in its n-th supervised step, once a checkpoint is whole; `stop` n: the
n-th verdict of the benchmark is the last that is written. Writes what each call has ended with, the supervised steps of each run, and the
digest of the judge as a run makes it that nobody kills.

The model is a tiny random one, with a tokenizer of `arguments["texts"]`; `base` is one without chat template. The judge is a scripted
endpoint instead of a vLLM server, the sampler plain torch.
"""

import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench" / "science"))
import real_text
import torch
import torch.utils.tensorboard  # here, and not in every fork
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from soundrl.engine import trainer, warm_start
from soundrl.engine.launch.launch import be_quiet, parse_arguments
from soundrl.genrm import selection
from soundrl.genrm.journal import Journal
from soundrl.genrm.make import training
from soundrl.genrm.serve.machine import reserve_port

ROOT = Path(__file__).resolve().parents[2]
be_quiet()
spec = importlib.util.spec_from_file_location("train", ROOT / "engine" / "train.py")
train = importlib.util.module_from_spec(spec)
spec.loader.exec_module(train)

ARGUMENTS, OUT = json.loads(sys.argv[1]), Path(sys.argv[2])
JUDGE = ("--genrm.judge", "endpoint", "--genrm.urls", ARGUMENTS["url"], "--genrm.model", "genrm")
trained, add, command_of = trainer.Trainer.supervised_step, Journal.add, real_text.train_command
warm_start.SAVE_SECONDS = 0.0
call: dict = {}
judges: list[list[str]] = []


TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_model(folder: Path, texts: list[str], template: str | None) -> None:
    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator(texts, 800, show_progress=False, special_tokens=["<|end|>", "<|user|>", "<|assistant|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learned._tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = template
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=4096, dtype="float32", **shape, **ends))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def command(folder, recipe, settings, more):
    return command_of(folder, recipe, settings, ("--rollout.engine", "torch", *(JUDGE if "genrm.judge" in settings else ())))


def forked(words):
    """As `guarded` runs it, but for the imports."""
    judges.extend([words] if "run.task" in " ".join(words) else [])
    if (child := os.fork()) == 0:
        with reserve_port() as held:
            os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
            os.environ["MASTER_PORT"] = str(held.getsockname()[1])
        folder, steps = Path(words[words.index("--run.folder") + 1]), 0

        def counted(self, samples, lr):
            nonlocal steps
            steps += 1
            if call.get("kill") == [folder.name, steps]:
                while not list((folder / "run" / "warm_start").glob("step-*/manifest.json")):
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            with OUT.with_suffix(".steps").open("a") as file:
                file.write(f"{folder.name}\n")
            return trained(self, samples, lr)

        trainer.Trainer.supervised_step = counted
        status = 1
        try:
            train.main(parse_arguments(words[2:]))
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    if status := os.waitpid(child, 0)[1]:
        raise ValueError(f"the run ended with status {status}")


def stopping(self, record):
    add(self, record)
    if "stop" in call and record["id"].startswith(("processbench/", "planted/")):
        call["stop"] -= 1
        if not call["stop"]:
            raise KeyboardInterrupt


class Served:
    """As `JudgeServers`, which has nothing to load."""

    urls = (ARGUMENTS["url"],)

    def __init__(self, serving, logs):
        self.wait = lambda: None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


write_model(Path(ARGUMENTS["root"]) / "model", ARGUMENTS["texts"], TEMPLATE)
write_model(Path(ARGUMENTS["root"]) / "base", ["1+1=2"], None)
training.guarded, real_text.train_command, selection.JudgeServers, Journal.add = forked, command, Served, stopping
said = []
for call in ARGUMENTS["calls"]:
    try:
        real_text.main(call["words"])
        said.append("done")
    except SystemExit as error:
        said.append(str(error))
call = {}
forked([str(OUT.with_suffix("")) if word.endswith("/judge") else word for word in judges[-1]])
whole = real_text.trained(real_text.RunReader(OUT.with_suffix("") / "run"))
OUT.write_text(json.dumps({"calls": said, "judge": whole["model"]}))
