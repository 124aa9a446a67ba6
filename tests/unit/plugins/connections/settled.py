# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a connection is made of, for comparison."""

from typing import Any

from ansible import constants as C


def configured() -> str:
    return str(C.config.get_config_value("INTERPRETER_PYTHON"))


def settled(connection: Any, python: str, executable: str) -> dict[str, Any]:
    """Return all options of the connection, its shell and its become plugin, and what would be executed with them."""
    plugins = {"connection": connection, "shell": connection._shell, "become": connection.become}
    found: dict[str, Any] = {
        kind: {"plugin": plugin._load_name, **plugin.get_options()} for kind, plugin in plugins.items() if plugin
    }
    for options in found.values():
        options.pop("pipelining", None)  # the engine's is always on
    return {**found, "executable": executable, "python": "python3" if python.startswith("auto") else python}
