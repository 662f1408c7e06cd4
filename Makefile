# The few commands of daily work; CONTRIBUTING.md explains them. They use the activated environment.
.PHONY: help build test test-fast nightly style fix types kernels mutants docs bench ci

help:  ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' Makefile | expand -t 14

build:  ## compile what changed below csrc/
	python -m pip install -q -e . --no-build-isolation --no-deps

test-fast:  ## the everyday tests
	python -m pytest -q -n auto -m "not slow"

test:  ## all tests
	python -m pytest -q -n auto

style:  ## ruff and clang-format, as CI checks them
	ruff check .
	ruff format --check .
	find csrc -type f -print0 | xargs -0 clang-format --dry-run --Werror

fix:  ## let ruff and clang-format repair the style
	ruff check --fix .
	ruff format .
	find csrc -type f -print0 | xargs -0 clang-format -i

types:  ## mypy
	python -m mypy

kernels:  ## compile the CUDA kernels without a GPU (needs nvcc), and run them in the emulator
	PETX_CUDA=check python -m pip install -q -e . --no-build-isolation --no-deps
	python -m pytest -q tests/emulator

nightly:  ## the tests that the whole suite leaves out (long; before a release, or after a change below csrc/cuda)
	python -m pytest -q -n auto -m nightly

mutants:  ## mutation tests of the kernels (hours; --only NAME in tests/emulator/mutants.py runs some)
	python -m tests.emulator.mutants

docs:  ## the API site, into site/
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict

bench:  ## the main benchmarks
	petx bench --quick

ci:  ## everything that a change must pass
	.ci/run
