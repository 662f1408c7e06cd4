"""The real child with the emulator as its card: its arguments are a library of the kernels and, for a fake clock, the
seconds that a kernel takes where eager torch takes one."""

import json
import sys

from petx.certify import child, speed, trial
from tests.emulator import Emulator
from tests.emulator.operations import in_place_of_cpu_kernels


def main(library, seconds, descriptor):
    tell = child.teller(int(descriptor))
    request = json.loads(sys.stdin.readline()) | {"device": "cpu"}
    emulator, guarded = Emulator(library), trial.guarded

    def placed(plain, offset):
        emulator.offset = offset  # the emulator copies what it is given, to where it says
        return guarded(plain, offset)

    trial.guarded = placed
    speed.times = lambda stem, dtype, device, say: [[1024, 768, 64, float(seconds), 1.0]]
    with in_place_of_cpu_kernels(emulator):
        return child.serve(request, request["card"], tell)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
