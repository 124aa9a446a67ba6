"""Connects to port 22 of the addresses given until a file appears; prints how often, and fails if once in vain."""

import socket
import sys
import time
from pathlib import Path

end, *addresses = sys.argv[1:]
connections, failures = 0, []
while not Path(end).exists():
    for address in addresses:
        connections += 1
        try:
            socket.create_connection((address, 22), timeout=1).close()
        except OSError as error:
            failures.append(f"{address}: {error}")
    time.sleep(0.1)
print(f"{connections} connections, {len(failures)} in vain {failures[:5]}")
sys.exit(bool(failures))
