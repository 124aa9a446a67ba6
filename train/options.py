# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: MIT
"""The command line of train.py. It has nothing about nodes and addresses: those are the launcher's."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from digits import TRAIN_SIZE


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number from low to high, both included."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            limits = f"from {low} to {high}" if high is not None else f"of at least {low}"
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number {limits}")
        return int(text)

    return parse


def learning_rate(text: str) -> float:
    """An argparse type: a finite number above 0."""
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return rate


def device_count(text: str) -> int | str:
    """An argparse type: 'auto', or how many devices."""
    return text if text == "auto" else whole_number(1)(text)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, sys.argv unless arguments are given; a wrong one ends the program with a sentence."""
    parser = argparse.ArgumentParser(
        description="Train a small network on handwritten digits.",
        usage="%(prog)s [options]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--max-epochs", type=whole_number(1), default=20, help="counted from the first run")
    parser.add_argument(
        "--batch-size", type=whole_number(1, TRAIN_SIZE), default=96, help="samples per step, all ranks together"
    )
    parser.add_argument("--lr", type=learning_rate, default=5e-3, help="learning rate; a resumed run keeps its own")
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, help="of the weights and the order")
    parser.add_argument("--accelerator", choices=["auto", "cpu", "gpu"], default="auto", help="what to train on")
    parser.add_argument("--devices", type=device_count, default="auto", help="ranks per node, the same on every node")
    parser.add_argument("--output-dir", type=Path, default=Path(), help="where checkpoints/ and metrics/ are")
    return parser.parse_args(arguments)
