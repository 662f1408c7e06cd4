"""Measure petx's operations, layers and training steps against named peers on this machine.

Writes results.json (after every case, so that an interrupted run keeps what it measured), report.md and plots into
--output-dir. Finds a GPU by itself. petx and its peers take turns in one run, so the ratios hold even if the times are
disturbed.

  petx bench --quick
  petx bench --output-dir now --compare then/results.json
  petx bench --cases gated_adapter mode_update/text-qkv --peers "best eager"
"""

import argparse
import shlex
import signal
from types import ModuleType
from typing import TYPE_CHECKING

from petx.errors import UserError

if TYPE_CHECKING:
    from petx.bench.case import BenchCase

MINUTES = {("cpu", True): 4, ("cpu", False): 24, ("cuda", True): 3, ("cuda", False): 8}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="the main shapes only, about 4 minutes on a CPU")
    parser.add_argument("--output-dir", default="petx-bench", help="default: petx-bench")
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one"
    )
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="operations, or operation/case; --list shows them")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="only these peers; --list shows them")
    parser.add_argument(
        "--compare", metavar="JSON", help="an earlier results.json; exit code 1 if something got slower"
    )
    parser.add_argument("--seconds", type=float, help="time per case; default 2 with --quick, else 3")
    parser.add_argument("--minutes", type=float, help="time for all; what is not reached is listed (default 4 and 24)")
    parser.add_argument("--threads", type=int, help="threads of torch; default: torch's")
    parser.add_argument("--list", action="store_true", help="print the names of cases and peers, and stop")


def run(args: argparse.Namespace) -> int:
    import torch  # here, so that `petx --help` and a mistyped option stay quick

    from petx.bench import table
    from petx.bench.case import PETX, select

    device = _device(args.device, torch)
    for name in ("seconds", "minutes", "threads"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name} must be positive, got {value}")
    cases = table.cases(device, args.quick)
    if args.list:
        print("\n".join(str(case) for case in select(cases, args.cases, args.peers)))
        print("peers: " + ", ".join(dict.fromkeys(arm.name for c in cases for arm in c.arms if arm.name != PETX)))
        return 0
    return _measure(args, device, torch, select(cases, args.cases, args.peers))


def _measure(args: argparse.Namespace, device: str, torch: ModuleType, chosen: list["BenchCase"]) -> int:
    from petx.bench import compare, report
    from petx.bench.run import run as run_set
    from petx.files import require_writable, user_path, written_whole

    earlier = None if args.compare is None else compare.load(user_path(args.compare, "--compare"))
    folder = user_path(args.output_dir, "--output-dir")
    require_writable(folder, "--output-dir")
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"{len(chosen)} cases on {device}, {torch.get_num_threads()} threads, into {folder}/", flush=True)
    # A time limit from outside ends the run as Ctrl-C does: with a report of what was measured.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        results = run_set(
            device,
            folder / "results.json",
            quick=args.quick,
            seconds=args.seconds or (2.0 if args.quick else 3.0),
            minutes=args.minutes or MINUTES[device, args.quick],
            visits=2 if device == "cpu" and not args.quick else 1,
            cases=args.cases,
            peers=args.peers,
            command=_command(args),
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    compared = None if earlier is None else compare.regressions(results, earlier)
    try:
        from petx.bench.plots import write_plots

        plots = [path.name for path in write_plots(folder, results)]
    except ImportError:
        print("no plots: matplotlib is not installed")
        plots = []
    with written_whole(folder / "report.md") as target:
        target.write_text(report.markdown(results, plots, compared), encoding="utf-8")
    print(f"{folder / 'report.md'}, {folder / 'results.json'}" + (f" and {len(plots)} plots" if plots else ""))
    for text in [*compared[1], *(f"slower: {text}" for text in compared[0])] if compared else []:
        print(text)
    return 130 if results["interrupted"] else int(bool(compared and compared[0]))


def _device(asked: str, torch: ModuleType) -> str:
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here")
    return asked if asked != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _command(args: argparse.Namespace) -> str:
    words = ["petx bench"]
    for name, value in vars(args).items():
        option = "--" + name.replace("_", "-")
        if value is True:
            words.append(option)
        elif isinstance(value, list):
            words += [option, *map(shlex.quote, value)]
        elif value not in (None, False, "auto", "petx-bench"):
            words += [option, shlex.quote(str(value))]
    return " ".join(words)
