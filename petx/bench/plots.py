"""Plots of a run as PNG: ratios by case, the roofline, cost against size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from petx.bench.case import FLOORS
from petx.bench.compare import Record, by_dtype, ratio_of, times_of
from petx.bench.peers import NAMES
from petx.files import written_whole

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of backend)
from matplotlib import ticker  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.axis import Axis  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

_COLOURS = ["#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442"]  # Okabe and Ito's palette
_PETX, _FLOOR = "#D55E00", "#999999"
_MARKERS = "osD^vP*X"


def write_plots(folder: str | Path, results: Record) -> list[Path]:
    """``ratios-<operation>.png``, ``roofline.png`` and ``growth.png``; returns the paths of those that have data."""
    folder = Path(folder)
    done = [case for case in results["cases"] if "arms" in case]
    paths = []
    for operation in dict.fromkeys(case["operation"] for case in done):
        paths += _ratios(
            folder / f"ratios-{operation}.png", operation, [c for c in done if c["operation"] == operation]
        )
    paths += _roofline(folder / "roofline.png", done, results["constants"], results["machine"]["device"])
    paths += _growth(folder / "growth.png", [sweep for sweep in results["growth"] if len(sweep["points"]) > 1])
    return paths


def _ratios(path: Path, operation: str, cases: list[Record]) -> list[Path]:
    direction = (
        "step" if any("step" in times_of(case) for case in cases) and operation == "training_step" else "fwd+bwd"
    )
    cases = by_dtype(case for case in cases if direction in times_of(case))
    peers = [
        arm
        for arm in dict.fromkeys(arm for case in cases for arm in case["arms"] if arm != "petx")
        if any(direction in times_of(case, arm) for case in cases)
    ]
    if not peers:
        return []
    dtypes = list(dict.fromkeys(case["dtype"] for case in cases))
    groups = [[case for case in cases if case["dtype"] == dtype] for dtype in dtypes]
    measured = [[peer for peer in peers if any(ratio_of(case, peer, direction) for case in group)] for group in groups]
    heights = [0.9 + len(group) * (0.22 * len(own) + 0.18) for group, own in zip(groups, measured, strict=True)]
    figure, panels = plt.subplots(
        len(groups), 1, figsize=(8, 0.8 + sum(heights)), height_ratios=heights, layout="constrained", squeeze=False
    )
    for axes, dtype, group, own in zip(panels.flat, dtypes, groups, measured, strict=True):
        _bars(axes, group, own, direction)
        axes.set_title(dtype, fontsize=10, loc="left")
    panels.flat[-1].set_xlabel(f"time over petx's ({direction}); right of the line petx is faster")
    figure.suptitle(operation)
    return [_save(figure, panels.flat[0], path, list(panels.flat))]


def _bars(axes: Axes, cases: list[Record], peers: list[str], direction: str) -> None:
    """A dtype's ratios, on a scale of its own: those of two dtypes may differ by an order of magnitude."""
    colours = {peer: _FLOOR if peer in FLOORS else _COLOURS[NAMES.index(peer) % len(_COLOURS)] for peer in peers}
    thick = 0.8 / max(len(peers), 1)
    for i, peer in enumerate(peers):
        label: str | None = peer
        for row, case in enumerate(cases):
            measured = ratio_of(case, peer, direction)
            if measured is None:
                continue
            ratio, at = measured["median"], row + (i - (len(peers) - 1) / 2) * thick
            axes.barh(at, ratio, thick * 0.9, color=colours[peer], label=label)
            label = None
            spread = [[ratio - measured["low"]], [measured["high"] - ratio]]
            axes.errorbar(ratio, at, xerr=spread, color="black", linewidth=0.8, capsize=1.5)
            axes.annotate(f" {ratio:.2f}", (measured["high"], at), va="center", fontsize=7)
    axes.axvline(1, color=_PETX, linewidth=1.5)
    axes.set_yticks(range(len(cases)), [case["name"] for case in cases], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)


def _roofline(path: Path, cases: list[Record], constants: Record | None, device: str) -> list[Path]:
    """FLOP/s over FLOPs per byte, one panel per dtype, below the roof of the measured copy and GEMM rates."""
    points = []
    for case in cases:
        if case["work"] and "fwd+bwd" in times_of(case):
            flops, moved = case["work"]["fwd+bwd"]
            points.append(
                (case["dtype"], case["operation"], flops / moved, flops / times_of(case)["fwd+bwd"]["median"])
            )
    if constants is None or not points:
        return []
    dtypes = [d for d in dict.fromkeys(point[0] for point in points) if d in constants["gemm_flops_per_second"]]
    operations = list(dict.fromkeys(point[1] for point in points))
    figure, panels = plt.subplots(
        1, len(dtypes), figsize=(4.2 * len(dtypes) + 1, 4.6), layout="constrained", sharey=True, squeeze=False
    )
    copy = max(constants["copy_bytes_per_second"].values())
    for axes, dtype in zip(panels[0], dtypes, strict=True):
        here = [point for point in points if point[0] == dtype]
        roof = constants["gemm_flops_per_second"][dtype]
        ridge = roof / copy
        xs = [min(ridge, *(p[2] for p in here)) / 2, ridge, max(ridge, *(p[2] for p in here)) * 2]
        axes.plot(
            xs, [min(roof, copy * x) / 1e9 for x in xs], color="black", linewidth=1, label="copy and GEMM measured"
        )
        for i, operation in enumerate(operations):
            own = [(x, y / 1e9) for _, o, x, y in here if o == operation]
            if own:
                axes.plot(*zip(*own, strict=True), _MARKERS[i % 8], color=_COLOURS[i % len(_COLOURS)], label=operation)
        axes.set(
            xscale="log", yscale="log", xlabel="FLOPs per byte (least traffic)", title=f"{dtype}, forward + backward"
        )
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("GFLOP/s (least work over time)")
    figure.suptitle(f"petx on {device}", fontsize=10)
    return [_save(figure, panels[0][0], path, panels[0])]


def _growth(path: Path, sweeps: list[Record]) -> list[Path]:
    if not sweeps:
        return []
    columns = min(3, len(sweeps))
    rows = -(-len(sweeps) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 3.1 * rows + 0.4), layout="constrained", squeeze=False
    )
    for axes in panels.flat[len(sweeps) :]:
        axes.set_visible(False)
    for axes, sweep in zip(panels.flat, sweeps, strict=False):
        for arm, colour, marker in (("petx", _PETX, "o"), ("best eager", _COLOURS[0], "s")):
            pairs = [(p["size"], p["seconds"][arm] * 1e3) for p in sweep["points"] if arm in p["seconds"]]
            if pairs:
                axes.plot(*zip(*pairs, strict=True), marker=marker, markersize=4, color=colour, label=arm)
        slopes = ", ".join(f"{arm} {slope:.2f}" for arm, slope in sweep["slopes"].items())
        axes.set_title(f"{sweep['operation']}\nslopes: {slopes}", fontsize=8)
        axes.set(xscale="log", yscale="log", xlabel=sweep["size"])
        sizes = [point["size"] for point in sweep["points"]]
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=7)
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        _plain_ticks(axes.yaxis)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for row in panels:
        row[0].set_ylabel("forward + backward (ms)")
    return [_save(figure, panels.flat[0], path)]


def _plain_ticks(axis: Axis) -> None:
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(ticker.NullLocator())


def _save(figure: Figure, axes: Axes, path: Path, more: Sequence[Axes] = ()) -> Path:
    entries: dict[str, Any] = {}
    for each in more if len(more) else [axes]:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    with written_whole(path) as target:
        figure.savefig(target, dpi=130, format="png")
    plt.close(figure)
    return path
