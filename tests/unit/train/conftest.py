# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""train/ is a folder of scripts: what is tested is imported from there, in this process and in those it starts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "train"))
