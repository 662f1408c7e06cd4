"""What a study found: a row for each cell and baseline, its mean and spread over seeds, as table, JSON and plot."""

import statistics
from pathlib import Path
from typing import Any

from petx.errors import UserError
from petx.files import write_json, written_whole
from petx.studies.plan import Study, written
from petx.studies.running import RESULTS, jobs
from petx.train import plots, report


def collect(study: Study, out: Path) -> dict[str, Any]:
    """All that is finished below ``out``.

    ``rows``: for each cell and baseline ``cell``, ``place`` (values along the axes; ``labels``: as text), ``arm``,
    ``trainable``, ``total``, ``runs`` (of each finished seed, with its scores), and of ``metric`` on ``test`` and
    ``dev`` its ``mean`` and ``spread`` (standard deviation; None of one run). ``beside``: scores without a tuned model,
    by name. ``missing``: runs that are not finished.
    """
    hosts, cells = jobs(study, out)
    by_cell = dict(zip(((cell.name, seed) for seed in study.seeds for cell in study.cells), cells, strict=True))
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    beside: dict[str, dict[str, float]] = {}
    missing = []
    for cell in study.cells:
        for seed in study.seeds:
            job = by_cell[cell.name, seed]
            found = job.results()
            if found is None:
                missing.append(job.title)
                continue
            beside |= {name: scores["test"] for name, scores in found["baselines"].items()}
            for arm in cell.settings.all_arms:
                for record in found["arms"][arm]:
                    sizes = {name: record[name] for name in ("trainable", "total")}
                    labels = {axis: written(value) for axis, value in cell.place.items()}
                    new = {"cell": cell.name, "place": cell.place, "labels": labels, "arm": arm, **sizes, "runs": []}
                    row = rows.setdefault((cell.name, arm), new)
                    kept = ("seed", "steps", "seconds", "dev", "test")
                    row["runs"].append({name: record[name] for name in kept})
    pretrained = [found for job in hosts if (found := job.results()) is not None]
    frozen = [record["test"] for found in pretrained for record in found["arms"]["frozen"]]
    if frozen:
        beside["frozen host"] = {name: statistics.mean(scores[name] for scores in frozen) for name in frozen[0]}
    for row in rows.values():
        for split in ("test", "dev"):
            values = [_score(run[split], study.metric, row["cell"]) for run in row["runs"]]
            spread = statistics.stdev(values) if len(values) > 1 else None
            row[split] = {"mean": statistics.mean(values), "spread": spread}
    plain = {name: getattr(study, name) for name in ("name", "description", "method", "preset", "metric", "seeds")}
    return plain | {"axes": study.axes, "rows": list(rows.values()), "beside": beside, "missing": missing}


def _score(scores: dict[str, float], metric: str, cell: str) -> float:
    if metric not in scores:
        raise UserError(f"metric {metric!r} is not a score of cell {cell}; there are: {', '.join(scores)}")
    return scores[metric]


def table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines, all text: axes, what is trained, every test score, the development split's, seeds, seconds."""
    several = len({row["arm"] for row in found["rows"]}) > 1
    metrics = [found["metric"]]
    for scores in [*found["beside"].values(), *(run["test"] for row in found["rows"] for run in row["runs"])]:
        metrics += [name for name in scores if name not in metrics]
    header = [*found["axes"], *(["baseline"] if several else []), "trainable", "share", *metrics]
    header += [f"dev {found['metric']}", "seeds", "seconds"]
    lines = []
    for name, scores in found["beside"].items():
        first = [report.BASELINES.get(name, name), *("" for _ in found["axes"][1:]), *([""] if several else [])]
        lines.append([*first, "-", "-", *(report.score([scores.get(one)]) for one in metrics), "-", "-", "-"])
    for row in found["rows"]:
        runs = row["runs"]
        scored = [report.score([run["test"].get(one) for run in runs]) for one in metrics]
        lines.append(
            [
                *(row["labels"][axis] for axis in found["axes"]),
                *([row["arm"]] if several else []),
                f"{row['trainable']:,}",
                f"{100 * row['trainable'] / row['total']:.2f} %",
                *scored,
                report.score([run["dev"].get(found["metric"]) for run in runs]),
                str(len(runs)),
                f"{statistics.mean(run['seconds'] for run in runs):.0f}",
            ]
        )
    return header, lines


def write(study: Study, out: Path) -> tuple[str, list[Path]]:
    """``results.json``, ``results.md`` and ``results.png`` in ``out``; the terminal's text, and what was written."""
    found = collect(study, out)
    write_json(out / RESULTS, found)
    header, lines = table(found)
    done = sum(len(row["runs"]) for row in found["rows"])
    seeds = ", ".join(map(str, study.seeds))
    notes = [f"Mean over seeds {seeds} as far as they are finished, ± the standard deviation of several."]
    if len(study.seeds) == 1:
        notes = [f"One seed, {study.seeds[0]}; what other seeds give is not known."]
    if found["missing"]:
        notes.append(f"Not finished: {'; '.join(found['missing'])}.")
    files = [out / RESULTS, out / "results.md"]
    with written_whole(out / "results.md") as target:
        title = f"# Study {study.name}: {study.description}"
        command = f"`petx study {study.name}`: petx train {study.method}, preset {study.preset}."
        text = [title, command, report.markdown(header, lines), *notes]
        target.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    if done:
        files.append(plots.write_study(found, out / "results.png"))
    return "\n".join([report.aligned(header, lines), "", *notes]), files
