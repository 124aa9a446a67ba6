"""LightningCLI: the Trainer is made from the command line, and each of its arguments is given."""

from lightning.pytorch.cli import LightningCLI
from trainer import Model

if __name__ == "__main__":
    LightningCLI(Model)
