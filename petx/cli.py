"""The command ``petx``: finds its subcommands in :mod:`petx.commands` and imports only the one asked for."""

import argparse
import ast
import difflib
import errno
import importlib
import io
import os
import pkgutil
import sys
from pathlib import Path
from typing import NoReturn

from petx import _rooms, commands
from petx._exit import leave
from petx._quiet import ignore_known_warnings
from petx.errors import UserError
from petx.version import __version__

_FULL = (errno.ENOSPC, errno.EDQUOT)
_OF_THE_MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, *_FULL, errno.ENAMETOOLONG),
    *(errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ESTALE),
}


def command_names() -> list[str]:
    """Names of the modules below :mod:`petx.commands`, sorted, with ``-`` for ``_``."""
    found = [info.name for info in pkgutil.iter_modules(commands.__path__) if not info.name.startswith("_")]
    return sorted(name.replace("_", "-") for name in found)


def help_line(name: str) -> str:
    """First line of a command module's docstring, read without importing the module."""
    for folder in commands.__path__:
        module = name.replace("-", "_")
        for source in (Path(folder, f"{module}.py"), Path(folder, module, "__init__.py")):
            if source.is_file():
                docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
                return _rooms.as_text(docstring.partition("\n")[0])
    return ""


def build_parser(names: list[str]) -> argparse.ArgumentParser:
    """The parser of ``petx`` itself, whose help lists the commands ``names``."""
    width = max(map(len, names), default=0)
    listing = "\n".join(f"  {name:<{width}}  {help_line(name)}" for name in names)
    parser = argparse.ArgumentParser(
        prog="petx",
        usage="petx [-h] [--version] command ...",
        description="Parameter-efficient tuning of vision-language models on fused kernels.",
        epilog=f"commands:\n{listing}\n\n`petx command --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"petx {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def run(argv: list[str] | None = None) -> NoReturn:
    """:func:`main` as a whole process, which ends with its exit code."""
    leave(main(argv))


def main(argv: list[str] | None = None) -> int:
    """Run one command line (default ``sys.argv[1:]``) and return its exit code."""
    for stream in (sys.stdout, sys.stderr):  # a letter that the terminal lacks becomes another, and ends nothing
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):  # the C locale's
            stream.reconfigure(errors="replace")
    names = command_names()
    parser = build_parser(names)
    chosen = parser.parse_args(argv)
    if chosen.command is None:
        parser.print_help()
        return 2
    ignore_known_warnings()
    try:
        code = _run_command(chosen.command, chosen.arguments, names)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where it is told that there was no room
        return code
    except UserError as error:
        print(f"petx: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("petx: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE or (error.filename is None and error.errno not in _FULL):
            raise
        if error.filename is None:  # what was printed has no room where it goes, and must not be tried again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"petx: error: {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
        return 2


def _run_command(name: str, arguments: list[str], names: list[str]) -> int:
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
        raise UserError(f"unknown command {name!r}; {hint}")
    module = importlib.import_module(f"{commands.__name__}.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(
        prog=f"petx {name}",
        description=_rooms.as_text(module.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return module.run(parser.parse_args(arguments))
