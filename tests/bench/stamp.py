# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests/bench/launch.py launches: says when it ran, in the nanoseconds of the clock that all containers share."""

import socket
import time
from pathlib import Path

now = time.time_ns()
Path("/stamps", socket.gethostname()).write_text(str(now))
