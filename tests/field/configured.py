"""Makes its Trainer from a configuration, and names it only where it says what it gets."""

from importlib import import_module

from pytorch_lightning import Trainer


def build(path: str) -> Trainer:
    """Return an object of the class at `path`."""
    module, _dot, name = path.rpartition(".")
    return getattr(import_module(module), name)()
