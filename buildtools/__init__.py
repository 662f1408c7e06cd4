"""What setup.py does, in three steps: find torch, decide about CUDA, compile."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def stop(message):
    """End the build with a message and no traceback."""
    raise SystemExit(f"petx: {message}")
