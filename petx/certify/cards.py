"""What is asked of the machine's GPUs, in one place, so that a test can put another machine in its stead."""

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from petx import _python

LEAST_CAPABILITY = (8, 0)  # the kernels use cp.async and the matrix units of Ampere


@dataclass(frozen=True)
class Card:
    """One GPU, or one MIG instance, as torch numbers it. ``memory`` is in MiB."""

    index: int
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory: int
    driver: str

    def facts(self) -> dict[str, Any]:
        """What a certificate holds for: all but the index."""
        facts = asdict(self) | {"capability": f"{self.capability[0]}.{self.capability[1]}"}
        del facts["index"]
        return facts

    def __str__(self) -> str:
        return f"{self.name} (cuda:{self.index})"


# The child takes the package that runs here, whatever else is installed.
class Cards:
    """The cards of this machine, by torch."""

    def count(self) -> int:
        return torch.cuda.device_count()

    def current(self) -> int:
        return torch.cuda.current_device()

    def card(self, index: int) -> Card:
        found = torch.cuda.get_device_properties(index)
        capability, memory = (found.major, found.minor), found.total_memory >> 20
        return Card(index, found.name, capability, found.multi_processor_count, memory, driver())

    def capturing(self) -> bool:
        """Whether the current stream is being captured: then nothing may be run beside it."""
        return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()

    def child(self, index: int) -> tuple[list[str], dict[str, str]]:
        """Command and environment of a process that sees card ``index`` as its only one, with the kernels switched on.

        The card is named as this process sees it, which holds for MIG instances and for a list of UUIDs, too.
        """
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = [name.strip() for name in visible.split(",")] if visible else []
        environment = dict(os.environ)
        environment["CUDA_VISIBLE_DEVICES"] = names[index] if index < len(names) else str(index)
        environment["PETX_CUDA_KERNELS"] = "1"
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # torch's deterministic mode asks for it
        # What would make it certify something else than what runs here by default.
        for name in (
            "PETX_CERTIFICATE",
            "PETX_CUDA_SHARES",
            "PETX_CUDA_SPLITS",
            "PETX_CUDA_WIDE",
            "PETX_EXPERT_MIXTURE",
            "CUDA_LAUNCH_BLOCKING",
        ):
            environment.pop(name, None)
        return _python.command("petx.certify.child"), environment


def driver() -> str:
    """The driver's version: of the kernel module if Linux tells, and of the CUDA interface."""
    interface = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)()
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        text = ""
    module = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
    return f"{module[0] if module else 'unknown'}, CUDA {interface // 1000}.{interface % 1000 // 10}"


def unusable(capability: tuple[int, int], build: dict[str, Any]) -> str | None:
    """Why the library of this ``build`` (``petx._C.build_info()``) cannot run on such a card, or None."""
    shown = f"{capability[0]}.{capability[1]}"
    if build["cuda_mode"] == "absent":
        return f"built without CUDA: {build['cuda_absent_reason']}"
    if build["cuda_mode"] == "check":
        return "this is a check build (PETX_CUDA=check): it loads, and cannot run on a GPU"
    if capability < LEAST_CAPABILITY:
        return f"the kernels need compute capability 8.0, this card has {shown}"
    if not any(_runs(name, capability) for name in build["cuda_architectures"]):
        built = ";".join(build["cuda_architectures"])
        return f"the library was built for {built}, which a card of {shown} cannot run; build it with PETX_CUDA_ARCHS"
    return None


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether the machine code of ``architecture`` ("9.0", "9.0a", "12.0+PTX") runs on such a card, or its PTX does."""
    name, _, ptx = architecture.partition("+")
    number = name.rstrip("af")
    built = tuple(map(int, number.split(".")))
    if name.endswith("a"):
        return built == capability
    if built[0] == capability[0] and built <= capability:
        return True
    return bool(ptx) and not name.endswith("f") and built <= capability


cards: Cards = Cards()  # a test puts its own here
