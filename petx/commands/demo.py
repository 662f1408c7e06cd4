"""Serve a page that answers questions on images: frozen model and a run's tuned ones beside it: ``petx demo RUN``."""

import argparse
import socket


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="output folder of petx train")
    parser.add_argument("--arms", metavar="A,B", help="which tuned models (default: method, LoRA and full tuning)")
    parser.add_argument("--num_beams", "--num-beams", type=int, default=1, metavar="N", help="beams (default: 1)")
    parser.add_argument("--port", type=int, default=7860, help="of this machine alone, 127.0.0.1 (default: 7860)")


def run(args: argparse.Namespace) -> int:
    from petx.errors import UserError
    from petx.files import user_path
    from petx.options import BEAMS, checked_value
    from petx.train import demo

    checked_value("--num_beams", args.num_beams, int, BEAMS)
    if not 1 <= args.port <= 65535:
        raise UserError(f"--port must be in [1, 65535], got {args.port}")
    arms = None if args.arms is None else [arm for arm in args.arms.split(",") if arm]
    if arms == []:
        raise UserError("--arms must name at least one, got none")
    try:
        with socket.create_server(("127.0.0.1", args.port)):
            pass
    except OSError as error:
        raise UserError(f"--port {args.port} cannot be served: {error.strerror}; choose another") from error
    demo.library()  # told before anything is loaded
    models = demo.rows(user_path(args.run, "RUN"), arms)
    print(
        f"{', '.join(row.title for row in models)}; a page at http://127.0.0.1:{args.port}, Ctrl-C ends it", flush=True
    )
    demo.page(models, args.num_beams).launch(
        server_name="127.0.0.1", server_port=args.port, share=False, inbrowser=False, quiet=True
    )
    return 0
