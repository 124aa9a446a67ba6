# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests/bench/follow.py launches: rank 0 prints so many lines a second, or every rank so many bytes at once."""

import argparse
import os
import time

LINE = b"%08d step loss 0.123456 accuracy 0.987654 learning rate 0.001000 samples per second 12345.67\n"
BLOCK_BYTES = 10**6

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--lines", type=int, default=0, help="a second, on rank 0")
parser.add_argument("--seconds", type=float, default=0, help="for how long")
parser.add_argument("--bytes", type=int, default=0, help="on every rank")
options = parser.parse_args()
rank = int(os.environ["NODE_RANK"])

begin = time.monotonic()
number = 0
while (passed := time.monotonic() - begin) < options.seconds:
    if rank or not options.lines:
        time.sleep(options.seconds - passed)
        continue
    os.write(1, LINE % number)
    number += 1
    time.sleep(max(begin + number / options.lines - time.monotonic(), 0))

rest = b"".join(LINE % number for number in range(BLOCK_BYTES // len(LINE) + 1))
for start in range(0, options.bytes, BLOCK_BYTES):  # no two blocks are alike
    block = (b"rank %d from byte %d on\n" % (rank, start) + rest)[: min(BLOCK_BYTES, options.bytes - start)]
    while block:
        block = block[os.write(1, block) :]
