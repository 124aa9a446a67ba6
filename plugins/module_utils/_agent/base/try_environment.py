# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Try to import torch and what a script imports, as a job would."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal, error_text
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.job_user import User
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.processes import how_it_ended
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.run_program import (
    LONGEST_LINE,
    Program,
)
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.unpack import unpack_code
from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import (
    Request,
    is_count,
    is_flag,
    is_text,
    last_line,
)

# Until a trial has what it needs itself, no file of the code may take the place of a module of the standard library.
FIRST = "import sys; sys.path[:1] == [''] and sys.path.pop(0); exec(sys.argv[1]); main(*sys.argv[2:])"
REPORT: dict[str, Callable[[object], bool]] = {
    "python": is_text,
    **dict.fromkeys(("torch", "cuda", "nccl", "importing"), lambda value: value is None or is_text(value)),
    "devices": lambda value: is_count(value) and isinstance(value, int) and value >= 0,
    "usable": is_flag,
    "failed": lambda value: isinstance(value, dict) and all(map(is_text, (*value, *value.values()))),
}
"""The fields that a trial may report; what it imports could write there too."""
MOST_BYTES = 2**20
"""The most of its output that is read: more is not a report."""


def try_environment(request: Request, content: bytes) -> dict[str, Any]:
    """Import torch and what a script imports, with the environment's Python, as a job's user, in a job's surroundings.

    Args:
        request: as for ``preflight_facts``.
        content: the script's code, compressed as for ``receive_code``; laid out as a job's is, for as long as this
        takes.

    Returns:
        python, torch, cuda and nccl (versions; None where there is none), devices (GPUs that torch sees), usable
        (whether it can use them), failed (modules and why; the one that ends or stops Python is the last that is
        tried); or a problem.
    """
    python = os.path.join(request["directory"], "env", "bin", "python")
    try:
        os.stat(os.path.dirname(python))
    except PermissionError:
        pass  # it may be there: starting it shows
    except OSError:
        return {"problem": f"has no environment: there is no {python}; run: ansible-playbook setup.yml"}
    remedy = "remove envs in the cluster_dir there, and run: ansible-playbook setup.yml"
    output = os.memfd_create("output")  # a pipe would stay open as long as anything that it has started lives
    place = ""
    try:
        user = User(request["user"])
        wanted = request["imports"]
        if content:
            place = lay_out_here(content, user)
        arguments = ["-c", FIRST, wanted["program"], wanted["script"], wanted["module"], str(LONGEST_LINE)]
        folder = os.path.join(place, "work") if place else "/"
        program = Program(request, user, python, arguments, subprocess.DEVNULL, output, folder)
        in_time = program.wait(request["seconds"])
        code, error_line = program.end()
        found = _read_report(output)
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
        why = error_line or how_it_ended(code)
        return {"problem": f"has an environment that does not work for {user.name}: {why}; {remedy}"}
    except Refusal as refusal:
        return {"problem": str(refusal)}
    except PermissionError:
        return {
            "problem": f"has an environment that {user.name} may not use: {python} or a folder above it is closed to "
            f"that account; chmod it, or {remedy}"
        }
    except (OSError, ValueError, RecursionError) as error:
        return {"problem": f"has an environment that does not work: {error_text(error)}; {remedy}"}
    finally:
        os.close(output)
        if place:
            shutil.rmtree(place, ignore_errors=True)


def lay_out_here(content: bytes, user: User) -> str:
    """Return a new folder with the code in ``work/``, where programs can be run and the user may write.

    Raises:
        Refusal: there is none, or it has no room.
    """
    places = (tempfile.gettempdir(), "/var/tmp", "/dev/shm")
    try:
        for above in places:
            if os.path.isdir(above) and not os.statvfs(above).f_flag & os.ST_NOEXEC:
                place = tempfile.mkdtemp(prefix="thunderhead-", dir=above)
                break
        else:
            raise Refusal(f"lets no program run from {', '.join(places)}, and an import is tried in one of them")
        try:
            if os.geteuid() == 0:
                os.chown(place, user.uid, user.gid)
            unpack_code(io.BytesIO(zlib.decompress(content)), os.path.join(place, "work"), user)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
    except (OSError, zlib.error) as error:
        raise Refusal(
            f"cannot lay out the job's code to try its imports: {error_text(error)}; free some space there"
        ) from None
    return place


def _read_report(output: int) -> dict[str, Any]:
    """Return what a trial has reported so far; importing is the module that it had begun to import, or None.

    Raises:
        ValueError: the output is not a trial's.
    """
    failed: dict[str, str] = {}
    found = {"importing": None, "torch": None, "cuda": None, "nccl": None, "devices": 0, "usable": False}
    for line in os.pread(output, MOST_BYTES, 0).splitlines():
        part = json.loads(line)
        if not (isinstance(part, dict) and all(name in REPORT and REPORT[name](part[name]) for name in part)):
            raise ValueError(f"it printed {last_line(line.decode(errors='replace'), LONGEST_LINE)} as it started")
        failed.update(part.pop("failed", {}))
        found.update(part)
    return {**found, "failed": failed}
