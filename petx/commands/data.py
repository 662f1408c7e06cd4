"""Fetch data and pretrained weights into the cache, or list what there is.

``petx data list`` and ``petx data get NAME [NAME ...]``. The cache is $PETX_CACHE, else petx under $XDG_CACHE_HOME
or ~/.cache.
"""

import argparse

from petx.data import cache, packages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="{list,get}")
    actions.add_parser("list", help="what can be fetched, its size and licence, and whether it is here")
    get = actions.add_parser("get", help="fetch into the cache, without dependencies, and check the SHA-256")
    get.add_argument("names", nargs="+", metavar="NAME", help=", ".join(packages.SOURCES))


def run(args: argparse.Namespace) -> int:
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
