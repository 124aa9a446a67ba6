# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages of a few bytes, and what serves them."""

import hashlib
import http.server
import zipfile
from pathlib import Path


def make_wheel(folder: Path, name: str, version: str = "1.0", module: str = "", requires: str = "") -> str:
    """Make a package with one module; return its SHA-256."""
    about = f"{name}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", module)
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "".join(f"{one},,\n" for one in [*wheel.namelist(), f"{about}/RECORD"]))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_index(folder: Path, **versions: str) -> Path:
    """Make a package index with packages of one version each; return its folder."""
    for name, version in versions.items():
        make_wheel(folder / name, name, version)
        file = f"{name}-{version}-py3-none-any.whl"
        (folder / name / "index.html").write_text(f'<a href="{file}">{file}</a>')
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the files of a folder, and prints nothing."""

    def log_message(self, *_arguments: object) -> None:
        pass
