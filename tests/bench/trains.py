# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests/bench/recovery.py launches that goes on by itself: a training with the Trainer beside it."""

from pytorch_lightning import Trainer

Trainer().fit()
