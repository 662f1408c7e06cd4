"""Certify a GPU: whether the CUDA kernels are right on it, and from which sizes they are faster than eager torch.

What is found is kept in the cache folder and decides from then on which kernels run on such a card. It happens by
itself at a card's first use; this command shows it, and tries again.

Exit code: 0 all kernels are right, 1 one is wrong, 2 a mistake in the command, 3 it could not be found out.
"""

import argparse
import json
import sys

from petx.certify import api, choice, table
from petx.certify import certificate as file
from petx.certify.certificate import RIGHT, WRONG
from petx.errors import UserError
from petx.files import require_writable, user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda:0", help="the card, as torch numbers it (default: cuda:0)")
    parser.add_argument("--operations", nargs="+", metavar="NAME", help="only these; a check, whose result is not kept")
    parser.add_argument("--untimed", action="store_true", help="only whether they are right; not kept either")
    parser.add_argument("--output", metavar="FILE", help="keep it there, for PETX_CERTIFICATE=FILE")
    parser.add_argument("--json", action="store_true", help="print the certificate")


def run(args: argparse.Namespace) -> int:
    card, wanted = api.card_of(args.device), api.stems(args.operations)
    partial = args.operations is not None or args.untimed
    if args.output is not None and partial:
        raise UserError("output: a part is no certificate; leave out --operations and --untimed, or --output")
    output = None if args.output is None else user_path(args.output, "output")
    target = output or file.path_of(file.facts_of(card))
    if output is not None:
        require_writable(output.absolute().parent, "output")
    print(f"Certifying {card} ...", file=sys.stderr, flush=True)
    found, unknown = api.examined(card, wanted, timed=not args.untimed)
    if unknown is None and not partial:
        try:
            file.write(found, target)
        except OSError as error:
            print(f"petx: it cannot be kept at {target}: {error.strerror or error}", file=sys.stderr)
        choice.forget(card.index)
    print(json.dumps(found.as_json(), indent=2) if args.json else table.of(found))
    if not args.json and found.path is not None:
        print(f"\nKept in {found.path}")
    verdicts = {one.verdict for by in found.findings.values() for one in by.values()}
    if WRONG in verdicts:
        return 1
    if unknown is not None:
        print(f"petx: {card} could not be certified: {unknown}", file=sys.stderr)
        return 3
    return 0 if verdicts == {RIGHT} else 3
