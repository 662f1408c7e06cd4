"""The Markdown report of a run."""

from collections.abc import Iterable, Sequence

from petx.bench.case import PRODUCTS
from petx.bench.compare import Record, by_dtype, ratio_of, times_of

DIRECTIONS = ("fwd", "bwd", "fwd+bwd", "step")


def markdown(results: Record, plots: Iterable[str] = (), compared: tuple[list[str], list[str]] | None = None) -> str:
    """The whole report; ``plots`` are file names beside it, ``compared`` the (regressions, notes) of a comparison."""
    parts = ["# petx bench", _head(results), _constants(results), _process(results)]
    if compared is not None:
        parts.append(_comparison(*compared))
    parts += _operations(results)
    parts.append(_growth(results))
    parts += [f"![{name}]({name})" for name in plots]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(results: Record) -> str:
    m, lines = results["machine"], []
    lines.append(f"`{results['command']}`, {results['date']}, {results.get('elapsed_seconds', 0) / 60:.1f} minutes.")
    if results["interrupted"]:
        lines.append("**Interrupted: what follows was measured before.**")
    where = f"{m['threads']} threads of {m['cores']} cores" if m["device_type"] == "cpu" else f"{m['memory_gib']} GiB"
    built = f"kernels {m['kernels']}, {m['compiler']}" if m["kernels"] else "no compiled kernels"
    cuda = f", CUDA {m['cuda']}" if m["cuda"] else ""
    lines.append(f"{m['device']}, {where}; petx {m['petx']} ({built}), torch {m['torch']}{cuda}, Python {m['python']}.")
    lines.append(
        "Arms take turns in one run, on random inputs that rotate past the caches. A time is the median of the rounds; "
        "in brackets the middle 80 % of them (of fewer than ten, all), and their number. A ratio is a peer's time over "
        "petx's in the same round, above 1 where petx is faster."
    )
    return "\n\n".join(lines)


def _constants(results: Record) -> str:
    constants = results["constants"]
    if constants is None:
        return ""
    rows = [
        (f"copy of {int(size) >> 20} MiB", f"{rate / 1e9:.1f} GB/s")
        for size, rate in constants["copy_bytes_per_second"].items()
    ]
    rows += [(f"GEMM {d}", f"{rate / 1e9:,.1f} GFLOP/s") for d, rate in constants["gemm_flops_per_second"].items()]
    for key, name in (
        ("launch_seconds", "launch of a small kernel"),
        ("graph_gap_seconds", "the same in a CUDA graph"),
    ):
        if key in constants:
            rows.append((name, f"{constants[key] * 1e6:.2f} µs"))
    return "## The machine's own rates\n\n" + _table(["what", "rate"], rows)


def _process(results: Record) -> str:
    figures, rows = results["process"], []
    for name, seconds in figures.get("import_seconds", {}).items():
        rows.append((f"import of {name}", f"{seconds:.2f} s"))
    wheel = figures.get("wheel", {})
    if "bytes" in wheel:
        rows.append(("wheel", f"{wheel['bytes'] / 1e6:.2f} MB"))
        rows.append(("its build from sources", f"{wheel['build_seconds']:.0f} s"))
    elif wheel:
        rows.append(("wheel", wheel["unavailable"]))
    parts = ["## The whole process", _table(["what", "figure"], rows) if rows else "", _calls(figures)]
    return "\n\n".join(part for part in parts if part) if any(parts[1:]) else ""


def _calls(figures: Record) -> str:
    rows = [
        [name, *(f"{1e6 * seconds:.1f}" for seconds in (t["layer"], t["operator"], t["layer"] - t["operator"]))]
        for name, t in figures.get("call_overheads", {}).items()
    ]
    said = (
        "A call without gradients on the smallest of inputs, one thread, µs; ModeLinear is a linear and two operators."
    )
    return f"{said}\n\n" + _table(["layer", "call", "its operators alone", "beyond it"], rows) if rows else ""


def _operations(results: Record) -> list[str]:
    sections = []
    for operation in dict.fromkeys(case["operation"] for case in results["cases"]):
        cases = by_dtype(case for case in results["cases"] if case["operation"] == operation)
        done = [case for case in cases if "arms" in case]
        parts = [f"## {operation}"]
        sizes = dict.fromkeys(f"`{c['name']}`: {_sizes(c['sizes'])}" for c in cases)
        parts.append("\n".join(f"- {text}" for text in sizes))
        if done:
            parts.append(_times(done, results["constants"]))
            parts.append(_memory(done))
        parts.append(_absent(cases))
        sections.append("\n\n".join(part for part in parts if part))
    return sections


def _times(cases: list[Record], constants: Record | None) -> str:
    peers = list(dict.fromkeys(arm for case in cases for arm in case["arms"] if arm != "petx"))
    header = ["case", "dtype", "direction", "petx (ms)", "GB/s", "GFLOP/s", "of copy", "of GEMM", *peers]
    rows = []
    for case in cases:
        for direction in DIRECTIONS:
            own = times_of(case).get(direction)
            if own is None:
                continue
            ratios = []
            for peer in peers:
                ratio = ratio_of(case, peer, direction)
                shown = ratio and [f"{ratio[key]:.2f}" for key in ("median", "low", "high")]
                ratios.append("{}x ({} to {})".format(*shown) if shown else "n/a")
            rows.append(
                [case["name"], case["dtype"], direction, _spread(own), *rates(case, direction, constants), *ratios]
            )
    return _table(header, rows, numbers_from=3)


def rates(case: Record, direction: str, constants: Record | None) -> list[str]:
    """GB/s, GFLOP/s, and their shares of the machine's rates, as text."""
    work = case["work"].get(direction)
    if not work:
        return ["", "", "", ""]
    flops, moved = (amount / times_of(case)[direction]["median"] for amount in work)
    if constants is None:
        return [f"{moved / 1e9:.1f}", f"{flops / 1e9:.0f}", "", ""]
    copy = max(constants["copy_bytes_per_second"].values())
    gemm = constants["gemm_flops_per_second"].get(case["dtype"])
    return [f"{moved / 1e9:.1f}", f"{flops / 1e9:.0f}", f"{moved / copy:.0%}", f"{flops / gemm:.0%}" if gemm else ""]


def _memory(cases: list[Record]) -> str:
    arms = list(dict.fromkeys(arm for case in cases for arm in case["arms"] if arm != PRODUCTS))
    rows = []
    for case in cases:
        cells = []
        for arm in arms:
            measured = case["arms"].get(arm, {})
            known = "peak_bytes" in measured
            cells.append(f"{_mb(measured['peak_bytes'])} / {_mb(measured['kept_bytes'])}" if known else "n/a")
        rows.append([case["name"], case["dtype"], *cells])
    return "Memory in MB: peak of a step / what its forward leaves behind\n\n" + _table(
        ["case", "dtype", *arms], rows, numbers_from=2
    )


def _mb(value: float) -> str:
    return f"{value / 1e6:.1f}"


def _absent(cases: list[Record]) -> str:
    """Skipped cases and peers that did not run, with their reasons, those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for case in cases:
        if "skipped" in case:
            reasons.setdefault(f"skipped: {case['skipped']}", []).append(f"{case['name']} {case['dtype']}")
        for arm, measured in case.get("arms", {}).items():
            if "unavailable" in measured:
                reasons.setdefault(f"{arm}: {measured['unavailable']}", []).append(f"{case['name']} {case['dtype']}")
    return "\n".join(f"- {reason} ({', '.join(names)})" for reason, names in reasons.items())


def _growth(results: Record) -> str:
    rows = []
    for sweep in results["growth"]:
        sizes = [point["size"] for point in sweep["points"]]
        if sizes:
            slopes = [
                f"{sweep['slopes'][arm]:.2f}" if arm in sweep["slopes"] else "n/a" for arm in ("petx", "best eager")
            ]
            rows.append([sweep["operation"], sweep["size"], f"{min(sizes):,} to {max(sizes):,}", *slopes])
    if not rows:
        return ""
    said = "Slope of log time over log size, forward plus backward, float32: 1 is proportional."
    header = ["operation", "size", "range", "petx", "best eager"]
    return f"## How cost grows\n\n{said}\n\n" + _table(header, rows, numbers_from=3)


def _comparison(regressions: list[str], notes: list[str]) -> str:
    lines = [f"- {text}" for text in notes]
    lines += [f"- **slower**: {text}" for text in regressions] or ["- nothing got slower"]
    return "## Against the earlier run\n\n" + "\n".join(lines)


def _spread(times: Record) -> str:
    scale, unit = (1e3, "") if times["median"] >= 1e-4 else (1e6, " µs")
    low, middle, high = (times[key] * scale for key in ("low", "median", "high"))
    return f"{middle:.3g}{unit} ({low:.3g} to {high:.3g}; {times['rounds']})"


def _sizes(sizes: Record) -> str:
    return ", ".join(
        f"{name} {value:,}" if isinstance(value, int) and not isinstance(value, bool) else f"{name} {value}"
        for name, value in sizes.items()
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[object]], numbers_from: int = 1) -> str:
    marks = ["---" if i < numbers_from else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [header, marks, *rows])
