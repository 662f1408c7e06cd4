"""Make a published VL-PET checkpoint a tuned model of petx: ``petx import-vlpet FILE --output DIR``.

FILE is the .pth of the released code, of BART-base at any granularity. DIR gets the host and, beside it, the adapter,
as petx train writes them: petx eval and peft read it, and what was trained on stands in its settings.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the checkpoint, a state_dict under the released names")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder, for host and adapter")
    parser.add_argument(
        "--host",
        default="facebook/bart-base",
        metavar="HOST",
        help="the BART it was tuned from, folder or hub name: sizes and tokenizer (default: facebook/bart-base)",
    )
    parser.add_argument(
        "--data_dir", "--data-dir", default="datasets", metavar="DIR", help="where its data lie (default: datasets)"
    )


def run(args: argparse.Namespace) -> int:
    from petx.files import require_writable, user_name, user_path
    from petx.train.importing import import_vlpet

    output = user_path(args.output, "--output")
    require_writable(output.parent, "--output")
    host = user_name(args.host, "--host")
    for line in import_vlpet(user_path(args.file, "FILE"), host, output, args.data_dir):
        print(line)
    print(f"host     {output / 'host'}\nadapter  {output / 'tuned'}")
    return 0
