#!/usr/bin/env bash
# A real CUDA build, on a machine without a GPU: petx against a torch with CUDA, as a user with a card builds it.
#
#   tools/cuda_build.sh FOLDER [TORCH]      TORCH: a version of torch on the index, default 2.12.1
#
# Makes an environment in FOLDER, fetches torch with CUDA and all its libraries into it (several gigabytes), builds a copy
# of this tree with PETX_CUDA=1 and checks what came out: tools/cuda_build_check.py. Needs nvcc of torch's CUDA version.
# Too much for every run of CI, so it is run by hand: docs/kernels.md says when, and what was seen.
set -euo pipefail
tree=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
torch=${2:-2.12.1}
step() { printf '\n=== %s (at %d s)\n' "$1" "$SECONDS"; }

step "torch $torch with CUDA"
"${PYTHON:-python3}" -m venv "$folder/venv"
# shellcheck disable=SC1091
. "$folder/venv/bin/activate"
mapfile -t needed < <(python -c 'import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["build-system"]["requires"], sep="\n")' "$tree/pyproject.toml")
pip install -q --no-cache-dir "torch==$torch" numpy "${needed[@]}"
python -c 'import torch; print(f"torch {torch.__version__}, CUDA {torch.version.cuda}")
assert torch.version.cuda, "the index gave a torch without CUDA"'
du -sh "$folder/venv"

step "petx with PETX_CUDA=1"
rm -rf "$folder/tree" && mkdir "$folder/tree"
(cd "$tree" && git ls-files -co --exclude-standard -z | tar -c --null -T - --ignore-failed-read) | tar -x -C "$folder/tree"
(cd "$folder/tree" && PETX_CUDA=1 pip install -q --no-build-isolation --no-deps .)

step "what came out"
cd "$folder" # not in the tree, whose petx has no library
python tree/tools/cuda_build_check.py
printf '\n=== done in %d s\n' "$SECONDS"
