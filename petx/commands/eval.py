"""Score a tuned model again: ``petx eval --adapter DIR``, greedily or with beams; its predictions are written."""

import argparse
import dataclasses
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", required=True, metavar="DIR", help="folder 'tuned' written by petx train")
    parser.add_argument("--num_beams", "--num-beams", type=int, metavar="N", help="beams (default: as it was trained)")
    parser.add_argument("--split", choices=("dev", "test"), default="test", help="default: test")
    parser.add_argument("--data_dir", "--data-dir", metavar="DIR", help="where the data lies now (default: as trained)")
    for name, held in (("images", "image files"), ("features", "feature files")):
        words = f"where the {held} lie now (default: as trained)"
        parser.add_argument(f"--{name}_dir", f"--{name}-dir", metavar="DIR", help=words)
    parser.add_argument("--output", metavar="DIR", help="folder of the predictions (default: eval beside DIR)")


def run(args: argparse.Namespace) -> int:
    from petx.data import predictions
    from petx.errors import UserError
    from petx.files import require_writable, user_path
    from petx.options import BEAMS, checked_value
    from petx.train import scoring, tuned
    from petx.train.run import Run

    checked_value("--num_beams", args.num_beams, int | None, BEAMS)
    adapter = user_path(args.adapter, "--adapter")
    loaded = tuned.load(adapter)
    output = user_path(args.output or adapter.resolve().parent / "eval", "--output")
    require_writable(output, "--output")
    settings = loaded.settings
    if settings.host is not None:  # which may be named from the folder that the training was started in
        settings = dataclasses.replace(settings, host=str(loaded.host_folder))
    for name in ("data_dir", "images_dir", "features_dir"):
        given = getattr(args, name)
        if given is None:
            continue
        if settings.data_dir is None:
            raise UserError(f"--{name} is for data of one's own, and this was trained on {settings.data}")
        if not hasattr(settings, name):
            raise UserError(f"--{name} is no setting of petx train {settings.recipe}, got {given!r}")
        place: dict[str, Any] = {name: str(user_path(given, f"--{name}"))}
        settings = dataclasses.replace(settings, **place)
    run = Run(loaded.recipe, settings)
    run.prepare()
    tasks = getattr(run.load_data(), args.split)
    if args.num_beams is not None and all(task.retrieval for task in tasks):
        raise UserError("--num_beams is for texts that are generated, and this was trained to rank")
    beams = args.num_beams or loaded.settings.num_beams
    scored, texts = scoring.evaluate(
        loaded.model, tasks, loaded.tokenizer, batch_size=loaded.settings.eval_batch_size, num_beams=beams
    )
    trained = loaded.manifest
    searched = "default search" if beams is None else f"{beams} beam{'s' if beams > 1 else ''}"
    print(f"{trained['arm']}, seed {trained['seed']}: {sum(map(len, tasks)):,} examples of {args.split}, {searched}")
    for name, value in scored.items():
        before = trained["scores"].get(args.split, {}).get(name)
        print(f"  {name:<12} {value:.4f}" + ("" if before is None else f"   (when trained {before:.4f})"))
    if not scored:
        print("  no answers to score")
    predictions.write(output, args.split, tasks, texts)
    for task in tasks:
        print(f"predictions  {predictions.path_of(output, args.split, task)}")
    return 0
