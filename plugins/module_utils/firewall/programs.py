# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What the programs of a node say, in English."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


def ask(module: AnsibleModule, program: str, *arguments: str) -> str | None:
    """Return what a program prints, or None if it is not installed or fails."""
    path = module.get_bin_path(program)
    if path is None:
        return None
    status, out, _ = module.run_command([path, *arguments], environ_update={"LC_ALL": "C"})
    return None if status else out


def show_unit(module: AnsibleModule, unit: str, *properties: str) -> dict[str, str]:
    """Return what systemd knows about a unit; nothing where systemd does not run."""
    listing = ask(module, "systemctl", "show", f"--property={','.join(properties)}", unit)
    return dict(line.split("=", 1) for line in (listing or "").splitlines())
