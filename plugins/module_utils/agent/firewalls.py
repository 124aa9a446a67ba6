# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Which firewalls this machine runs, without asking them: a program of firewalld takes a seventh of a second."""

from __future__ import annotations

import os

from ansible_collections.thunderhead.cluster.plugins.module_utils.agent.protocol import suppress


def managed_firewalls() -> list[str]:
    """Return which of the firewalls are active that Ansible has modules for, in collections that may not be there."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if any(word.endswith(b"/firewalld") for word in file.read(4096).split(b"\0")[:4]):
                found.append("firewalld")
                break
    with suppress(OSError), open("/etc/ufw/ufw.conf", errors="replace") as settings:
        if any(line.strip().lower() == "enabled=yes" for line in settings):
            found.append("ufw")
    return found
