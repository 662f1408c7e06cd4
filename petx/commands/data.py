"""Fetch data and pretrained weights into the cache, list or check what there is, compute or pack features of pictures.

``petx data list``, ``petx data get NAME [NAME ...]``, ``petx data check PATH``, which reads every split of every task
that lies in a folder for ``petx train --data_dir``, ``petx data features``, which computes the feature files of
pictures or videos by any vision model of transformers, and ``petx data pack``, which puts them into one file. The cache
is $PETX_CACHE, else petx under $XDG_CACHE_HOME or ~/.cache.
"""

import argparse

from petx.data import cache, packages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="{list,get,check,features,pack}")

    def action(name: str, does: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")

    action("list", "what can be fetched, its size and licence, and whether it is here")
    get = action("get", "fetch into the cache, without dependencies, and check the SHA-256")
    get.add_argument("names", nargs="+", metavar="NAME", help=", ".join(packages.SOURCES))
    check = action("check", "what a data folder holds, lacks, or has wrong: file, entry and field")
    check.add_argument("path", metavar="PATH", help="the folder")
    check.add_argument("--task", metavar="NAME", help="this task alone")
    check.add_argument("--images_dir", "--images-dir", metavar="DIR", help="pictures (default: in PATH)")
    check.add_argument("--features_dir", "--features-dir", metavar="DIR", help="feature files (default: in PATH)")
    check.add_argument("--feature_width", "--feature-width", type=int, metavar="N", help="default: 2048, videos 512")
    check.add_argument("--visual_tokens", "--visual-tokens", type=int, metavar="N", help="default: 36, videos 64")
    features = action("features", "compute feature files; what is there already is left as it is")
    features.add_argument("--model", required=True, metavar="NAME", help="a vision model, folder or hub name")
    source = features.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", metavar="DIR", help="pictures: IMAGE.h5 of each, its grid of patches")
    source.add_argument("--videos", metavar="DIR", help="DIR/VIDEO/FRAME.jpg: VIDEO.npz of each, a vector a frame")
    features.add_argument("--output", required=True, metavar="DIR", help="folder of the feature files")
    features.add_argument("--batch_size", "--batch-size", type=int, default=32, metavar="N", help="default: 32")
    features.add_argument("--processes", type=int, default=1, metavar="N", help="at a time, a GPU each (default: 1)")
    pack = action("pack", "put a folder's feature files into one file, which is read much faster")
    pack.add_argument("path", metavar="PATH", help="the folder of the .h5 or .npz files; they are left as they are")
    pack.add_argument("--visual_tokens", "--visual-tokens", type=int, metavar="N", help="default: 36, videos 64")
    pack.add_argument("--dtype", default="float32", help="float32 (default), or float16, half the size and rounded")


def run(args: argparse.Namespace) -> int:
    if args.action == "check":
        return _check(args)
    if args.action == "features":
        return _features(args)
    if args.action == "pack":
        return _pack(args)
    if args.action == "list":
        print(f"cache: {cache.cache_dir()}")
        for source in packages.SOURCES.values():
            folders = packages.locate(source.name)
            place = "missing" if folders is None else ", ".join(str(folder) for folder in folders.values())
            print(f"\n{source.name}: {source.holds}")
            wheels = ", ".join(f"{wheel.distribution} {wheel.version}" for wheel in source.wheels)
            print(f"  packages    {wheels}\n  size        {source.size}\n  licence     {source.licence}")
            print(f"  as an extra {source.extra}\n  here        {place}")
        return 0
    for name in args.names:  # a wrong name fails before anything is fetched
        packages.source(name)
    for name in args.names:
        for folder in packages.get(name):
            print(f"{name}: {folder}")
    return 0


def _features(args: argparse.Namespace) -> int:
    from petx.data import extraction
    from petx.errors import UserError
    from petx.files import require_writable, user_name, user_path

    videos = args.videos is not None
    if args.batch_size < 1:
        raise UserError(f"--batch_size must be at least 1, got {args.batch_size}")
    extraction.check_machine(args.processes, videos)
    pictures = user_path(args.videos if videos else args.images, "--videos" if videos else "--images")
    model = user_name(args.model, "--model")
    output = user_path(args.output, "--output")
    todo = extraction.plan(model, pictures, output, videos=videos, batch_size=args.batch_size)
    require_writable(output, "--output")
    missing = len(todo.missing())
    print(f"{len(todo.files):,} {'videos' if videos else 'images'}, {len(todo.files) - missing:,} there already")
    extraction.run(todo, processes=args.processes)
    print(f"features {extraction.shape(todo)} each, such as {next(iter(todo.files))}'s, in {output}")
    return 0


def _pack(args: argparse.Namespace) -> int:
    from petx.data import packing
    from petx.files import require_writable, user_path

    folder = user_path(args.path, "PATH")
    require_writable(folder, "PATH")
    done = packing.pack(folder, visual_tokens=args.visual_tokens, dtype=args.dtype)
    print(
        f"{done.files:,} files of {folder} are in {done.path}: {done.size:,} bytes, [{done.tokens}, {done.width}] each"
    )
    return 0


def _check(args: argparse.Namespace) -> int:
    """1 if something is wrong or nothing is there."""
    from petx import tasks
    from petx.errors import UserError
    from petx.files import require_readable, user_path
    from petx.tasks import _checking

    folder = user_path(args.path, "PATH")
    if not folder.is_dir():
        raise UserError(f"PATH must be the folder of the data, got {args.path!r}")
    require_readable(folder, "PATH")
    for name in ("feature_width", "visual_tokens"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}")
    widths = (args.feature_width or 2048, args.feature_width or 512)
    counts = (args.visual_tokens or 36, args.visual_tokens or 64)
    named = dict(images_dir=args.images_dir, features_dir=args.features_dir)
    places = {name: None if path is None else str(user_path(path, f"--{name}")) for name, path in named.items()}
    looking = _checking.Looking(**places, widths=widths, tokens=counts)
    specs = _checking.all_tasks() if args.task is None else [tasks.find(args.task)]
    problems = splits = 0
    for spec in specs:
        found = _checking.check(folder, spec, looking)
        print(f"\n{spec.name}: {spec.title}")
        if not found:
            print(f"  nothing of {', '.join(path for path, split in spec.files.items() if split)}")
        for one in found:
            print(f"  {one.split}: {one.file}")
            for text in one.lines:
                print(f"    {text}")
            for text in one.problems:
                print(f"    wrong: {text}")
            problems += len(one.problems)
        splits += len(found)
    print(f"\n{splits} splits, {problems or 'no'} problem{'' if problems == 1 else 's'}")
    return 1 if problems or not splits else 0
