# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Ask NVIDIA's driver about the GPUs."""

from __future__ import annotations

import re
import subprocess
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.machine import count_gpus
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.run_program import LONGEST_LINE
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import Document, last_line

SMI = "nvidia-smi"
SMI_SECONDS = 20
"""A driver that is broken lets nvidia-smi wait for ever."""
SLOWDOWNS = ("hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake_slowdown")
SMI_FIELDS = (
    *("index", "name", "driver_version", "memory.total", "memory.used"),
    *("ecc.errors.uncorrected.volatile.total", "retired_pages.pending", "remapped_rows.pending"),
    *(f"clocks_event_reasons.{reason}" for reason in SLOWDOWNS),
    *(f"clocks_throttle_reasons.{reason}" for reason in SLOWDOWNS),
)
"""What is asked for; drivers before 535 do not know the event reasons, later ones may forget the throttle reasons."""


def gpus() -> dict[str, Any]:
    """Return what the driver knows of the GPUs.

    Returns:
        count (as the kernel has them), fields (asked for and known), csv (nvidia-smi's answer, a line for each GPU, or
        "") and problem (why nvidia-smi gave none, or "").
    """
    fields = list(SMI_FIELDS)
    while True:
        answer: dict[str, Any] = {"count": count_gpus(), "fields": fields, "csv": "", "problem": ""}
        command = [SMI, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        try:
            asked = subprocess.run(  # pylint: disable=ansible-bad-function
                command, capture_output=True, text=True, errors="replace", timeout=SMI_SECONDS, check=False
            )
        except FileNotFoundError:
            return {**answer, "problem": "there is no nvidia-smi" if answer["count"] else ""}
        except subprocess.TimeoutExpired:
            return {**answer, "problem": f"nvidia-smi gave no answer within {SMI_SECONDS} s"}
        except OSError as error:
            return {**answer, "problem": f"nvidia-smi does not run: {error_text(error)}"}
        if asked.returncode == 0:
            return {**answer, "csv": Document(asked.stdout)}
        unknown = re.search(r'Field "([^"]+)" is not a valid field', asked.stdout + asked.stderr)
        if not unknown or unknown[1] not in fields:
            error_line = last_line(asked.stdout + asked.stderr, LONGEST_LINE) or f"exit code {asked.returncode}"
            return {**answer, "problem": f"nvidia-smi fails: {error_line}"}
        fields.remove(unknown[1])
