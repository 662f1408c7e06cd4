#!/usr/bin/env bash
# petx for aarch64 Linux on an x86-64 machine: built by a cross compiler, its operators' tests run under QEMU.
#
#   tools/aarch64.sh FOLDER [PYTEST-ARGUMENT...]      default: tests/operations/test_operations.py
#
# As root, on Debian (debootstrap makes device files):
#   apt-get install g++-aarch64-linux-gnu qemu-user-static debootstrap, and a python3.11 with pip and its headers
# Into FOLDER (7 GB): Debian's Python 3.11 for arm64, torch for aarch64 with all it needs (on the package index it
# is a CUDA build, which runs without a GPU, too), a copy of this tree with the library built, and a wheel in
# tree/dist. What is there already is not fetched again. QEMU, TORCH (a version) and QEMU_CPU in the environment are
# heeded. A test that starts a process needs QEMU registered for such programs, as the package binfmt-support does it.
# Importing torch takes QEMU 20 seconds of a core; nothing is measured here, only held right. docs/INSTALL.md says what
# was run.
set -euo pipefail
tree=$(cd "$(dirname "$0")/.." && pwd)
if [ $# = 0 ]; then
  echo "usage: tools/aarch64.sh FOLDER [PYTEST-ARGUMENT...]" >&2
  exit 2
fi
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- tests/operations/test_operations.py
qemu=${QEMU:-$(command -v qemu-aarch64 || command -v qemu-aarch64-static || true)}
for program in "${qemu:-qemu-aarch64-static}" aarch64-linux-gnu-g++ debootstrap python3.11; do
  if ! command -v "$program" >/dev/null; then
    echo "tools/aarch64.sh: no $program; the script's head says what to install" >&2
    exit 2
  fi
done
root=$folder/root site=$folder/site
step() { printf '\n=== %s (at %d s)\n' "$1" "$SECONDS"; }

if [ ! -e "$root/complete" ]; then
  step "Python 3.11 for arm64"
  rm -rf "$root"
  debootstrap --arch=arm64 --foreign --variant=minbase --include=python3.11,libpython3.11-dev bookworm "$root"
  # Unpacked only: no program of it needs its packages' scripts to have run.
  for package in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
  # QEMU shows the host's; libraries in torch look here for the processor they are on.
  mkdir -p "$root/proc" "$root/sys/devices/system/cpu/cpu0/regs/identification"
  echo 0x00000000413fd0c1 >"$root/sys/devices/system/cpu/cpu0/regs/identification/midr_el1"
  {
    printf 'processor\t: 0\nFeatures\t: fp asimd aes pmull sha1 sha2 crc32 atomics '
    printf 'fphp asimdhp cpuid asimdrdm lrcpc asimddp\n'
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n\n'
  } >"$root/proc/cpuinfo"
  touch "$root/complete"
fi

if [ ! -e "$site/complete" ]; then
  step "torch for aarch64"
  platforms=(--platform linux_aarch64 --platform manylinux2014_aarch64)
  for minor in {17..36}; do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
  rm -rf "$site"
  python3.11 -m pip install -q --no-compile --target "$site" --only-binary=:all: --python-version 3.11 \
    "${platforms[@]}" "torch==${TORCH:-2.13.0}" numpy "pytest>=8,<9.2" pytest-benchmark pytest-xdist hypothesis \
    filelock torch-abi-audit
  touch "$site/complete"
fi

step "petx for aarch64"
mkdir -p "$folder/tree"
(cd "$tree" && git ls-files -co --exclude-standard -z | tar -c --null -T - --ignore-failed-read) |
  tar -x -C "$folder/tree"
[ -d "$folder/venv" ] || python3.11 -m venv "$folder/venv"
mapfile -t needed < <(python3.11 -c 'import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["build-system"]["requires"], sep="\n")' "$tree/pyproject.toml")
"$folder/venv/bin/pip" install -q "${needed[@]}"
# The first two are CPython's and setuptools' own variables; the headers are the other Python's, before this one's.
(
  cd "$folder/tree"
  export _PYTHON_HOST_PLATFORM=linux-aarch64 SETUPTOOLS_EXT_SUFFIX=.cpython-311-aarch64-linux-gnu.so
  export CXX="aarch64-linux-gnu-g++ -I'$root/usr/include/python3.11' -idirafter '$root/usr/include'"
  export PETX_CUDA=0 PETX_TORCH_PATH="$site"
  "$folder/venv/bin/pip" wheel -q --no-build-isolation --no-deps -w dist .
  "$folder/venv/bin/python" setup.py -q build_ext --inplace # what the wheel holds: nothing is compiled again
  ls -l dist petx/_C*aarch64*.so
)

step "tests under $("$qemu" --version | head -n 1)"
cd "$folder/tree"
export QEMU_LD_PREFIX="$root" QEMU_CPU="${QEMU_CPU:-neoverse-n1}"
export PYTHONPATH="$site" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$qemu" "$root/usr/bin/python3.11" -m pytest -q -n 0 -p no:cacheprovider "$@"
printf '\n=== done in %d s\n' "$SECONDS"
