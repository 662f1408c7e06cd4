"""The build backend, what an sdist carries, and the rules every file of the repository keeps."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

import petx

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(autouse=True)
def build_environment(monkeypatch):
    """``buildtools`` importable, and none of the variables that steer a build."""
    monkeypatch.syspath_prepend(ROOT)
    for name in ("PETX_CUDA", "PETX_CUDA_ARCHS", "PETX_TORCH_PATH", "CUDA_HOME", "CUDA_PATH", "CXX", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)


def make_torch(site_packages, version, cuda=None):
    """A folder that looks like an installed torch to the build."""
    (site_packages / "torch" / "include").mkdir(parents=True)
    (site_packages / "torch" / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")
    return site_packages


def make_nvcc(home, release, codes):
    """A toolkit folder whose nvcc answers what the build asks it before compiling."""
    script = home / "bin" / "nvcc"
    script.parent.mkdir(parents=True)
    script.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && echo "Cuda compilation tools, release {release}, V{release}.1"\n'
        f'[ "$1" = --list-gpu-code ] && printf "{codes}"\n'
        "exit 0\n"
    )
    script.chmod(0o755)
    return home


def test_version_is_the_same_everywhere():
    assert PROJECT["version"] == petx.__version__


def test_a_setuptools_that_is_too_old_stops_the_build(monkeypatch):
    import setup

    setup.check_setuptools()
    monkeypatch.setattr(setup.setuptools, "__version__", "65.5.0")
    with pytest.raises(SystemExit, match=r"petx: building needs setuptools>=77, and there is 65.5.0: pip install"):
        setup.check_setuptools()


class TestTorchLocation:
    def test_nothing_is_required_where_torch_is_installed(self):
        import setup

        assert setup.get_requires_for_build_wheel() == []
        assert setup.get_requires_for_build_editable() == []

    def test_torch_is_required_where_there_is_none(self, monkeypatch, tmp_path):
        from buildtools import torch_location

        monkeypatch.setattr(torch_location, "_search_path", lambda: [tmp_path])
        (required,) = torch_location.build_requirements()
        assert Requirement(required) == Requirement("torch>=2.11,<3")
        with pytest.raises(SystemExit, match="no torch found"):
            torch_location.supported_torch()

    @pytest.mark.parametrize("version", ["2.11.0+cu130", "2.13.0+cpu", "2.15.0", "2.16.0.dev20270101"])
    def test_supported_versions(self, monkeypatch, tmp_path, version):
        from buildtools import torch_location

        monkeypatch.setenv("PETX_TORCH_PATH", str(make_torch(tmp_path, version)))
        assert torch_location.supported_torch() == torch_location.Torch(tmp_path / "torch", version, None)

    @pytest.mark.parametrize("version", ["2.10.0", "3.0.0+cpu", "3.1.0.dev20280101"])
    def test_unsupported_version_stops_the_build(self, monkeypatch, tmp_path, version):
        from buildtools import torch_location

        monkeypatch.setenv("PETX_TORCH_PATH", str(make_torch(tmp_path, version)))
        with pytest.raises(SystemExit, match=rf"torch {re.escape(version)} in .* needs torch.*2\.11"):
            torch_location.build_requirements()

    def test_path_without_torch_stops_the_build(self, monkeypatch, tmp_path):
        from buildtools import torch_location

        monkeypatch.setenv("PETX_TORCH_PATH", str(tmp_path))
        with pytest.raises(SystemExit, match="holds no torch"):
            torch_location.find_torch()

    @pytest.mark.parametrize("variable", ["PETX_TORCH_PATH", "VIRTUAL_ENV", "PATH", "pyvenv.cfg"])
    def test_torch_of_another_environment_is_found(self, monkeypatch, tmp_path, variable):
        """As an isolated build does that runs in a fresh environment of its own."""
        from buildtools import torch_location

        environment, own = tmp_path / "environment", tmp_path / "own"
        make_torch(environment / "lib" / PYTHON / "site-packages", "2.13.0+cpu")
        (environment / "bin").mkdir()
        (environment / "pyvenv.cfg").touch()
        own.mkdir()
        monkeypatch.setattr(sys, "path", [])
        monkeypatch.setattr(sys, "prefix", str(own))
        monkeypatch.setattr(torch_location.sysconfig, "get_path", lambda name: str(own))
        monkeypatch.setattr(torch_location.site, "getsitepackages", list)
        monkeypatch.setattr(torch_location, "ROOT", own)
        monkeypatch.setenv("PATH", "/usr/bin")
        monkeypatch.delenv("CONDA_PREFIX", raising=False)
        assert torch_location.find_torch() is None
        if variable == "pyvenv.cfg":
            (own / "pyvenv.cfg").write_text(f"home = /usr/bin\ncommand = {environment}/bin/python -m venv {own}\n")
        else:
            monkeypatch.setenv(variable, f"{environment}/bin" if variable == "PATH" else str(environment))
        assert torch_location.find_torch().folder == environment / "lib" / PYTHON / "site-packages" / "torch"


class TestCudaPlan:
    @pytest.fixture
    def plan(self, monkeypatch, tmp_path):
        """``plan(torch's CUDA, **environment)`` with a CUDA 13.0 toolkit at hand unless told otherwise."""
        from buildtools.cuda import plan_cuda
        from buildtools.torch_location import Torch

        def make(torch_cuda, release="13.0", codes="sm_80\\nsm_90\\nsm_100\\nsm_120\\n", **environment):
            monkeypatch.setenv("CUDA_HOME", str(make_nvcc(tmp_path / "cuda", release, codes)))
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            return plan_cuda(Torch(Path("torch"), "2.11.0", torch_cuda))

        return make

    def test_full_where_torch_and_toolkit_agree(self, plan):
        answer = plan("13.0")
        assert (answer.mode, answer.version) == ("full", "13.0")
        assert answer.architectures == ["8.0+PTX", "9.0", "10.0", "12.0"]
        # Every later card accepts this PTX; that of 12.0 leaves 11.0 without an image.
        assert answer.compile_flags()[:2] == [
            "-gencode=arch=compute_80,code=sm_80",
            "-gencode=arch=compute_80,code=compute_80",
        ]

    def test_older_toolkit_builds_what_it_knows(self, plan):
        answer = plan("12.6", release="12.6", codes="sm_80\\nsm_90\\n")
        assert answer.architectures == ["8.0+PTX", "9.0"]

    def test_chosen_architectures(self, plan):
        answer = plan("13.0", PETX_CUDA_ARCHS="9.0a")
        assert answer.compile_flags() == ["-gencode=arch=compute_90a,code=sm_90a"]

    def test_malformed_architectures_are_refused(self, plan):
        with pytest.raises(SystemExit, match="PETX_CUDA_ARCHS must look like .* got 'sm_90'"):
            plan("13.0", PETX_CUDA_ARCHS="sm_90")

    @pytest.mark.parametrize(
        ("torch_cuda", "release", "reason"),
        [(None, "13.0", "torch 2.11.0 has no CUDA"), ("12.8", "13.0", "nvcc is CUDA 13.0 while torch 2.11.0 is built")],
    )
    def test_obstacle_is_told(self, plan, torch_cuda, release, reason):
        answer = plan(torch_cuda, release)
        assert answer.mode == "absent" and reason in answer.reason

    def test_required_cuda_stops_the_build(self, plan):
        with pytest.raises(SystemExit, match="PETX_CUDA=1, but the installed torch 2.11.0 has no CUDA"):
            plan(None, PETX_CUDA="1")

    def test_required_cuda_without_toolkit_stops_the_build(self, plan, monkeypatch, tmp_path):
        from buildtools import cuda

        monkeypatch.setattr(cuda, "_find_nvcc", lambda: None)
        with pytest.raises(SystemExit, match="PETX_CUDA=check, but no nvcc was found"):
            plan(None, PETX_CUDA="check")

    def test_check_needs_no_cuda_in_torch(self, plan):
        assert plan(None, PETX_CUDA="check").mode == "check"

    def test_switched_off(self, plan):
        assert plan("13.0", PETX_CUDA="0").reason == "PETX_CUDA=0 was set"

    def test_unknown_mode_is_refused(self, plan):
        with pytest.raises(SystemExit, match="must be auto, 0, 1 or check, got 'yes'"):
            plan("13.0", PETX_CUDA="yes")


@pytest.fixture
def source_copy(tmp_path):
    """The repository without what building and testing leave in it."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "petx-runs", "*.so"
    )
    return shutil.copytree(ROOT, tmp_path / "petx-source", ignore=ignored)


def test_sdist_carries_what_a_build_needs(source_copy, tmp_path):
    (source_copy / "petx" / "_C.stale.so").touch()
    call = f"import setup; print(setup.build_sdist({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", call], cwd=source_copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / f"petx-{petx.__version__}.tar.gz") as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc/module.cpp", "docs/INSTALL.md"}
    wanted |= {"petx/py.typed", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", ".ci/run", ".github/workflows/ci.yml"}
    for folder in ("csrc", "petx", "buildtools", "tests", "benchmarks"):
        files = (path for path in (source_copy / folder).rglob("*") if path.is_file())
        wanted |= {path.relative_to(source_copy).as_posix() for path in files if path.suffix not in (".so", ".pyc")}
    assert wanted - held == set()
    assert not [name for name in held if name.endswith(".so")]


def test_source_that_does_not_compile_stops_the_build(source_copy):
    shutil.rmtree(source_copy / "csrc")
    (source_copy / "csrc").mkdir()
    (source_copy / "csrc" / "module.cpp").write_text("this is not C++\n")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=source_copy, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "petx: compiling failed" in done.stderr
    assert not list((source_copy / "petx").glob("_C*"))


@pytest.mark.parametrize("name", ["a b", "$x", "a$ b", "$$ c", "ü", "it's", 'a"b', "a&(b)", "a;b#c"])
def test_a_folder_may_have_any_name(monkeypatch, tmp_path, name):
    """Sources and headers are found in it, and are known not to have changed."""
    from ninja import BIN_DIR

    from buildtools import compile as build

    root = tmp_path / name
    for file, text in (("module.cpp", ""), ("cpu/x/x.h", ""), ("cpu/x/x.cpp", '#include "cpu/x/x.h"\n')):
        (root / "csrc" / file).parent.mkdir(parents=True, exist_ok=True)
        (root / "csrc" / file).write_text(text)
    monkeypatch.setattr(build, "ROOT", root)
    (root / "build").mkdir()
    torch, cuda = SimpleNamespace(folder=root / "torch"), SimpleNamespace(mode="absent", nvcc="nvcc")
    build.write_ninja_file(root / "build" / "build.ninja", root / "_C.so", torch, cuda, ["g++"])
    ninja = [Path(BIN_DIR, "ninja"), "-C", root / "build", "cpu/x/x.cpp.o"]
    said = [subprocess.run(ninja, capture_output=True, text=True) for _ in range(2)]
    assert said[0].returncode == 0, said[0].stdout
    assert "no work to do" in said[1].stdout or ";" in name  # which ninja does not read in a list of headers


@pytest.mark.parametrize("across", ["", "linux-aarch64"])
def test_library_is_for_one_python(monkeypatch, tmp_path, across):
    """Its name and the folder of its objects say which, and for which machine if not for this one; one for all Pythons,
    left by an older build, is gone."""
    if across:
        monkeypatch.setenv("_PYTHON_HOST_PLATFORM", across)
        monkeypatch.setenv("SETUPTOOLS_EXT_SUFFIX", ".cpython-311-aarch64-linux-gnu.so")
        monkeypatch.setenv("CXX", "true")  # as in tools/aarch64.sh, a compiler for that machine
    from setuptools import Distribution, Extension

    from buildtools import compile as build
    from buildtools.torch_location import Torch

    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "supported_torch", lambda: Torch(tmp_path / "torch", "2.13.0", None))
    monkeypatch.setattr(build, "write_ninja_file", lambda *arguments: None)
    monkeypatch.setattr(build, "run_ninja", lambda folder: (folder / "_C.so").write_text("library"))
    extension = Extension("petx._C", sources=[])
    command = build.BuildExtension(Distribution({"name": "petx", "version": "0", "ext_modules": [extension]}))
    command.build_lib = str(tmp_path / "lib")
    command.ensure_finalized()
    (tmp_path / "csrc").mkdir()
    (tmp_path / "lib" / "petx").mkdir(parents=True)
    (tmp_path / "lib" / "petx" / "_C.abi3.so").touch()
    command.build_extension(extension)
    folder = f"{sys.implementation.cache_tag}-torch-2.13.0" + (f"-{across}" if across else "")
    assert [path.name for path in (tmp_path / "build").iterdir()] == [folder]
    (library,) = (tmp_path / "lib" / "petx").iterdir()
    suffix = ".cpython-311-aarch64-linux-gnu.so" if across else sysconfig.get_config_var("EXT_SUFFIX")
    assert library.name == "_C" + suffix and library.read_text() == "library"


def test_a_compiler_for_another_machine_is_told(monkeypatch, tmp_path):
    """Its code would get this machine's name, unless the variables of a build across say otherwise."""
    from buildtools import compile as build

    for name, target in (("native", "x86_64-redhat-linux"), ("cross", "aarch64-linux-gnu"), ("odd", "arm-linux")):
        (tmp_path / name).write_text(f'#!/bin/sh\n[ "$*" = "-O2 -dumpmachine" ] && echo {target}\n')
        (tmp_path / name).chmod(0o755)
    native, cross, odd = ([str(tmp_path / name), "-O2"] for name in ("native", "cross", "odd"))
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", "linux-x86_64")
    build.check_machine(native), build.check_machine(odd)
    with pytest.raises(SystemExit, match="cross -O2 compiles for aarch64-linux-gnu, .* one for x86_64; to build"):
        build.check_machine(cross)
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", "linux-aarch64")
    build.check_machine(cross)
    with pytest.raises(SystemExit, match="compiles for x86_64-redhat-linux, .* one for aarch64"):
        build.check_machine(native)


def test_no_flag_is_for_the_building_machine_alone():
    """Which instruction set runs is found where the library is loaded (csrc/cpu/common/isa.h)."""
    from buildtools import compile as build

    assert [flag for flag in build.HOST_FLAGS if flag.startswith("-m")] == []


def repository_files(*folders):
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix not in (".so", ".pyc") and "__pycache__" not in path.parts:
                yield path


def test_no_file_is_long():
    sources = repository_files("csrc", "petx", "buildtools", "tests", "benchmarks")
    written = (path for path in sources if path.suffix != ".json")  # tables that a command writes
    lines = {path.relative_to(ROOT): len(path.read_bytes().splitlines()) for path in written}
    assert {path: count for path, count in lines.items() if count > 400} == {}


def test_kernels_know_neither_torch_nor_python():
    torch_header = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|pybind11|Python)\b')
    floors = [*repository_files("csrc/kernels", "csrc/cpu", "csrc/cuda")]
    assert floors
    assert [path for path in floors if torch_header.search(path.read_text(encoding="utf-8"))] == []


def test_border_knows_no_cuda():
    # A plan is host code that a CPU can ask (tests/unit/test_cuda_plans.py).
    cuda_header = re.compile(r'#\s*include\s*[<"](cuda(?!/common/plan\.h)|cooperative_groups)')
    floors = [*repository_files("csrc/kernels", "csrc/ops", "csrc/cpu"), ROOT / "csrc" / "module.cpp"]
    assert [path for path in floors if cuda_header.search(path.read_text(encoding="utf-8"))] == []


def test_no_path_of_one_machine_is_written_down():
    path_of_a_machine = re.compile(r"(?<![\w.}$])/(home|root|Users|tmp|work|mnt)/\w")
    top = [path for path in ROOT.iterdir() if path.suffix in (".md", ".toml", ".py", ".in")]
    texts = [*top, *repository_files("csrc", "petx", "buildtools", "tests", "benchmarks", "docs", ".ci")]
    found = {}
    for path in texts:
        if path.suffix not in (".png", ".npz", ".safetensors"):
            hits = path_of_a_machine.findall(path.read_text(encoding="utf-8"))
            found |= {path.relative_to(ROOT): hits} if hits else {}
    assert found == {}
