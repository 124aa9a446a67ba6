# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Raise the number of files that this process may open, for so many nodes."""

from __future__ import annotations

import os
import resource

FILES_EACH = 8
"""What a connection takes while it is made: both ends of three pipes and of one that reports whether ssh started."""
SPARE_FILES = 16
"""What the engine opens besides."""


def allow_files_for_nodes(wanted: int) -> tuple[int, int]:
    """Have this process be allowed the files that asking ``wanted`` nodes at once takes, as far as that is possible.

    Returns:
        How many nodes it may ask at once, at least one, and how many files in all ``wanted`` nodes take.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        taken = len(os.listdir("/dev/fd")) + SPARE_FILES
    except OSError:  # all are taken
        taken = max(0, soft) + SPARE_FILES
    needed = taken + FILES_EACH * wanted
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = wanted if soft == resource.RLIM_INFINITY else (soft - taken) // FILES_EACH
    return max(1, min(wanted, allowed)), needed


def too_few_files(needed: int) -> str:
    """Return the sentence for a limit that is too low."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"this machine cannot open enough files: a program may have {hard} here, and these nodes take {needed}; raise "
        f"that with ulimit -n {needed}, or in /etc/security/limits.conf"
    )
