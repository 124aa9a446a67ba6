# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch uv for a platform, by pip or by a uv that is there."""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.node import uv_version, wheel_platform
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import redacted
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.paths import ROLES

IMPATIENT = {"PIP_DEFAULT_TIMEOUT": "8", "PIP_RETRIES": "0", "UV_HTTP_CONNECT_TIMEOUT": "4", "UV_HTTP_RETRIES": "0"}
"""On a dead network both would try for a minute and longer."""
HASHES = ROLES / "python_env" / "files" / "uv.txt"


def fetch_into(cache: Path, version: str, wanted: str, settings: Mapping[str, Any]) -> Path:
    """Return a uv for a platform, fetched if it is not in the cache.

    Args:
        cache: folder on the controller.
        version: of uv.
        wanted: the platform as pip names it.
        settings: what Wanted.settings returns; where its index has no uv, this machine's own settings count.

    Raises:
        JobError, OSError: as fetch does.
    """
    folder = cache / f"uv-{version}-{wanted}"
    given = _inventory_variables(settings)
    try:
        fetch(version, wanted, folder, given)
    except JobError:
        if not given:
            raise
        fetch(version, wanted, folder, {})
    return folder / "bin" / "uv"


def _inventory_variables(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the inventory's index and proxy as pip and uv read them from the environment."""
    found: dict[str, str] = {}
    if settings["index_url"] not in ("", "none"):
        found |= dict.fromkeys(("PIP_INDEX_URL", "UV_DEFAULT_INDEX"), settings["index_url"])
    if settings["proxy"]:
        found |= dict.fromkeys(
            ("PIP_PROXY", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"),
            settings["proxy"],
        )
    return found


def fetch(version: str, wanted: str, folder: Path, variables: Mapping[str, str]) -> None:
    """Fetch uv into a folder, unless it is there and complete.

    Args:
        version: of uv.
        wanted: the platform as pip names it.
        folder: where bin/uv will be.
        variables: of the environment of pip and uv, beside this process's own.

    Raises:
        JobError: it cannot be had.
        OSError: the folder that it will lie in cannot be made.
    """
    if _is_complete(folder, version, wanted):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as workshop:
            made = Path(workshop, "made")
            reason = _fetched(version, wanted, made, {**IMPATIENT, **os.environ, **variables})
            if not reason and not _is_complete(made, version, wanted):
                reason = "fetched one that does not run, or not as its wheel has it"
            if reason:
                raise JobError(
                    f"This machine needs uv {version} for {wanted}, and {redacted(reason)}; install pip for "
                    f"{sys.executable} or uv, see that it reaches a package index, or put the binary at {folder}/bin/uv"
                )
            if folder.exists():
                folder.rename(Path(workshop, "torn"))
            made.rename(folder)
    except OSError as error:
        raise JobError(
            f"uv could not be put into {folder} on the controller ({error}); make room there, or put the binary at "
            f"{folder}/bin/uv"
        ) from None


def _is_own(wanted: str) -> bool:
    return wanted == wheel_platform(sys.platform, platform.machine())


def _is_complete(place: Path, version: str, wanted: str) -> bool:
    """Return whether there is a complete uv: by the hash in its wheel, and by running it where it can run."""
    binary = place / "bin" / "uv"
    if not binary.is_file():
        return False
    for record in place.glob("uv-*.dist-info/RECORD"):
        for name, digest, _size in csv.reader(record.read_text().splitlines()):
            if name.endswith("bin/uv"):
                found = base64.urlsafe_b64encode(hashlib.sha256(binary.read_bytes()).digest()).decode().rstrip("=")
                if digest != f"sha256={found}":
                    return False
    return not _is_own(wanted) or uv_version(str(binary)) == version


def _ran(environment: Mapping[str, str], *command: str | Path) -> tuple[int, str]:
    """Run a program; return its exit status and what it printed."""
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            check=False,
        )
    except OSError as error:
        return 127, str(error)
    return result.returncode, result.stdout + result.stderr


def _fetched(version: str, wanted: str, place: Path, environment: Mapping[str, str]) -> str:
    """Put uv into a folder; return why that did not work."""
    requirement = [f"uv=={version}"]
    if f"=={version} " in HASHES.read_text():
        requirement = ["--require-hashes", f"--requirement={HASHES}"]
    common = ["--quiet", "--no-deps", "--only-binary=:all:", f"--target={place}", *requirement]
    why = "has neither pip nor uv"
    pip = (sys.executable, "-m", "pip")
    if _ran(environment, *pip, "--version")[0] == 0:
        code, text = _ran(environment, *pip, "install", f"--platform={wanted}", *common)
        if code == 0:
            return ""
        why = f"could not fetch it with pip: {' '.join(text.split())[-400:]}"
    present = shutil.which("uv", path=os.path.dirname(sys.executable)) or shutil.which("uv")
    if present:
        if _is_own(wanted) and uv_version(present) == version:
            (place / "bin").mkdir(parents=True)
            shutil.copy(present, place / "bin" / "uv")
            return ""
        is_mac = wanted.startswith("macosx_11_0_")
        machine = wanted.replace("macosx_11_0_" if is_mac else "manylinux2014_", "").replace("arm64", "aarch64")
        target = machine + ("-apple-darwin" if is_mac else "-manylinux2014")
        options = ["--python", sys.executable, f"--python-platform={target}", *common]
        code, text = _ran(environment, present, "pip", "install", *options)
        if code == 0:
            return ""
        why = f"could not fetch it with uv: {' '.join(text.split())[-400:]}"
    return why
