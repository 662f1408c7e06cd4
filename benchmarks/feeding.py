"""Whether reading feature files keeps a consumer fed: ``python -m benchmarks.feeding``.

Writes feature files as VL-PET's are, ``[36, 2048]`` float32 in h5, with ``--packed`` puts them into one file as ``petx
data pack`` does, and reads batches of them by the data loader of ``petx train`` while a stand-in for the model sleeps.
Prints how long the consumer waits beside its own time, the CPU time that a worker takes for an image, which a busy
machine does not change much and which says how many cores such a step needs, and the memory of all processes, which is
to depend on a batch and not on the number of files (``--images`` twice as large says so).
"""

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader

from petx import hosts
from petx.data.batches import RoundRobinBatches, TaskMixture
from petx.data.examples import Example
from petx.data.packed import DTYPES
from petx.data.packing import pack
from petx.data.stores import H5Features
from petx.data.task import Task
from petx.data.tokenizers import word_tokenizer

TOKENS, WIDTH = 36, 2048


def write(folder: Path, images: int) -> None:
    draw = np.random.default_rng(0)
    for i in range(images):
        with h5py.File(folder / f"{i}.h5", "w") as file:
            file[f"{i}/features"] = draw.standard_normal((TOKENS, WIDTH), np.float32)


def loader(folder: Path, images: int, batch: int, workers: int, steps: int) -> DataLoader:
    from transformers import BartConfig

    tokenizer = word_tokenizer(["vqa: what color is the shape? red"], visual_tokens=TOKENS)
    examples = [Example("what color is the shape?", (str(i),), (("red", 1.0),)) for i in range(images)]
    store = H5Features(folder, WIDTH, TOKENS)
    task = Task("vqa", examples, store, tokenizer, prompt="vqa: ", max_text=20, max_target=10, metric="vqa")
    host = hosts.find("vl_bart")(BartConfig(decoder_start_token_id=0), tokenizer)
    batches = RoundRobinBatches([images], [batch], steps=steps, seed=0)
    more: dict[str, Any] = {"prefetch_factor": 2} if workers else {}
    return DataLoader(
        TaskMixture([task]), batch_sampler=batches, collate_fn=Timed(host.batch), num_workers=workers, **more
    )


class Timed:
    """A collate function that notes in the batch what CPU time its process took since the batch before."""

    def __init__(self, collate: Callable[[list], dict]) -> None:
        self.collate, self.before = collate, math.nan

    def __call__(self, items: list) -> dict[str, Any]:
        batch, now = self.collate(items), time.process_time()
        batch["cpu"], self.before = now - self.before, now  # the first of a process is not a number
        return batch


def memory() -> int:
    """Bytes that this process and its workers hold, shared pages counted once (Linux)."""
    own = os.getpid()
    family = [own, *(int(one) for one in Path(f"/proc/{own}/task/{own}/children").read_text().split())]
    total = 0
    for process in family:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += 1024 * int(line.split()[1])
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--packed", choices=DTYPES, help="read them from one file of this type")
    parser.add_argument("--consumer", type=float, default=50.0, help="milliseconds of a step without reading")
    args = parser.parse_args()
    if args.steps < args.workers + 2:
        parser.error(f"--steps must be at least {args.workers + 2}: the first of each worker is not counted")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), args.images)
        if args.packed:
            pack(Path(name), visual_tokens=TOKENS, dtype=args.packed)
        waits, costs, held, begun = [], [], 0, time.perf_counter()
        for batch in loader(Path(name), args.images, args.batch, args.workers, args.steps):
            waits.append(time.perf_counter() - begun)
            costs.append(batch["cpu"])
            time.sleep(args.consumer / 1e3)
            held = memory() if len(waits) == args.steps // 2 else held  # half way: batches wait to be read
            begun = time.perf_counter()
    cost = statistics.median(one for one in costs if not math.isnan(one)) / args.batch
    first, *waits = waits
    bytes_read = (2 if args.packed == "float16" else 4) * TOKENS * WIDTH * args.batch
    wait = statistics.median(waits)
    stored = f"{args.images} {f'files packed as {args.packed}' if args.packed else 'files'}"
    print(f"{args.batch} images a step, {args.workers} workers, {os.cpu_count()} cores, {stored}")
    print(f"first batch after {1e3 * first:.0f} ms; then the consumer waits {1e3 * wait:.1f} ms beside its")
    print(
        f"{args.consumer:.0f} ms (median of {len(waits)}; {bytes_read / (wait + args.consumer / 1e3) / 1e9:.2f} GB/s)"
    )
    cores = cost * args.batch / (args.consumer / 1e3)
    print(f"CPU time of reading an image: {1e3 * cost:.2f} ms, so that such a step takes {cores:.1f} cores")
    print(f"memory of all processes: {held / 2**20:.0f} MiB; a batch is {bytes_read / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
