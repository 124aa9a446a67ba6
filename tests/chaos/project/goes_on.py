"""Prints a numbered line every 10 ms until somebody makes the file `go`: what is lost or repeated on the way shows."""

import itertools
import os
import time

for number in itertools.count():
    print(f"line {number}")
    if os.path.exists("go"):
        break
    time.sleep(0.01)
