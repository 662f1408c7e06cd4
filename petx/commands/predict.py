"""Answer a question about an image: ``petx predict IMAGE QUESTION --adapter DIR``; also draws both as a PNG."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="image file")
    parser.add_argument("question", metavar="QUESTION", help='such as "is there a red shape?"')
    parser.add_argument("--adapter", required=True, metavar="DIR", help="folder 'tuned' written by petx train")
    parser.add_argument("--num_beams", "--num-beams", type=int, default=1, metavar="N", help="beams (default: 1)")
    parser.add_argument("--output", metavar="FILE", help="the PNG (default: IMAGE's name with -answer.png, here)")


def run(args: argparse.Namespace) -> int:
    from petx.data.pictures import read_picture
    from petx.errors import UserError
    from petx.files import require_writable, user_path
    from petx.options import BEAMS, checked_value
    from petx.train import answering, tuned

    image, adapter = user_path(args.image, "IMAGE"), user_path(args.adapter, "--adapter")
    output = user_path(f"{image.stem}-answer.png" if args.output is None else args.output, "--output")
    if output.is_dir():
        raise UserError(f"--output must be a file, got the folder {args.output or output}")
    if output.suffix.lower() not in ("", ".png"):
        raise UserError(f"--output must end in .png, the format of what is drawn, got {args.output}")
    if output.resolve() == image.resolve():
        raise UserError(f"--output would overwrite the image {args.image}")
    checked_value("--num_beams", args.num_beams, int, BEAMS)
    question = answering.asked(args.question, "QUESTION")
    read_picture(image)  # a broken image is told before anything is loaded
    require_writable(output.parent, "--output")
    loaded = tuned.load(adapter)
    answer = answering.answer(loaded, str(image), question, args.num_beams)
    if answer.unknown:
        print(f"note: the model does not know {', '.join(map(repr, answer.unknown))}")
    print(f"{answer.text}   (probability {answer.probability:.3f})", flush=True)
    answering.draw(image, question, answer, output)
    print(f"drawn in {output}")
    return 0
