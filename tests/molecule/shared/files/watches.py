# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connects to port 22 of the addresses given until a file appears; prints how often, and fails if once in vain."""

import socket
import sys
import time
from pathlib import Path

SECONDS = 0.5  # each connection costs the node a process

end, *addresses = sys.argv[1:]
connections, failures = 0, []
while not Path(end).exists():
    for address in addresses:
        connections += 1
        try:
            socket.create_connection((address, 22), timeout=3).close()  # a packet lost under load is sent again
        except OSError as error:
            failures.append(f"{address}: {error}")
    time.sleep(SECONDS)
print(f"{connections} connections, {len(failures)} in vain {failures[:5]}")
sys.exit(bool(failures))
