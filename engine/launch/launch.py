"""The command line: recipe and overrides in, a checked `Config` out; starts the ranks where torchrun did not."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from soundrl.engine.launch import launcher
from soundrl.engine.launch.last_words import FULL, RANK, UserError, catch
from soundrl.engine.launch.words import say, stopped
from soundrl.fapo.printable import one_line

if TYPE_CHECKING:  # a signal that comes while these load must find its handler
    from soundrl.engine.config import Config

HELP = ("-h", "--help")


class Profiled:
    """Which step the command line asks a profile of; 0 = none."""

    step = 0


PROFILED = Profiled()


@contextlib.contextmanager
def users_mistakes(kind: type[Exception] = ValueError) -> Iterator[None]:
    """Around the preparation of a run (settings, files, model folder, judge), where a ValueError (`kind`: another) or a file that cannot be
    read is the user's to mend."""
    try:
        yield
    except kind as error:
        raise UserError(str(error)) from error
    except OSError as error:  # transformers raises plain ones, with advice as text
        if error.errno in FULL:
            raise
        raise UserError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error


def parse_arguments(arguments: Sequence[str]) -> Config:
    """`[recipe] [--group.setting value …]`; UserError in one line for an unknown recipe or setting, a bad value or a conflict."""
    import tyro

    from soundrl.engine.recipes import DEFAULT, RECIPES

    arguments = list(arguments)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in HELP):
        arguments = [DEFAULT, *arguments]
    recipes = {name: ((recipe.__doc__ or "").split("\n")[0], recipe()) for name, recipe in RECIPES.items()}
    for argument in arguments:
        if argument.startswith("--") and argument not in HELP:
            check_name(argument)
    if arguments[0] not in RECIPES and arguments[0] not in HELP:
        raise UserError(f"unknown recipe {arguments[0]!r}; choose one of {', '.join(RECIPES)}")
    said, columns = io.StringIO(), os.environ.get("COLUMNS")
    try:
        with contextlib.ExitStack() as stack:
            if not any(argument in HELP for argument in arguments):
                stack.enter_context(contextlib.redirect_stderr(said))
                os.environ["COLUMNS"] = "10000"  # tyro's box is as wide as the terminal, and would break a long path in two
            return tyro.extras.overridable_config_cli(recipes, prog="engine/train.py", args=arguments)
    except SystemExit:
        if not said.getvalue():
            raise
        raise UserError(said_in(said.getvalue())) from None
    finally:
        os.environ.pop("COLUMNS", None) if columns is None else os.environ.update(COLUMNS=columns)


def plan_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace | None, list[str]]:
    """`--plan [--gpus N] [--gpu-gib 80]` taken out of the arguments; None where no plan is asked for."""
    if "--plan" not in arguments:
        return None, list(arguments)
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--gpu-gib", type=float)
    parser.add_argument("--table", action="store_true")
    try:
        plan, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error} (--plan --gpus 32 --gpu-gib 80)") from error
    if plan.gpus < 0 or (plan.gpu_gib is not None and plan.gpu_gib <= 0):
        raise UserError("--gpus must be at least 1 and --gpu-gib above 0")
    return plan, rest


def profile_argument(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """`--profile STEP` taken out of the arguments; 0 where none is asked for."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--profile", type=int)
    try:
        found, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error} (--profile 12)") from error
    if found.profile is None:
        return 0, rest
    if found.profile < 1:
        raise UserError(f"--profile {found.profile} is no step of a run; the first is 1")
    return found.profile, rest


def check_name(argument: str) -> None:
    """UserError with the nearest setting where `--group.setting` (also `=value`, `--group.no-flag`) is none."""
    from soundrl.engine.config import GROUPS, Config

    name = argument.split("=")[0].removeprefix("--").replace("_", "-")
    known = [f"{group.name}.{setting.name}".replace("_", "-") for group in fields(Config) for setting in fields(GROUPS[group.name])]
    group, _, leaf = name.partition(".")
    if name in known or f"{group}.{leaf.removeprefix('no-')}" in known:
        return
    near = difflib.get_close_matches(name, known, n=1) or [k for k in known if k.endswith("." + name)][:1]
    raise UserError(f"unknown setting --{name}" + (f"; did you mean --{near[0]}?" if near else "") + " (--help lists all)")


def said_in(panel: str) -> str:
    """The message inside tyro's box, up to its first rule, as one line."""
    lines: list[str] = []
    for line in panel.splitlines()[1:]:
        inner = line.strip(" │╭╮╰╯")
        if inner.strip("─-"):
            lines.append(inner)
        elif lines:
            break
    return " ".join(lines).removeprefix("Error parsing Config: ") + " (--help lists all settings)"


def leave_to_ranks() -> None:
    """First line of `engine/train.py`: under plain python, check the settings and start this file again, one process a rank, or print the
    plan. Does not return then. Nothing heavy has been imported yet, so that a mistake is told at once."""
    if "RANK" in os.environ:
        RANK.watch()
        return
    try:
        catch(launcher.stop)
        be_quiet()
        with ends_in_one_line():
            read_arguments()
        status = launcher.launch(sys.argv)
    except launcher.Stopped as by:
        say(stopped(by.number, RANK))
        status = 128 + by.number
    sys.exit(status)


def run(main: Callable[[Config], None]) -> None:
    """Last line of `engine/train.py`, on every rank; a user's mistake ends the run with one line and status 2."""
    be_quiet()
    with ends_in_one_line():
        config = read_arguments()
    with RANK.speaks():
        main(config)


def read_arguments() -> Config:
    """The configuration of the command line; where a plan is asked for, prints it and exits."""
    plan, arguments = plan_arguments(sys.argv[1:])
    step, arguments = profile_argument(arguments)
    config = parse_arguments(arguments)
    if step > config.run.steps:
        raise UserError(f"--profile {step} is behind the last step, run.steps {config.run.steps}; name one up to it")
    if plan is not None:
        from soundrl.engine.planning import command

        with users_mistakes():
            command.main(config, plan.gpus, plan.gpu_gib, plan.table)
        sys.exit()
    PROFILED.step = step
    return config


@contextlib.contextmanager
def ends_in_one_line() -> Iterator[None]:
    """Ends the process with status 2 where a mistake in the command line comes out, which is the same on every rank; rank 0 says it."""
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {one_line(str(error))}", file=sys.stderr, flush=True)
        sys.exit(2)


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
