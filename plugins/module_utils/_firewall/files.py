# Copyright (c) The Thunderhead developers
# Simplified BSD License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause
"""Read, replace and remove the files that restore the cluster's rules at boot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

Files = dict[str, "str | None"]
"""The content of each path; None: no such file."""


def read(paths: Iterable[str]) -> Files:
    """Return what the files hold."""
    return {path: Path(path).read_text("utf-8") if Path(path).exists() else None for path in paths}


def write(module: AnsibleModule, path: str, text: str | None, mode: int = 0o644) -> None:
    """Replace a file in one step, or remove it, and its folder if that is then empty."""
    file = Path(path)
    if text is None:
        file.unlink()
        if not any(file.parent.iterdir()):
            file.parent.rmdir()
        return
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = Path(module.tmpdir, file.name)
    temporary.write_text(text, encoding="utf-8")
    module.atomic_move(str(temporary), path)
    file.chmod(mode)  # a new file gets Ansible's own mode


def lines(items: list[str]) -> str:
    """Return the items as text, a line each."""
    return "".join(f"{item}\n" for item in items)


def differences(before: Files, after: Files) -> list[dict[str, Any]]:
    """Return, for ``diff``, the files that change."""
    return [
        {"before_header": path, "after_header": path, "before": before[path] or "", "after": after[path] or ""}
        for path in before
        if before[path] != after[path]
    ]
