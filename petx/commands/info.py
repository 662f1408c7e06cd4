"""Tell what is installed, how petx was built, and which kernels are used on this machine.

Put its output (--json for programs) into a bug report.
"""

import argparse
import importlib.metadata
import json
import platform
from typing import Any

import torch

from petx import ops
from petx.certify import cards, choice, lookup, table
from petx.certify.certificate import from_json
from petx.version import __version__

PACKAGES = ("numpy", "transformers", "peft", "accelerate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    facts = gather()
    print(json.dumps(facts, indent=2) if args.json else as_text(facts))
    return 0


def gather() -> dict[str, Any]:
    """All that ``petx info`` tells, as a dict that JSON can hold; ``library`` is None if none could be loaded."""
    stems = ops.stems()
    kernels = {stem: {device: ops.why_absent(stem, device) for device in ("cpu", "cuda")} for stem in stems}
    return {
        "petx": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "library": None if ops._C is None else ops._C.build_info(),
        "library_absent_reason": ops.why_absent(stems[0], "cpu") if ops._C is None else None,
        "kernel_absent_reason": kernels,
        "cuda_plans": _plans(),
        "certificates": [_certificate(index) for index in range(cards.cards.count())],
        "packages": {name: _version_of(name) for name in PACKAGES},
    }


def as_text(facts: dict[str, Any]) -> str:
    """The same facts as aligned lines."""
    lines = [
        ("petx", f"{facts['petx']}, Python {facts['python']}, torch {facts['torch']}"),
        ("GPUs", ", ".join(facts["gpus"]) or f"none visible (torch's CUDA: {facts['torch_cuda'] or 'none'})"),
    ]
    library = facts["library"]
    if library is None:
        lines.append(("compiled library", f"not in use: {facts['library_absent_reason']}"))
    else:
        lines += [
            ("compiled library", f"{library['version']}, against torch {library['torch_version']}"),
            ("compiler", f"{library['compiler']}, {library['flags']}"),
            ("CPU kernels", f"for {', '.join(library['cpu_variants'])}; this machine uses {library['cpu_variant']}"),
            ("CUDA kernels", _cuda_text(library)),
        ]
    for stem, reasons in facts["kernel_absent_reason"].items():
        for device, reason in reasons.items():
            lines.append((f"{stem}, {device}", f"reference, because {reason}" if reason else "compiled kernel"))
    for stem, plan in facts["cuda_plans"].items():
        sizes = ", ".join(_size(name, size) for name, size in plan["sizes"].items())
        lines.append((f"{stem}, plan", f"{plan['kernel']} at {sizes} in bfloat16: {plan['why']}"))
    lines += [(name, version or "not installed") for name, version in facts["packages"].items()]
    width = max(len(name) for name, _ in lines)
    text = "\n".join(f"{name:<{width}}  {text}" for name, text in lines)
    return "\n\n".join([text, *(_in_words(entry) for entry in facts["certificates"])])


def _certificate(index: int) -> dict[str, Any]:
    """What is known of a card, certifying nothing: its certificate, or why there is none in use."""
    found = choice._of.get(index) or lookup.known(index)
    values = None if found.certificate is None else found.certificate.as_json()
    path = found.certificate.path if found.certificate is not None else None
    why = found.why if found.all is False else "PETX_CUDA_KERNELS=1 is set" if found.all else None
    return {"card": str(found.card or f"cuda:{index}"), "why": why, "path": path and str(path), "certificate": values}


def _in_words(entry: dict[str, Any]) -> str:
    if entry["certificate"] is None:
        return f"{entry['card']}: {entry['why']}"
    shown = table.of(from_json(entry["certificate"]))
    return f"{entry['card']}, certified in {entry['path'] or 'memory'}\n{shown}"


# Options that a plan counts among its sizes, by their numbers in csrc/kernels.
_OPTIONS = {
    "granularity": ("none", "large", "middleX", "middleY", "small"),
    "norm": ("none", "layer", "rms"),
    "diagonal": ("no", "yes"),
}


def _size(name: str, size: int) -> str:
    return f"{name} {_OPTIONS[name][size]}" if name in _OPTIONS else f"{name} {size:,}"


def _plans() -> dict[str, dict[str, Any]]:
    """What a call of each operation at its published sizes would launch on a GPU of compute capability 9.0."""
    library = ops._C
    if library is None:
        return {}
    return {stem: {"sizes": sizes, **library.cuda_plan(stem)} for stem, sizes in library.cuda_usual_sizes().items()}


def _cuda_text(library: dict[str, Any]) -> str:
    if not library["cuda"]:
        return f"not built: {library['cuda_absent_reason']}"
    text = f"CUDA {library['cuda_version']}, for {', '.join(library['cuda_architectures'])}"
    return f"{text} (a check build: it loads, and cannot run on a GPU)" if library["cuda_mode"] == "check" else text


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
