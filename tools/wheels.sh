#!/usr/bin/env bash
# A wheel of petx for each Python named, into dist/ of this tree:
#
#   tools/wheels.sh python3.11 python3.12 path/to/environment/bin/python
#
# A library is for one version of Python, and for every supported torch. Each wheel is built with the torch that its
# Python has, or that PETX_TORCH_PATH names; with neither, pip fetches one for the time of the build
# (docs/INSTALL.md). MAX_JOBS and the other variables of a build are heeded.
set -euo pipefail
tree=$(cd "$(dirname "$0")/.." && pwd)
if [ $# = 0 ]; then
  echo "usage: tools/wheels.sh PYTHON..., such as python3.11 or path/to/environment/bin/python" >&2
  exit 2
fi
for python in "$@"; do # all of them first: none is built if one cannot be
  if ! "$python" -m pip --version >/dev/null; then
    echo "tools/wheels.sh: $python is no Python with pip; nothing was built" >&2
    exit 2
  fi
done
for python in "$@"; do
  printf '\n=== %s: %s\n' "$python" "$("$python" -V)"
  "$python" -m pip wheel --no-deps -w "$tree/dist" "$tree"
done
printf '\n=== in %s\n' "$tree/dist"
ls "$tree/dist"
