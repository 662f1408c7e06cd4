"""The results of a run side by side: an aligned table for the terminal, Markdown and JSON for keeping."""

import statistics
from typing import Any

from petx.files import write_json, written_whole

BASELINES = {"majority": "majority answer", "blind": "best answer per question, no image"}


def rows(run: Any, results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table, all text. A cell is the mean over seeds, ± the standard deviation of several."""
    columns = run.recipe.columns
    metrics = []  # in order of first appearance, from whatever was scored
    for scored in [*results["baselines"].values(), *(record for runs in results["arms"].values() for record in runs)]:
        metrics += [name for name in scored["test"] if name not in metrics]
    header = ["", "trainable", "share", *(heading for heading, _ in columns), *metrics]
    header += ["dev", "steps", "seconds", "ms per step"]
    lines = []
    for name, scored in results["baselines"].items():
        first_dev = next(iter(scored["dev"].values()))
        tested = [score([scored["test"].get(metric)]) for metric in metrics]
        lines.append([BASELINES[name], "-", "-", *("-" for _ in columns), *tested, score([first_dev]), *"---"])
    for arm, records in results["arms"].items():
        one = records[0]
        lines.append(
            [
                run.title(arm, one),
                f"{one['trainable']:,}",
                f"{100 * one['trainable'] / one['total']:.2f} %",
                *(f"{one[key]:,}" if key in one else "-" for _, key in columns),
                *(score([record["test"].get(m) for record in records]) for m in metrics),
                score([next(iter(record["dev"].values()), None) for record in records]),
                f"{one['steps']:,}",
                f"{statistics.mean(record['seconds'] for record in records):.0f}",
                score([record.get("step_ms") for record in records]),
            ]
        )
    return header, lines


def score(values: list[float | None]) -> str:
    scored = [value for value in values if value is not None]
    if not scored:
        return "-"
    spread = f" ± {statistics.stdev(scored):.1f}" if len(scored) > 1 else ""
    return f"{statistics.mean(scored):.1f}{spread}"


def markdown(header: list[str], lines: list[list[str]]) -> str:
    ruler = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ruler, *lines])


def aligned(header: list[str], lines: list[list[str]]) -> str:
    widths = [max(len(cells[i]) for cells in [header, *lines]) for i in range(len(header))]
    text = []
    for cells in [header, ["-" * width for width in widths], *lines]:
        right = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        text.append("  ".join([cells[0].ljust(widths[0]), *right]).rstrip())
    return "\n".join(text)


def notes(run: Any, results: dict[str, Any]) -> str:
    """The caveats that belong beside the table, or nothing if the data is the user's own."""
    if not run.source.caveats:
        return ""
    count = max(map(len, results["arms"].values()))
    one = "One seed: differences under a point mean little (--seeds 3)."
    seeds = one if count == 1 else f"Mean and standard deviation of {count} seeds on one pretrained host."
    blind = f"{results['baselines']['blind']['test']['accuracy']:.1f} %"
    return run.recipe.notes(run.settings).format(blind=blind, seeds=seeds)


def write(run: Any, results: dict[str, Any]) -> str:
    """``results.md`` and ``results.json`` in the output folder; returns the terminal's text."""
    header, lines = rows(run, results)
    caveats = notes(run, results)
    with written_whole(run.out / "results.md") as target:
        title = f"# petx train {run.recipe.name} on {run.settings.data}"
        target.write_text(f"{title}\n\n{markdown(header, lines)}\n\n{caveats}", encoding="utf-8")
    write_json(run.out / "results.json", results)
    return f"{aligned(header, lines)}\n\n{caveats}"
