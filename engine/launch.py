"""The command line: recipe and overrides in, a checked `Config` out; starts torchrun where the user did not."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields

import tyro

from soundrl.engine.config import GROUPS, Config
from soundrl.engine.recipes import RECIPES

DEFAULT_RECIPE = "arith"
HELP = ("-h", "--help")


class UserError(ValueError):
    """Something for the user to mend: shown as one line, without traceback."""


@contextlib.contextmanager
def users_mistakes(kind: type[Exception] = ValueError) -> Iterator[None]:
    """Around the preparation of a run (settings, files, model folder, judge), where a ValueError is the user's to mend; `kind`: another."""
    try:
        yield
    except kind as error:
        raise UserError(str(error)) from error


def parse_arguments(arguments: Sequence[str]) -> Config:
    """`[recipe] [--group.setting value …]`; UserError in one line for an unknown recipe or setting, a bad value or a conflict."""
    arguments = list(arguments)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in HELP):
        arguments = [DEFAULT_RECIPE, *arguments]
    recipes = {name: ((recipe.__doc__ or "").split("\n")[0], recipe()) for name, recipe in RECIPES.items()}
    for argument in arguments:
        if argument.startswith("--") and argument not in HELP:
            check_name(argument)
    if arguments[0] not in RECIPES and arguments[0] not in HELP:
        raise UserError(f"unknown recipe {arguments[0]!r}; choose one of {', '.join(RECIPES)}")
    asks_help = any(argument in HELP for argument in arguments)
    said = io.StringIO()
    with contextlib.ExitStack() as stack:
        if not asks_help:
            stack.enter_context(contextlib.redirect_stderr(said))
        try:
            return tyro.extras.overridable_config_cli(recipes, prog="engine/train.py", args=arguments)
        except SystemExit:
            if asks_help:
                raise
    raise UserError(one_line(said.getvalue()))


def plan_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace | None, list[str]]:
    """`--plan [--gpus N] [--gpu-gib 80]` taken out of the arguments; None where no plan is asked for."""
    if "--plan" not in arguments:
        return None, list(arguments)
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--gpu-gib", type=float)
    try:
        plan, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error} (--plan --gpus 32 --gpu-gib 80)") from error
    if plan.gpus < 0 or (plan.gpu_gib is not None and plan.gpu_gib <= 0):
        raise UserError("--gpus must be at least 1 and --gpu-gib above 0")
    return plan, rest


def check_name(argument: str) -> None:
    """UserError with the nearest setting where `--group.setting` (also `=value`, `--group.no-flag`) is none."""
    name = argument.split("=")[0].removeprefix("--").replace("_", "-")
    known = [f"{group.name}.{setting.name}".replace("_", "-") for group in fields(Config) for setting in fields(GROUPS[group.name])]
    group, _, leaf = name.partition(".")
    if name in known or f"{group}.{leaf.removeprefix('no-')}" in known:
        return
    near = difflib.get_close_matches(name, known, n=1) or [k for k in known if k.endswith("." + name)][:1]
    raise UserError(f"unknown setting --{name}" + (f"; did you mean --{near[0]}?" if near else "") + " (--help lists all)")


def one_line(panel: str) -> str:
    """The message inside tyro's box, up to its first rule, as one line."""
    lines: list[str] = []
    for line in panel.splitlines()[1:]:
        inner = line.strip(" │╭╮╰╯")
        if inner.strip("─-"):
            lines.append(inner)
        elif lines:
            break
    return " ".join(lines).removeprefix("Error parsing Config: ") + " (--help lists all settings)"


def leave_to_torchrun() -> None:
    """First line of `engine/train.py`: under plain python, check the settings and start this file again under torchrun, or print the plan.
    Does not return then. Nothing heavy has been imported yet, so that a mistake is told at once."""
    if "RANK" in os.environ:
        return
    be_quiet()
    with ends_in_one_line():
        read_arguments()
    sys.exit(torchrun(sys.argv))


def run(main: Callable[[Config], None]) -> None:
    """Last line of `engine/train.py`, on every rank; a user's mistake ends the run with one line and status 2."""
    be_quiet()
    with ends_in_one_line():
        main(read_arguments())


def read_arguments() -> Config:
    """The configuration of the command line; where a plan is asked for, prints it and exits."""
    plan, arguments = plan_arguments(sys.argv[1:])
    config = parse_arguments(arguments)
    if plan is not None:
        from soundrl.engine import memory_plan

        with users_mistakes():
            memory_plan.main(config, plan.gpus, plan.gpu_gib)
        sys.exit()
    return config


@contextlib.contextmanager
def ends_in_one_line() -> Iterator[None]:
    """Ends the process with status 2, at once, where a UserError comes out; rank 0 says it."""
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        # Not sys.exit: interpreter shutdown would wait for collectives of ranks that have not failed.
        os._exit(2)


def be_quiet() -> None:
    """Keep libraries' start-up chatter off the console; their warnings about a run's own doing stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked workers of tokenizers would share the trainer's threads
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is first imported
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # OPT's layer ends in a view; nothing of ours or of transformers' works in place on it.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    warnings.filterwarnings("ignore", category=FutureWarning)


def torchrun(arguments: Sequence[str]) -> int:
    """Start this script again under torchrun on this machine, one process a GPU (one on CPU); returns its exit status."""
    from torch.cuda import device_count
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun_main

    # The worker has said in one line what is wrong; the launcher's own report of a failed child would bury it.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    cores = os.cpu_count() or 1
    # On CPU two ranks of one thread beat one of two: half of a step is Python, and threads that wait for each other suffer from neighbours.
    processes = int(os.environ.get("NPROC", device_count() or min(2, cores)))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    try:
        torchrun_main(["--standalone", "--nproc-per-node", str(processes), *arguments])
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    return 0
