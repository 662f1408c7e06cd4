"""Train by a recipe: ``petx train vlpet`` or ``petx train petal``; each recipe has its own --help."""

import argparse
import importlib

from petx.errors import UserError
from petx.train import METHODS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help=", ".join(METHODS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="settings of the recipe: petx train RECIPE --help")


def run(args: argparse.Namespace) -> int:
    if args.recipe not in METHODS:
        raise UserError(f"unknown recipe {args.recipe!r}; there are: {', '.join(METHODS)}")
    return importlib.import_module(f"petx.train.{args.recipe}").main(args.arguments)
