"""Ends without any of Python's cleaning up, as some libraries do where they give up."""

import os

print("the licence server does not answer", flush=True)
os._exit(3)
