#!/usr/bin/env bash
# Everything to be learnt from one NVIDIA GPU in one sitting: build, certificate, tests, compute-sanitizer, benchmarks.
#
#   tools/on_gpu.sh OUT [build] [certify] [test] [sanitize] [bench] [model] [profile]    default: all, in this order
#
# Writes logs and reports into OUT and a summary, OUT/summary.md, after every step, so that an interrupted run keeps
# what it learnt. Needs torch with CUDA, nvcc of the same major version, and what `pip install -e ".[test]" setuptools
# ninja pybind11 packaging` brings; nothing is downloaded.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
steps=${*:-build certify test sanitize bench model profile}
export PETX_CUDA_KERNELS=1 PETX_CUDA=1
export PETX_CUDA_ARCHS=${PETX_CUDA_ARCHS:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1)}

{
  echo "# petx on a GPU"
  echo
  echo "- date: $(date -u +%F)"
  echo "- commit: $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
  echo "- card and driver: $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1)"
  echo "- nvcc: $(nvcc --version | tail -1)"
  echo "- $(python3 -c 'import sys, torch; print(f"Python {sys.version.split()[0]}, torch {torch.__version__}")')"
  echo
  echo "| step | result | seconds | log |"
  echo "| --- | --- | ---: | --- |"
} >"$out/summary.md"

# step NAME SECONDS COMMAND...: runs it with a time limit, its output to a log, a line to the summary.
step() {
  local name=$1 limit=$2 start=$SECONDS code=0
  shift 2
  printf '\n=== %s\n' "$name"
  timeout "$limit" "$@" >"$out/$name.log" 2>&1 || code=$?
  tail -n 15 "$out/$name.log"
  local result=passed
  [ "$code" -eq 0 ] || result="exit code $code"
  [ "$code" -ne 124 ] || result="stopped after $limit s"
  echo "| $name | $result | $((SECONDS - start)) | $name.log |" >>"$out/summary.md"
  return "$code"
}

for wanted in $steps; do
  case $wanted in
    build)
      step build 600 python3 -m pip install --no-build-isolation --no-deps -e . || break
      step links 60 bash -c 'ldd petx/_C*.so | grep torch_cuda && python3 -m petx info' || break
      ;;
    certify)
      # As a user's first use does it: nothing pins the kernels here. Its exit code 1 names the wrong ones.
      step certify 900 env -u PETX_CUDA_KERNELS python3 -m petx certify --output "$out/certificate.json"
      {
        echo
        echo '```'
        cat "$out/certify.log"
        echo '```'
      } >"$out/certificate.md"
      ;;
    test)
      step test 900 python3 -m pytest -q -p no:cacheprovider tests/operations/test_operations.py \
        tests/operations/test_operations_torch.py tests/operations/test_gpu.py tests/operations/test_library.py \
        tests/unit/test_vlpet_nn.py --durations=20
      ;;
    sanitize)
      for tool in memcheck racecheck initcheck synccheck; do
        step "sanitize-$tool" 400 compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-regex kns=petx \
          python3 tools/one_of_each.py cuda
      done
      ;;
    bench)
      step bench 560 python3 -m petx bench --output-dir "$out/bench"
      ;;
    model)
      # What the kernels' counts say of an H100, beside what this card measured.
      step model 580 python3 -m tests.emulator.cost --json "$out/cost.json"
      step measured 580 python3 -m tests.emulator.cost.on_card "$out/measured.json"
      step joined 60 python3 -m tests.emulator.cost.joined "$out/cost.json" "$out/measured.json"
      { echo && cat "$out/joined.log"; } >"$out/modelled-and-measured.md"
      ;;
    profile)
      # Bytes from device memory and time of each kernel; the clocks stay as they are.
      # All of petx's kernels and none of torch's: they share a namespace, so a new kernel needs no entry here.
      step profile 500 ncu --clock-control none --kernel-name-base demangled --kernel-name 'regex:.*petx::.*' \
        --metrics dram__bytes_read.sum,dram__bytes_write.sum,gpu__time_duration.sum,sm__throughput.avg.pct_of_peak_sustained_elapsed \
        --csv --log-file "$out/ncu.csv" python3 -m petx bench --quick --output-dir "$out/profiled"
      ;;
    *)
      echo "unknown step $wanted; there are: build certify test sanitize bench model profile" >&2
      exit 2
      ;;
  esac
done
for part in certificate modelled-and-measured; do
  [ ! -f "$out/$part.md" ] || cat "$out/$part.md" >>"$out/summary.md"
done
cat "$out/summary.md"
