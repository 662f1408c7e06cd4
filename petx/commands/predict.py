"""Answer a question about an image: ``petx predict IMAGE QUESTION --adapter DIR``; also draws both as a PNG."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("question", metavar="QUESTION", help='such as "is there a red shape?"')
    parser.add_argument("--adapter", required=True, metavar="DIR", help="folder 'tuned' written by petx train")
    parser.add_argument("--num_beams", "--num-beams", type=int, default=1, metavar="N", help="beams (default: 1)")
    parser.add_argument("--output", metavar="FILE", help="the PNG (default: IMAGE's name with -answer.png, here)")


def run(args: argparse.Namespace) -> int:
    from petx.data.features import read_image
    from petx.errors import UserError
    from petx.files import require_writable
    from petx.train import answering, tuned

    output = Path(args.output or f"{Path(args.image).stem}-answer.png")
    if output.resolve() == Path(args.image).resolve():
        raise UserError(f"--output would overwrite the image {args.image}")
    if args.num_beams < 1:
        raise UserError(f"--num_beams must be at least 1, got {args.num_beams}")
    if not args.question.strip():
        raise UserError("QUESTION must not be empty")
    loaded = tuned.load(Path(args.adapter))
    read_image(args.image, loaded.settings.image_size)  # a broken image is told before the encoder is loaded
    require_writable(output.parent, "--output")
    answer = answering.answer(loaded, args.image, args.question, args.num_beams)
    if answer.unknown:
        print(f"note: the model does not know {', '.join(map(repr, answer.unknown))}")
    answering.draw(args.image, args.question, answer, output)
    print(f"{answer.text}   (probability {answer.probability:.3f})")
    print(f"drawn in {output}")
    return 0
