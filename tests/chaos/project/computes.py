"""Computes without a word until somebody makes the file `go`: as long as an epoch may take."""

import os
import time

print("ready", flush=True)
steps = 0
while not os.path.exists("go"):
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        steps += 1
print("done", steps > 0)
