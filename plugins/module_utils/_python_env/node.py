# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Look up this node's Python, platform, driver, and which environment is installed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.base.errors import Refusal

OLDEST, NEWEST = (3, 10), (3, 13)
"""The Pythons that environments may have."""
GLIBC_MINORS = (17, 28, *range(31, 41))
"""Of glibc 2.x, those that uv has a platform for."""
ABOUT = (
    "import sys, platform; print([sys.executable, platform.python_version(), list(sys.version_info[:2]), "
    "platform.machine(), sys.platform, list(platform.libc_ver())])"
)
"""For Python 2.7 and later, so that one which is too old can be named."""
ANSWER_SECONDS = 20
"""How long a Python or a uv may take to print its version."""
SHOWN = ("executable", "python", "version", "machine", "system", "libc")


def probe(
    directory: str, python: str, backend: str, digest: str, tools: str, find_links: Sequence[str]
) -> dict[str, Any]:
    """Look at this node, and change nothing.

    Args:
        directory: the cluster directory.
        python: name or path.
        backend: the wanted build of torch.
        digest: of what else decides the environment's content.
        tools: the lock of the product's own tools.
        find_links: folders that have to be here, or URLs.

    Returns:
        What modules/python_env_info describes as ``nodes``.

    Raises:
        Refusal: there can be no environment here.
    """
    about = _about(python)
    if not OLDEST <= tuple(about["version"]) <= NEWEST:
        raise Refusal(
            f"has Python {about['python']} as {python}, but 3.10 to 3.13 is needed; install one, or name it in "
            "python_env_python"
        )
    missing = [folder for folder in find_links if "://" not in folder and not os.path.exists(folder)]
    if missing:
        raise Refusal(f"has no folder {missing[0]}; make it there, or correct python_env_find_links")
    require_executable(directory)
    for name in ("env", "tools/env", "bin/uv"):
        path = os.path.join(directory, name)
        if os.path.isdir(path) and not os.path.islink(path):
            raise Refusal(f"has a folder as {path}, where setup makes a link or a program; move it away")
    driver = nvidia_driver()
    if backend == "auto" and driver is None:
        backend = "cpu"
    # The patch release is left out: the environment links to the node's Python and gets its security updates.
    decides = [digest, backend, about["executable"], *about["version"], about["machine"]]
    target = f"envs/{key(decides)}"
    tools_target = f"tools/{key([tools, about['executable'], *about['version']])}"
    complete = is_complete(directory, target)
    return {
        "python": ".".join(map(str, about["version"])),
        "executable": about["executable"],
        "machine": about["machine"],
        "wheel_platform": wheel_platform(about["system"], about["machine"]),
        "platform": uv_platform(about["system"], about["machine"], about["libc"]),
        "backend": backend,
        "driver": driver or "",
        "uv": uv_version(os.path.join(directory, "bin", "uv")),
        "target": target,
        "free": free_bytes(directory),
        "complete": complete,
        "current": complete and link_of(os.path.join(directory, "env")) == target,
        "tools": tools_target,
        "tools_current": is_complete(directory, tools_target) and _is_tools_link(directory, tools_target),
    }


def key(decides: Sequence[Any]) -> str:
    """Return the name of the folder whose content these decide."""
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]


def is_complete(directory: str, target: str) -> bool:
    """Return whether an environment is there as a whole."""
    return all(os.path.exists(os.path.join(directory, target, name)) for name in ("installed.txt", "bin/python"))


def link_of(path: str) -> str:
    """Return where a link leads, "" if it is none."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _is_tools_link(directory: str, target: str) -> bool:
    return link_of(os.path.join(directory, "tools", "env")) == target.partition("/")[2]


def _run(
    command: list[str], seconds: float = ANSWER_SECONDS, cwd: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program without input, for so many seconds at most, and return what it printed."""
    return subprocess.run(  # pylint: disable=ansible-bad-function
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=cwd,
        timeout=seconds,
        check=False,
    )


def _about(python: str) -> dict[str, Any]:
    if not python:
        raise Refusal("has an empty python_env_python; name a Python from 3.10 to 3.13 there, or leave it out")
    try:
        done = _run([python, "-c", ABOUT], cwd="/")
        why = (done.stderr.strip().splitlines() or [""])[-1]
    except OSError as error:
        done, why = None, str(error.strerror)
    except subprocess.TimeoutExpired:
        raise Refusal(
            f"has something as {python} that does not answer within {ANSWER_SECONDS} s, as a Python does; name one in "
            "python_env_python"
        ) from None
    if done is None or done.returncode != 0:
        raise Refusal(
            f"has no Python that runs as {python}{f' ({why})' if why else ''}; install one from 3.10 to 3.13, or name "
            "it in python_env_python"
        )
    import ast

    try:
        return dict(zip(SHOWN, ast.literal_eval(done.stdout.strip().splitlines()[-1])))
    except (ValueError, SyntaxError, IndexError):
        raise Refusal(f"has something as {python} that is no Python; name one in python_env_python") from None


def uv_platform(system: str, machine: str, libc: Sequence[str]) -> str:
    """Return uv's name of a platform."""
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine)
    if system == "darwin":
        return f"{machine}-apple-darwin"
    found = re.fullmatch(r"2\.(\d+).*", libc[1]) if libc[0] == "glibc" else None
    if not found:
        return f"{machine}-unknown-linux-musl"
    minors = [minor for minor in GLIBC_MINORS if minor <= int(found[1])]
    return f"{machine}-manylinux_2_{max(minors, default=17)}"


def wheel_platform(system: str, machine: str) -> str:
    """Return pip's name of the oldest platform whose wheels of uv run there."""
    return ("macosx_11_0_" if system == "darwin" else "manylinux2014_") + machine


def nvidia_driver() -> str | None:
    """Return the version of the NVIDIA driver, "" if it does not say, None where there is none."""
    for path in ("/sys/module/nvidia/version", "/proc/driver/nvidia/version"):
        try:
            with open(path, errors="replace") as file:
                found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", file.read())
            return found[1] if found else ""
        except OSError:
            continue
    tool = shutil.which("nvidia-smi")
    if not tool:
        return None
    try:
        done = _run([tool, "--query-gpu=driver_version", "--format=csv,noheader"], 30)
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.match(r"\d+\.\d+(?:\.\d+)?", done.stdout)
    return found[0] if found else ""


def uv_version(uv: str) -> str:
    """Return the version of the uv at this path, empty if it does not run."""
    try:
        done = _run([uv, "--version"])
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.match(r"uv (\d+\.\d+\.\d+)\b", done.stdout)
    return found[1] if found and done.returncode == 0 else ""


def disk_of(directory: str) -> os.statvfs_result:
    """Return what is known of the file system that the cluster directory lies on, or will."""
    place = os.path.abspath(directory)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    return os.statvfs(place)


def free_bytes(directory: str) -> int:
    """Return how much room this account has for the cluster directory; sys.maxsize where the file system does not say.

    A part of most disks, often a twentieth, is kept for root.
    """
    disk = disk_of(directory)
    if not disk.f_blocks:
        return sys.maxsize
    return (disk.f_bavail if os.geteuid() else disk.f_bfree) * disk.f_frsize


def require_executable(directory: str) -> None:
    """Raise Refusal where the cluster directory lies, or will lie, on a file system whose programs cannot be run."""
    if sys.platform == "linux" and disk_of(directory).f_flag & os.ST_NOEXEC:
        raise Refusal(
            f"has the cluster_dir {directory} on a file system that is mounted noexec, so that no program in it runs; "
            "set cluster_dir in the inventory to a folder on another, or mount it with exec"
        )
