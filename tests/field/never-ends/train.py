"""Is done, but a handler waits at its exit for something that never comes."""

import atexit
import threading

atexit.register(threading.Event().wait)
print("trained", flush=True)
