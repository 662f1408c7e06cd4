"""A child that certifies nothing and does what its argument says; it needs neither torch nor a GPU."""

import json
import os
import signal
import sys
import time

how, *more, descriptor = sys.argv[1:]
request = json.loads(sys.stdin.readline())
answers = os.fdopen(int(descriptor), "w", buffering=1)


def tell(**answer):
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def found(stem, dtype, verdict="right", said=None, petx=1e-3):
    worst = {"case": "odd", "name": "dx", "error": 1e-7, "bound": 1e-6}
    times = [] if verdict != "right" else [[256, 768, 64, 2e-3, 1e-3], [4096, 768, 64, petx, 2e-3]]
    finding = {"verdict": verdict, "said": said, "cases": 9, "worst": worst, "times": times}
    tell(event="found", finding=finding, stem=stem, dtype=dtype)


if how == "no-memory":
    tell(event="unknown", said="OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 MiB")
    sys.exit(0)
if how == "exclusive":
    tell(event="unknown", said="AcceleratorError: CUDA-capable device(s) is/are busy or unavailable")
    sys.exit(0)
if how == "no-torch":
    print("Traceback\nModuleNotFoundError: No module named 'torch'", file=sys.stderr)
    sys.exit(1)
if how == "never-ready":
    time.sleep(600)
if how == "slow":
    time.sleep(float(more[0]))
if how == "garbage":
    answers.write("Segmentation fault? no, a word of some other library\n")
    sys.exit(0)
if how == "half":
    answers.write('{"event": "rea')
    answers.flush()
    sys.exit(0)
if how == "other-card":
    tell(event="unknown", said="the process saw another card, Tesla T4")
    sys.exit(0)

tell(event="ready", card=request["card"])
if how == "says-nothing":
    tell(event="end")
    sys.exit(0)
if how == "unasked":
    tell(event="case", stem="softmax", dtype="float32", what="softmax-wide")
    os.kill(os.getpid(), signal.SIGSEGV)
for stem, dtype in request["work"]:
    tell(event="case", stem=stem, dtype=dtype, what=f"{stem}-odd")
    if (stem, dtype) == ("mode_update", "bfloat16"):
        if how == "crash":
            print("an illegal memory access was encountered", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            time.sleep(600)
        if how == "raises":
            tell(event="raised", said="RuntimeError: unspecified launch failure", stem=stem, dtype=dtype)
            sys.exit(7)
        if how == "no-memory-later":
            tell(event="unknown", said="OutOfMemoryError: CUDA out of memory")
            sys.exit(0)
        if how == "wrong":
            found(stem, dtype, "wrong", "odd: dx: error 3.10e-01, torch's own 2.00e-03")
            continue
    found(stem, dtype)
tell(event="end")
