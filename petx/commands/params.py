"""Count the parameters that a tuning method trains on a full-size model, without its weights.

The model is built on torch's meta device, so this takes seconds and little memory.

  petx params vlpet --all
  petx params petal --all
"""

import argparse
import importlib
import json
import pkgutil
from typing import Any

from petx.commands import _params

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    methods = parser.add_subparsers(dest="method", required=True, metavar="method", title="methods")
    for name in sorted(info.name for info in pkgutil.iter_modules(_params.__path__)):
        module: Any = importlib.import_module(f"{_params.__name__}.{name}")
        method = methods.add_parser(
            name,
            help=module.__doc__.partition("\n")[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        method.add_argument("--json", action="store_true", help="print JSON")
        module.add_arguments(method)
        method.set_defaults(module=module)


def run(args: argparse.Namespace) -> int:
    rows = args.module.rows(args)
    print(json.dumps(rows, indent=2) if args.json else as_table(rows, args.module.COLUMNS))
    return 0


def as_table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """Rows as aligned text, names to the left and numbers to the right."""
    lines = [list(columns.values())]
    aligned = ["<" if isinstance(rows[0][key], str) else ">" for key in columns]
    for row in rows:
        lines.append([_shown(row[key]) for key in columns])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, aligned, widths, strict=True))
        for line in lines
    )


def _shown(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
