"""A project with its package below src/, which nobody has installed."""

from digits.model import describe

print(describe(), flush=True)
