# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the unit tests that depend on Ansible with the newest ansible-core that a Python of this machine can have.

The environment of all other tests has the oldest, and torch, which this one lacks: what is marked torch runs there.
"""

import os
import subprocess
import sys
from pathlib import Path

from built import ROOT
from sanity import pythons

ENVIRONMENT = ROOT / ".cache" / "newest"
OLDEST = (3, 11)
"""The only Python of the oldest ansible-core, by pyproject.toml."""
NEWER = ("3.12", "3.13", "3.14")
TESTS = (
    *("actions", "channel", "collection", "connect", "copies", "documentation", "every_node_action", "extra_vars"),
    *("host_keys", "hostile_playbooks", "interrupts", "iptables_peers", "nftables_peers", "role_settings", "roles"),
    *("settings", "connection_slots", "console"),
)
"""Actions, lookup and filter, modules, roles, playbooks, connections, Ctrl-C: what talks to Ansible."""


def main() -> int:
    """Return the exit status."""
    if sys.version_info[:2] > OLDEST:
        print(f"Nothing to do: the unit tests run with the newest ansible-core under Python {sys.version.split()[0]}.")
        return 0
    newer = pythons(NEWER)
    if not newer:
        print("NOT TESTED with the newest ansible-core, which needs Python 3.12 or newer: this machine has none.")
        return 0
    version, folder = list(newer.items())[-1]
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run(["uv", "venv", "--quiet", "--python", folder / f"python{version}", ENVIRONMENT], check=True)
    groups = ["--group", "controller", "--group", "unit"]
    subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, *groups], cwd=ROOT, check=True)
    environment = {**os.environ, "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]])}
    release = "from ansible.release import __version__; print('ansible-core', __version__)"
    subprocess.run([python, "-c", release], check=True)
    tests = [Path("tests", "unit", "plugins", f"test_{name}.py") for name in TESTS]
    pytest = ["-m", "pytest", "-m", "not torch", "--numprocesses", "3", "--dist", "loadfile"]
    return subprocess.run([python, *pytest, *tests], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
