"""Score a prediction file without a model: ``petx score FILE``, of a run, or with a task and the data's folder.

A file that ``petx train`` or ``petx eval`` wrote below its output folder is scored with that run's settings; any other
names them:

    petx score runs/bart/vlpet/seed-42/predictions/test-vqa.json
    petx score answers.json --task okvqa --data_dir datasets --split test
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="predictions, in the task's format (docs/tasks.md)")
    parser.add_argument("--task", metavar="NAME", help="the task whose predictions these are")
    parser.add_argument("--data_dir", "--data-dir", metavar="DIR", help="folder of the data (default: the run's)")
    parser.add_argument(
        "--split", nargs="+", metavar="NAME", help="splits that were predicted, as in their files' names"
    )
    parser.add_argument("--metric", metavar="NAME", help="another metric than the task's")
    parser.add_argument("--meteor", action="store_true", help="captions: METEOR too, by pycocoevalcap and Java")


def run(args: argparse.Namespace) -> int:
    from petx import metrics, tasks
    from petx.errors import UserError
    from petx.files import user_path
    from petx.metrics._meteor import check_meteor, meteor
    from petx.train import predicted

    file = user_path(args.file, "FILE")
    if not file.is_file():
        raise UserError(f"no such file: {file}")
    folder = None if args.data_dir is None else user_path(args.data_dir, "--data_dir")
    if folder is not None and not folder.is_dir():
        raise UserError(f"--data_dir must be the folder of the data, got {args.data_dir!r}")
    if args.metric is not None and args.metric not in metrics.names():
        raise UserError(f"--metric must be one of {', '.join(metrics.names())}; got {args.metric!r}")
    if args.meteor:
        check_meteor()
    if args.task is None:
        if args.split:
            raise UserError("--split is for a file with --task; the file of a run has its split in its name")
        spec, examples = predicted.of_run(file, folder)
    else:
        if folder is None or not args.split:
            raise UserError("--task needs --data_dir and --split, the data's folder and the splits that were predicted")
        spec = tasks.find(args.task)
        examples = spec.examples(folder, args.split, training=False)
    if args.meteor and spec.metric != "caption":
        raise UserError(f"--meteor is for captions, and task {spec.name} is scored by {spec.metric}")
    scores = predicted.scored(file, spec, examples, args.metric)
    if args.meteor:
        scores["meteor"] = 100 * meteor(spec.predictions.matched(file, examples), [one.references for one in examples])
    print(f"{file}: {len(examples):,} examples of {spec.name}")
    for name, value in scores.items():
        print(f"  {name:<12} {value:.4f}")
    return 0
