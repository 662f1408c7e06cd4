"""Score a tuned model again: ``petx eval --adapter DIR``, greedily or with beams."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", required=True, metavar="DIR", help="folder 'tuned' written by petx train")
    parser.add_argument("--num_beams", "--num-beams", type=int, metavar="N", help="beams (default: as it was trained)")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="default: test")


def run(args: argparse.Namespace) -> int:
    from petx.errors import UserError
    from petx.files import user_path
    from petx.train import scoring, tuned
    from petx.train.run import Run

    if args.num_beams is not None and args.num_beams < 1:
        raise UserError(f"--num_beams must be at least 1, got {args.num_beams}")
    loaded = tuned.load(user_path(args.adapter, "--adapter"))
    run = Run(loaded.recipe, loaded.settings)
    run.prepare()
    tasks = getattr(run.load_data(), args.split)
    beams = args.num_beams or loaded.settings.num_beams
    scored = scoring.scores(
        loaded.model, tasks, loaded.tokenizer, batch_size=loaded.settings.eval_batch_size, num_beams=beams
    )
    trained = loaded.manifest
    searched = "default search" if beams is None else f"{beams} beam{'s' if beams > 1 else ''}"
    print(f"{trained['arm']}, seed {trained['seed']}: {sum(map(len, tasks)):,} examples of {args.split}, {searched}")
    for name, value in scored.items():
        print(f"  {name:<12} {value:.4f}   (when trained {trained['scores'][args.split][name]:.4f})")
    return 0
