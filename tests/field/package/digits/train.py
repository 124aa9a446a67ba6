"""Imports the modules beside it as a package's module does."""

import sys

from .model import NAME

print(NAME, sys.argv[1:], flush=True)
