# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""The environment tried as a job would use it, and what NVIDIA's driver says of the GPUs."""

from __future__ import annotations

import os
import re
import subprocess

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.limits import Document
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.node import User, count_gpus
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.processes import how_it_ended
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.programs import (
    LONGEST_LINE,
    Program,
    last_line,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Refusal, said
from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.records import is_count, is_flag, is_text

TYPE_CHECKING = False
if TYPE_CHECKING:  # the typing module would cost a twentieth of the agent's start
    from collections.abc import Callable
    from typing import Any

    from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import Request

# Runs in the environment, as the job's user. What modules print while they are imported goes to standard error. Each
# line of its output is a JSON object, written at once: what is being imported may end this Python.
TRIAL = """\
import importlib, json, os, platform, sys
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
longest = int(sys.argv[2])
def tell(**more):
    print(json.dumps(more), file=out, flush=True)
def attempt(module, name=""):
    label = module + "." + name if name else module
    tell(importing=label)
    try:
        there = importlib.import_module(module)
        if name and not hasattr(there, name):
            importlib.import_module(module + "." + name)
        return there
    except BaseException as error:
        words = str(error).strip().splitlines()
        tell(failed={label: (type(error).__name__ + (": " + words[-1] if words else ""))[:longest]})
tell(python=platform.python_version())
torch = attempt("torch")
if torch:
    tell(torch=torch.__version__, cuda=torch.version.cuda)
    tell(devices=torch.cuda.device_count(), usable=torch.cuda.is_available())
    if torch.version.cuda and torch.distributed.is_nccl_available():
        tell(nccl=".".join(map(str, torch.cuda.nccl.version())))
for module, name in json.loads(sys.argv[1]):
    attempt(module, name)
tell(importing=None)
"""
TOLD: dict[str, Callable[[object], bool]] = {
    "python": is_text,
    **dict.fromkeys(("torch", "cuda", "nccl", "importing"), lambda value: value is None or is_text(value)),
    "devices": lambda value: is_count(value) and isinstance(value, int) and value >= 0,
    "usable": is_flag,
    "failed": lambda value: isinstance(value, dict) and all(map(is_text, (*value, *value.values()))),
}
"""What TRIAL may tell; what it imports could write there too."""
MOST_BYTES = 2**20
"""Of what it tells, no more is read: it has said something else then."""
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


def try_environment(request: Request) -> dict[str, Any]:
    """Import torch and what a script imports, with the environment's Python, as a job's user, in a job's surroundings.

    Returns:
        python, torch, cuda and nccl (versions; None where there is none), devices (GPUs that torch sees), usable
        (whether it can use them), failed (modules and why; the one that ends or stops Python is the last that is
        tried); or a problem.
    """
    import json

    python = os.path.join(request["directory"], "env", "bin", "python")
    try:
        os.stat(os.path.dirname(python))
    except PermissionError:
        pass  # it may be there: to start it tells
    except OSError:
        return {"problem": f"has no environment: there is no {python}; run: ansible-playbook setup.yml"}
    remedy = "remove envs in the cluster_dir there, and run: ansible-playbook setup.yml"
    output = os.memfd_create("output")  # a pipe would stay open as long as anything that it has started lives
    try:
        user = User(request["user"])
        arguments = ["-c", TRIAL, json.dumps(request["imports"]), str(LONGEST_LINE)]
        program = Program(request, user, python, arguments, subprocess.DEVNULL, output)
        in_time = program.wait(request["seconds"])
        code, words = program.end()
        found = _told(output)
        importing = found.pop("importing")
        if importing not in ("torch", None):
            ended = how_it_ended(code) if code < 0 else f"ended Python with exit code {code}"
            late = f"did not finish within the {request['seconds']:.0f} s that all imports have together"
            found["failed"][importing] = ended if in_time else late
            return found
        if not in_time:
            return {
                "problem": f"did not finish importing torch and what the script imports within {request['seconds']:.0f}"
                " s; look at the load and the disk there"
            }
        if code == 0 and "python" in found and importing is None:
            return found
        why = words or how_it_ended(code)
        return {"problem": f"has an environment that does not work for {user.name}: {why}; {remedy}"}
    except Refusal as refusal:
        return {"problem": str(refusal)}
    except PermissionError:
        return {
            "problem": f"has an environment that {user.name} may not use: {python} or a folder above it is closed to "
            f"that account; chmod it, or {remedy}"
        }
    except (OSError, ValueError, RecursionError) as error:
        return {"problem": f"has an environment that does not work: {said(error)}; {remedy}"}
    finally:
        os.close(output)


def _told(output: int) -> dict[str, Any]:
    """Return what TRIAL has told so far, and in importing what it was at: None if nothing.

    Raises:
        ValueError: that is not TRIAL's.
    """
    import json

    failed: dict[str, str] = {}
    found = {"importing": None, "torch": None, "cuda": None, "nccl": None, "devices": 0, "usable": False}
    for line in os.pread(output, MOST_BYTES, 0).splitlines():
        told = json.loads(line)
        if not (isinstance(told, dict) and all(name in TOLD and TOLD[name](value) for name, value in told.items())):
            raise ValueError(f"it printed {last_line(line.decode(errors='replace'))} as it started")
        failed.update(told.pop("failed", {}))
        found.update(told)
    return {**found, "failed": failed}


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
            asked = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SMI_SECONDS)
        except FileNotFoundError:
            return {**answer, "problem": "there is no nvidia-smi" if answer["count"] else ""}
        except subprocess.TimeoutExpired:
            return {**answer, "problem": f"nvidia-smi gave no answer within {SMI_SECONDS} s"}
        except OSError as error:
            return {**answer, "problem": f"nvidia-smi does not run: {said(error)}"}
        if asked.returncode == 0:
            return {**answer, "csv": Document(asked.stdout)}
        unknown = re.search(r'Field "([^"]+)" is not a valid field', asked.stdout + asked.stderr)
        if not unknown or unknown[1] not in fields:
            words = last_line(asked.stdout + asked.stderr) or f"exit code {asked.returncode}"
            return {**answer, "problem": f"nvidia-smi says: {words}"}
        fields.remove(unknown[1])
