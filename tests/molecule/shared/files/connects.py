# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints, a line each, to which of the targets ("ADDRESS PORT") a TCP connection can be made."""

import socket
import sys
from concurrent.futures import ThreadPoolExecutor

SECONDS = 1.5  # more than one SYN


def connects(target: str) -> bool:
    address, port = target.split()
    try:
        socket.create_connection((address, int(port)), SECONDS).close()
    except OSError:
        return False
    return True


with ThreadPoolExecutor(len(sys.argv)) as threads:
    targets = sys.argv[1:]
    print("\n".join(target for target, does in zip(targets, threads.map(connects, targets)) if does))
