"""Rewards that users write, in three signatures, and those that go wrong; run in the pool by `test_own_rewards`."""

import asyncio
import os
import signal
import sys
import time


def _value(response, answer):
    return 1.0 if answer in response else len(response) / 1000


def ours(response, answer, prompt):
    return _value(response, answer)


def trl(prompts, completions, target, **columns):
    return [_value(said[0]["content"], answer) for said, answer in zip(completions, target, strict=True)]


def verl(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "sums" and extra_info == {"index": 3}
    return {"score": _value(solution_str, ground_truth), "pred": solution_str[-1:]}


async def later(completions, **columns):
    await asyncio.sleep(0)
    return [1.0]


def both(response, completions):
    return 1.0


def neither(text):
    return 1.0


def strange(response, answer, prompt, judge):
    return 1.0


def column(completions, colour, **columns):
    return [1.0]


def lazy(response, answer, prompt):
    import no_such_module  # noqa: F401  # pyright: ignore[reportMissingImports]

    return 1.0


class Kept:
    def __call__(self, response, answer, prompt):
        return 0.25


kept = Kept()


def seen(response, answer, prompt):
    """What the function is given, told through an exception."""
    raise ValueError(sorted(prompt), prompt["transcript"], prompt["row"], sorted(os.environ)) from None


def said(response, answer, prompt):
    """Does what the response says."""
    return globals()[f"_{response}"]()


def _true():
    return True


def _none():
    return None


def _raises():
    return {}["nothing"]


def _hangs():
    time.sleep(3600)


def _naps():
    while True:
        time.sleep(0.01)


def _spins():
    while True:
        pass


def _spins_unlimited():
    signal.signal(signal.SIGPROF, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_PROF, 0)
    while True:
        pass


def _prints():
    for _ in range(50):
        print("x" * (1 << 20), flush=True)
        os.write(2, b"y" * (1 << 20))
    return 1.0


def _forks():
    """A grandchild in a session of its own, which nobody waits for; its number stands in a file."""
    if os.fork() == 0:
        os.setsid()
        if (pid := os.fork()) == 0:
            time.sleep(3600)
        with open(os.path.join(os.environ["HOME"], "grandchild"), "w") as file:
            file.write(str(pid))
        os._exit(0)
    os.wait()
    return 1.0


def _child_spins():
    if (pid := os.fork()) == 0:
        while True:
            pass
    os.waitpid(pid, 0)


def _many():
    for _ in range(100):
        if os.fork() == 0:
            time.sleep(3600)
    time.sleep(3600)


def _allocates():
    return float(len(bytearray(8 << 30)) > 0)


def _allocates_less():
    return float(len(bytearray(64 << 20)) > 0)


def _nan():
    return float("nan")


def _text():
    return "1.0"


def _two():
    return [1.0, 2.0]


def _huge():
    return 10**400


def _leaves():
    os._exit(3)


def _leaves_well():
    os._exit(0)


def _exits():
    sys.exit(4)


def _recurses():
    return _recurses()


def _faults():
    os.kill(os.getpid(), signal.SIGSEGV)


def _closes():
    os.closerange(0, 1000)
    return 1.0


def _writes():
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"no message")
        except OSError:
            pass
    return 1.0
