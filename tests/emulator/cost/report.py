"""Counts, floors and modelled times of one call, as numbers and as lines of a table."""

from petx.bench.case import BenchCase
from tests.emulator.cost import eager, model
from tests.emulator.cost.counting import Kernel, described, totals
from tests.emulator.cost.registers import resident

COLUMNS = {
    "call": "---",
    "direction": "---",
    "launches": "---:",
    "blocks of each": "---",
    "PTX instructions / value": "---:",
    "MMA instructions": "---:",
    "MB read / written": "---:",
    "of it in sectors": "---:",
    "barriers": "---:",
    "floor µs": "---:",
    "petx µs": "---:",
    "eager µs": "---:",
    "inductor µs": "---:",
}
HEADER = f"| {' | '.join(COLUMNS)} |\n| {' | '.join(COLUMNS.values())} |"


def values(case: BenchCase) -> int:
    """What instructions are counted by: the values that the forward writes."""
    sizes = case.sizes
    match case.operation:
        case "gated_adapter" | "expert_mixture" | "query_transformation":
            return sizes["N"] * sizes["d"]
        case "mode_update":
            return sizes["N"] * sizes["d_out"] * sizes["modes"]
        case "mode_cores":
            return sizes["modes"] * sizes["R"] ** 2
    return sizes["modules"] * sizes["d_in"] * sizes["d_out"]


def reported(case: BenchCase, counted: dict[str, list[Kernel]], registers: dict[str, int]) -> dict:
    """Everything known of a call, by direction."""
    peer, found = eager.recorded(case), {}
    for direction, kernels in counted.items():
        flops, bytes_ = case.work[direction]
        own = [kernel for kernel in kernels if not kernel.product]
        fit = {k.name: resident(registers[k.name], k.threads, k.shared_bytes) for k in own}
        found[direction] = totals(kernels) | {
            "values": values(case),
            "kernels": [
                kernel
                | {"registers": registers.get(kernel["name"]), "blocks_of_multiprocessor": fit.get(kernel["name"])}
                for kernel in described(kernels)
            ],
            "floor_bytes": bytes_,
            "floor_flops": flops,
            "modelled_us": {
                "floor": 1e6 * model.floor_time(flops, bytes_),
                "petx": 1e6 * model.call_time(kernels, fit, bytes_),
                "eager": 1e6 * eager.time(peer[direction]),
                "inductor": 1e6 * eager.time(eager.fused(peer[direction])),
            },
        }
    return found


def modelled(case: BenchCase, kept: dict[str, list[dict]]) -> dict[str, dict[str, float]]:
    """Direction -> microseconds of petx, by what a table keeps of its kernels, and of its peers."""
    peer, found = eager.recorded(case), {}
    for direction, listed in kept.items():
        kernels = [
            Kernel(
                kernel["kernel"],
                kernel["blocks"],
                kernel["threads"],
                0,
                kernel["instructions"],
                0,
                {"sectors_read": kernel["sectors"], "sectors_written": 0} | kernel,
                tuple(kernel.get("product", ())),
            )
            for kernel in listed
        ]
        fit = {kernel["kernel"]: kernel["blocks_of_multiprocessor"] for kernel in listed}
        found[direction] = {
            "petx": 1e6 * model.call_time(kernels, fit, case.work[direction][1]),
            "eager": 1e6 * eager.time(peer[direction]),
            "inductor": 1e6 * eager.time(eager.fused(peer[direction])),
        }
    return found


def lines(label: str, report: dict) -> list[str]:
    found = []
    for direction, counts in report.items():
        blocks = ", ".join(str(kernel["blocks"] or "mm") for kernel in counts["kernels"])
        times = counts["modelled_us"]
        read, written = (counts[f"global_{what}"] for what in ("read", "written"))
        cells = [
            label,
            direction,
            counts["launches"],
            blocks,
            f"{counts['instructions'] / counts['values']:.0f}",
            f"{counts['matrix_products']:,}",
            f"{read / 1e6:.1f} / {written / 1e6:.1f}",
            f"{counts['sectors_read'] / max(read, 1):.1f}x / {counts['sectors_written'] / max(written, 1):.1f}x",
            f"{counts['barriers']:,}",
            *(f"{times[name]:.0f}" for name in ("floor", "petx", "eager", "inductor")),
        ]
        found.append(f"| {' | '.join(map(str, cells))} |")
    return found
