"""Does all that a process can do to outlive its parent: each of these ignores SIGTERM and would go on for an hour."""

import os
import signal
import sys
import time
from collections.abc import Callable


def fork(run: Callable[[], None]) -> int:
    """Run a function in a child."""
    pid = os.fork()
    if pid == 0:
        run()
        os._exit(0)
    return pid


def stay() -> None:
    """Stay."""
    os.write(ready, b"x")
    while True:
        time.sleep(3600)


def detach() -> None:
    """Take a session of its own, and a parent that ends at once: init's child, were it not for the supervisor."""
    os.setsid()
    fork(stay)


def forget() -> None:
    """Detach, close everything, leave the folder, and become a program whose environment says nothing of the job."""
    os.setsid()
    os.chdir("/")
    if os.fork() == 0:
        os.write(ready, b"x")
        os.closerange(0, 100)
        os.execve("/bin/sleep", ["sleep", "3600"], {})
    os._exit(0)


signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as good as all of them inherit
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
heard, ready = os.pipe()
fork(stay)
os.waitpid(fork(detach), 0)
os.waitpid(fork(forget), 0)
for _number in range(3):
    os.read(heard, 1)
print("all there", flush=True)
if sys.argv[1:] == ["leave"]:
    sys.exit()
time.sleep(3600)
