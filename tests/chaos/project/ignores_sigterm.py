"""Ignores SIGTERM, and would go on for an hour."""

import signal
import time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf")
time.sleep(3600)
