"""What the scripts below tools/ name must be there."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from petx import ops

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = (ROOT / "tools" / "on_gpu.sh").read_text(encoding="utf-8")
CUDA_BUILD = (ROOT / "tools" / "cuda_build.sh").read_text(encoding="utf-8")
KERNEL = re.compile(r"^PETX_KERNEL void\s+__launch_bounds__\([^)]*\)\s+(\w+)\(", re.MULTILINE)


def kernels():
    """``file: demangled name`` of every CUDA kernel in csrc, as a profiler shows it (without template arguments)."""
    names = []
    for path in sorted((ROOT / "csrc").rglob("*.cu*")):
        text = path.read_text(encoding="utf-8")
        declared = len(re.findall(r"^PETX_KERNEL\b", text, re.MULTILINE))
        found = list(KERNEL.finditer(text))
        assert len(found) == declared, f"{path.name}: a kernel is written in a form that this test does not read"
        for kernel in found:
            opened = re.findall(r"^namespace ([\w:]+) \{$", text[: kernel.start()], re.MULTILINE)
            names.append(f"{path.name}: void {'::'.join([*opened, kernel[1]])}<float>()")
    return names


def test_kernels_are_found():
    assert len(kernels()) >= 26


@pytest.mark.parametrize("step", ["profile", "sanitize"])
def test_every_kernel_is_selected(step):
    command = re.search(rf"^    {step}\)\n(.*?)^      ;;", SCRIPT, re.MULTILINE | re.DOTALL)[1]
    if step == "sanitize":
        wanted = re.search(r"--kernel-regex kns=(\w+)", command)[1]
    else:
        assert "--kernel-name-base demangled" in command
        wanted = re.search(r"--kernel-name 'regex:([^']+)'", command)[1]
    names = [kernel.partition(": void ")[2] for kernel in kernels()]
    assert [name for name in names if not re.search(wanted, name)] == []
    assert not re.search(wanted, "void at::native::elementwise_kernel<float>()")


def test_scripts_and_tests_it_runs_exist():
    named = re.findall(r"(?:tests|tools)/[\w/]+\.py", SCRIPT + CUDA_BUILD)
    assert named and [path for path in named if not (ROOT / path).is_file()] == []


# What stands in for a machine with a GPU: each writes what it was called with, and python3 the files of its step.
STUBS = {
    "nvidia-smi": "echo 9.0",
    "nvcc": "echo release 13.0",
    "ldd": "echo libtorch_cuda.so",
    "compute-sanitizer": "",
    "ncu": "",
    "python3": """case "$*" in
        *certify*) echo "mode_update  bfloat16  wrong"; exit 1 ;;
        *cost.joined*) [ -f "$3" ] && [ -f "$4" ] && echo "| call | modelled | measured |" ;;
        *--json*) touch "${@: -1}" ;;
        *cost.on_card*) touch "$3" ;;
    esac""",
}


def test_one_command_runs_all(tmp_path):
    """tools/on_gpu.sh with every program in its place taken by a stub: the steps' order, what pins the kernels, and a
    summary that has the certificate and the modelled beside the measured times; a wrong kernel ends nothing."""
    (tmp_path / "tree" / "tools").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    script = tmp_path / "tree" / "tools" / "on_gpu.sh"
    script.write_text(SCRIPT)
    called = tmp_path / "called"
    for name, body in STUBS.items():
        stub = tmp_path / "bin" / name
        log = f'echo "${{PETX_CUDA_KERNELS:-unset}} {name} $*" >>{called}'
        stub.write_text(f"#!/bin/bash\n{log}\n{body}\n")
        stub.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(["bash", str(script), str(tmp_path / "out")], env=os.environ | {"PATH": path}, timeout=120)
    assert done.returncode == 0
    summary = (tmp_path / "out" / "summary.md").read_text()
    rows = re.findall(r"^\| ([\w-]+) \| (passed|exit code \d+|stopped.*?) \|", summary, re.MULTILINE)
    sanitized = [(f"sanitize-{tool}", "passed") for tool in ("memcheck", "racecheck", "initcheck", "synccheck")]
    first = [("build", "passed"), ("links", "passed"), ("certify", "exit code 1"), ("test", "passed")]
    last = [(name, "passed") for name in ("bench", "model", "measured", "joined", "profile")]
    assert rows == [*first, *sanitized, *last]
    assert "mode_update  bfloat16  wrong" in summary and "| call | modelled | measured |" in summary
    pins = {line.split()[0] for line in called.read_text().splitlines() if " certify" in line}
    others = {
        line.split()[0] for line in called.read_text().splitlines() if "-m pytest" in line or "petx bench" in line
    }
    assert pins == {"unset"} and others == {"1"}


def test_what_a_cuda_build_lacks():
    """tools/cuda_build.sh ends with this check; here are builds that must not pass it."""
    spec = importlib.util.spec_from_file_location("cuda_build_check", ROOT / "tools" / "cuda_build_check.py")
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    whole = dict(
        build=dict(cuda_mode="full", cuda_absent_reason="", operations=["a"], cuda_operations=["a"]),
        linked=[*check.NEEDED, "libc.so.6"],
        registered={"a_fwd", "a_bwd"},
        torch_cuda="13.0",
    )
    assert check.missing(**whole) == []
    assert check.missing(**whole | {"torch_cuda": None}) == ["torch has no CUDA"]
    assert check.missing(**whole | {"registered": {"a_fwd"}}) == ["a_bwd has no CUDA kernel"]
    assert check.missing(**whole | {"linked": list(check.NEEDED[1:])}) == ["it is not linked against libtorch_cuda.so"]
    for change, said in (
        ({"cuda_mode": "check"}, "cuda_mode is 'check', not 'full': no reason"),
        ({"cuda_operations": []}, "a was built without CUDA"),
        ({"operations": []}, "it has no operation at all"),
    ):
        assert check.missing(**whole | {"build": whole["build"] | change}) == [said]
    if ops._C is not None:
        assert any(re.match(r"libc\.so", name) for name in check.needed_by(ops._C.__file__))


PYTHON_STUB = """#!/bin/bash
echo "$(basename $0) $*" >>{called}
case "$*" in
    *--version) exit {status} ;;
    *wheel*) while [ "$1" != -w ]; do shift; done; mkdir -p "$2"; touch "$2/petx-$(basename $0).whl" ;;
esac
"""


@pytest.mark.parametrize(
    "pythons", [[], ["python3.11", "broken"], ["python3.11", "absent"], ["python3.11", "own/python"]]
)
def test_a_wheel_for_each_python(tmp_path, pythons):
    """tools/wheels.sh with stubs for the Pythons, one of them by a path from where it is called: one pip wheel each,
    all into the tree's dist/; or none at all, if one of them has no pip or is not there."""
    called = tmp_path / "called"
    for name in ("bin/python3.11", "bin/broken", "elsewhere/own/python"):
        stub = tmp_path / name
        stub.parent.mkdir(parents=True, exist_ok=True)
        stub.write_text(PYTHON_STUB.format(called=called, status=int(stub.name == "broken")))
        stub.chmod(0o755)
    tree = tmp_path / "a tree"
    (tree / "tools").mkdir(parents=True)
    script = shutil.copy(ROOT / "tools" / "wheels.sh", tree / "tools")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", script, *pythons],
        cwd=tmp_path / "elsewhere",
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    if pythons[-1:] != ["own/python"]:
        said = f"{pythons[-1]} is no Python with pip; nothing was built" if pythons else "usage: tools/wheels.sh PYTHON"
        assert done.returncode == 2 and said in done.stderr
        assert not (tree / "dist").exists()
        return
    assert done.returncode == 0, done.stderr
    built = [line for line in called.read_text().splitlines() if "wheel" in line]
    assert built == [f"{name} -m pip wheel --no-deps -w {tree}/dist {tree}" for name in ("python3.11", "python")]
    wheels = ["petx-python.whl", "petx-python3.11.whl"]
    assert sorted(path.name for path in (tree / "dist").iterdir()) == wheels
    assert done.stdout.splitlines()[-2:] == wheels


# What stands in for another machine's Python, its packages and its emulator. Each says what it was called with.
ACROSS = {
    "debootstrap": """for root; do true; done; mkdir -p "$root/var/cache/apt/archives" "$root/usr/bin"
        touch "$root/var/cache/apt/archives/python.deb" """,
    "dpkg-deb": "",
    "aarch64-linux-gnu-g++": "",
    "qemu-aarch64": 'echo "cpu $QEMU_CPU, root $QEMU_LD_PREFIX, packages $PYTHONPATH" >>"$CALLED"',
    "pip": """[ "$1" = wheel ] || exit 0
        echo "$_PYTHON_HOST_PLATFORM $SETUPTOOLS_EXT_SUFFIX $PETX_CUDA $PETX_TORCH_PATH" >>"$CALLED"
        echo "$CXX" >>"$CALLED"; mkdir -p dist""",
    "python": "mkdir -p petx; touch petx/_C.cpython-311-aarch64-linux-gnu.so",
    "python3.11": """case "$*" in
        *--target*) while [ "$1" != --target ]; do shift; done; mkdir -p "$2" ;;
        *venv*) mkdir -p "$3/bin"; cp "$(dirname "$0")"/{pip,python} "$3/bin" ;;
        -c*) echo setuptools ;;
    esac""",
}


def test_another_machines_build_and_tests(tmp_path):
    """tools/aarch64.sh with stubs: the build is told the other machine, its torch and its headers, the tests run under
    the emulator; the second time nothing is fetched."""
    tree, folder, called = tmp_path / "a tree", tmp_path / "a folder", tmp_path / "called"
    (tree / "tools").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    script = shutil.copy(ROOT / "tools" / "aarch64.sh", tree / "tools")
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
    for name, body in ACROSS.items():
        stub = tmp_path / "bin" / name
        stub.write_text(f'#!/bin/bash\necho "{name} $*" >>"$CALLED"\n{body}\n')
        stub.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("QEMU", "QEMU_CPU", "TORCH")}
    environment |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLED": str(called)}

    def run(*arguments):
        called.write_text("")
        done = subprocess.run(
            ["bash", script, *arguments], env=environment, capture_output=True, text=True, timeout=120
        )
        return done, called.read_text()

    done, _ = run()
    assert done.returncode == 2 and "usage: tools/aarch64.sh FOLDER" in done.stderr
    done, said = run(folder, "tests/unit", "-k", "one")
    assert done.returncode == 0, done.stderr
    root, site = folder / "root", folder / "site"
    assert f"linux-aarch64 .cpython-311-aarch64-linux-gnu.so 0 {site}\n" in said
    assert f"g++ -I'{root}/usr/include/python3.11' -idirafter '{root}/usr/include'\n" in said
    assert "manylinux_2_28_aarch64" in said and "torch==2.13.0" in said
    tested = f"{root}/usr/bin/python3.11 -m pytest -q -n 0 -p no:cacheprovider tests/unit -k one\n"
    assert said.endswith(f"{tested}cpu neoverse-n1, root {root}, packages {site}\n")
    done, said = run(folder)
    assert done.returncode == 0 and "tests/operations/test_operations.py\n" in said
    assert "debootstrap --" not in said and "--target" not in said
    environment["QEMU"] = "absent-emulator"
    done, _ = run(folder)
    assert done.returncode == 2 and "no absent-emulator; the script's head says what to install" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck: on Debian apt-get install shellcheck")
def test_shell_scripts_are_clean():
    scripts = [*(ROOT / "tools").glob("*.sh"), ROOT / ".ci" / "run"]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
