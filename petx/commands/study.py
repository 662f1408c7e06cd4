"""Run a study, a recipe with some settings varied, by several seeds: ``petx study NAME``; --list shows them.

Every cell is a ``petx train`` of its own; the same command goes on after an interruption. docs/studies.md says what is
written, and how a study is added: by one YAML file.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", nargs="?", metavar="NAME", help="one of --list, or a YAML file of one's own")
    parser.add_argument("--list", action="store_true", help="show the studies, or with NAME its cells, and stop")
    parser.add_argument("--seeds", metavar="0,1,2", help="seeds in place of the study's own")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time; they share the cores")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every cell")
    parser.add_argument("--output_dir", "--output-dir", metavar="DIR", help="default: petx-runs/study-NAME")


def run(args: argparse.Namespace) -> int:
    from petx import studies
    from petx.errors import UserError
    from petx.files import user_name, user_path
    from petx.studies import plan, results, running
    from petx.train import stopping

    if args.study is None:
        if not args.list:
            raise UserError(f"name a study; there are: {', '.join(studies.names())}")
        width = max(map(len, studies.names()))
        print("\n".join(f"{name:<{width}}  {plan.description(name)}" for name in studies.names()))
        return 0
    if args.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {args.jobs}")
    name = user_name(args.study, "NAME")
    study = studies.read(name, seeds=_seeds(args.seeds), assignments=args.set)
    if args.list:
        print(f"{study.name}: {study.description}")
        print(f"petx train {study.method} --preset {study.preset}, seeds {', '.join(map(str, study.seeds))}")
        print("\n".join(f"  {cell.name}" for cell in study.cells))
        return 0
    folder = f"petx-runs/study-{study.name}" if args.output_dir is None else args.output_dir
    out = user_path(folder, "--output_dir")
    try:
        with stopping.as_interruption():  # a scheduler's SIGTERM must not leave the children running
            failed = running.run(study, out, at_once=args.jobs, say=lambda text: print(text, flush=True))
    except KeyboardInterrupt as stop:
        stopping.last_words(
            f"\n{stopping.name(stop)}. What was finished is in {out}; the same command goes on from there."
        )
        return stopping.exit_code(stop)
    text, files = results.write(study, out)
    print(f"\n{text}")
    for file in files:
        print(f"written  {file}")
    return 1 if failed else 0


def _seeds(text: str | None) -> list[int] | None:
    from petx.errors import UserError

    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds must be integers with commas between them, such as 0,1,2; got {text!r}") from None
