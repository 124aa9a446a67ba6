"""Prints a numbered line every 10 ms, argv[1] of them: what is lost or repeated on the way shows."""

import sys
import time

for number in range(int(sys.argv[1])):
    print(f"line {number}")
    time.sleep(0.01)
