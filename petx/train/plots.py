"""Curves of a run as PNG: training loss and development score by step, one line per baseline."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from petx.files import written_whole

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (after the choice of backend)
from matplotlib import ticker  # noqa: E402  (after the choice of backend)
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402


def drawn(text: str) -> str:
    """``text`` as it is in a figure, where a pair of dollar signs would make it mathematics. (``parse_math=False`` does
    not hold for a text that is wrapped.)"""
    return text.replace("$", r"\$")


def write_curves(run: Any, results: dict[str, Any]) -> list[Path]:
    """``loss.png`` and ``accuracy.png`` in the output folder; returns their paths, none if nothing was trained."""
    curves = {arm: [record["curve"] for record in runs if record["curve"]] for arm, runs in results["arms"].items()}
    curves = {arm: runs for arm, runs in curves.items() if runs}
    if not curves:
        return []
    colours, data = {arm: run.baseline(arm).colour for arm in curves}, run.settings.data
    titles = {arm: _label(run, arm, results["arms"][arm][0]) for arm in curves}

    figure, axes = _figure("training loss, running mean", "tuning step")
    for arm, runs in curves.items():
        steps = [step for step, _ in runs[0]["loss"]]
        losses = np.array([[loss for _, loss in run["loss"]] for run in runs])
        _line(axes, steps, _smooth(losses), colours[arm], titles[arm])
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    axes.set_title(f"Training loss ({data})")
    paths = [_save(figure, axes, run.out / "loss.png")]

    metric = next(iter(curves.values()))[0]["metric"] or "score"
    figure, axes = _figure(f"development {metric}{' (%)' if 'accuracy' in metric else ''}", "tuning step")
    for arm, runs in curves.items():
        steps = [step for step, _ in runs[0]["dev"]]
        scores = np.array([[score for _, score in run["dev"]] for run in runs])
        _line(axes, steps, scores, colours[arm], titles[arm], marker="o")
    if "blind" in results["baselines"]:
        blind = results["baselines"]["blind"]["dev"]["accuracy"]
        label = f"best answer without the image ({blind:.1f})"
        axes.axhline(blind, color="black", linestyle="--", linewidth=1, label=label)
    axes.set_title(f"Score on the development split ({data})")
    return [*paths, _save(figure, axes, run.out / "accuracy.png")]


def _label(run: Any, arm: str, record: dict[str, Any]) -> str:
    return f"{run.title(arm, record)} ({100 * record['trainable'] / record['total']:.1f} % trained)"


def _figure(vertical: str, horizontal: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _smooth(losses: np.ndarray, window: int = 5) -> np.ndarray:
    """Running mean along the steps, shorter at the ends, so that no point is invented."""
    padded = np.pad(losses, ((0, 0), (window // 2, window // 2)), constant_values=np.nan)
    return np.nanmean(np.lib.stride_tricks.sliding_window_view(padded, window, axis=1), axis=-1)


def _line(axes: Axes, steps: list[int], values: np.ndarray, colour: str, label: str, marker: str | None = None) -> None:
    mean = values.mean(axis=0)
    axes.plot(steps, mean, color=colour, label=label, marker=marker, markersize=4, linewidth=1.8)
    if len(values) > 1:
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)


def _save(figure: Figure, axes: Axes, path: Path) -> Path:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    with written_whole(path) as target:
        figure.savefig(target, dpi=150, format="png")
    plt.close(figure)
    return path


def write_study(found: dict[str, Any], path: Path) -> Path:
    """Means of a study's cells along its first axis, spread and single seeds beside them, at ``path``.

    ``found``: :func:`petx.studies.results.collect`. One line for each value of the other axes, and each baseline.
    """
    first, *others = found["axes"]
    places = list(dict.fromkeys(drawn(row["labels"][first]) for row in found["rows"]))
    values = [row["place"][first] for row in found["rows"]]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    several = len({row["arm"] for row in found["rows"]}) > 1
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        label = ", ".join([*(f"{axis} {row['labels'][axis]}" for axis in others), *([row["arm"]] if several else [])])
        lines.setdefault(drawn(label or found["metric"]), []).append(row)

    figure, axes = _figure(drawn(f"test {found['metric']}"), drawn(first))
    shift = 0.12 if not numeric else 0.0  # so that lines of one place do not cover one another
    for number, (label, rows) in enumerate(lines.items()):
        away = shift * (number - (len(lines) - 1) / 2)
        at = np.array(
            [row["place"][first] if numeric else places.index(drawn(row["labels"][first])) + away for row in rows]
        )
        means = [row["test"]["mean"] for row in rows]
        spreads = [row["test"]["spread"] or 0.0 for row in rows]
        drawing: dict[str, Any] = dict(
            marker="o", markersize=5, capsize=4, linewidth=1.5, linestyle="-" if numeric else "none"
        )
        bars = axes.errorbar(at, means, yerr=spreads, label=label, **drawing)
        for x, row in zip(at, rows, strict=True):
            seeds = [run["test"][found["metric"]] for run in row["runs"]]
            axes.plot([x] * len(seeds), seeds, ".", color=bars[0].get_color(), alpha=0.35, markersize=4)
    low, high = axes.get_ylim()  # of the cells, which a far reference would squeeze together
    for name, style in (("blind", "--"), ("frozen host", ":")):
        value = found["beside"].get(name, {}).get(found["metric"])
        label = "best answer without the image" if name == "blind" else name
        if value is not None and low <= value <= high:
            axes.axhline(value, color="black", linestyle=style, linewidth=1, label=f"{label} ({value:.1f})")
        elif value is not None:
            axes.plot([], [], " ", label=f"{label} ({value:.1f}, not in view)")
    if numeric:
        axes.set_xticks(sorted(set(values)))
    else:
        slanted: dict[str, Any] = dict(rotation=30, ha="right") if max(map(len, places)) > 10 else {}
        axes.set_xticks(range(len(places)), places, **slanted)
    axes.set_title(drawn(found["description"]), wrap=True, fontsize=11)
    return _save(figure, axes, path)
