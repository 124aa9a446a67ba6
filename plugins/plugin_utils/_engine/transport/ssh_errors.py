# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Explain why ssh did not reach a node."""

from __future__ import annotations

import re
from typing import Any

from ansible_collections.thunderhead.cluster.plugins.module_utils._agent.contract import last_line

_ANSIBLES_PREFIX = re.compile(
    r"Failed to connect to the host via ssh: |Data could not be sent to remote host .*?over ssh: ", re.DOTALL
)
"""What Ansible puts before ssh's error output."""
_UNREACHABLE = re.compile(
    r"ssh: connect to host |ssh: could not resolve |permission denied \(|too many authentication failures|no matching "
    r"\S.* found|bad owner or permissions|bad configuration option|during banner exchange|open failed: ",
    re.IGNORECASE | re.MULTILINE,
)
"""ssh's errors when it does not reach a machine or is refused, however often it is tried."""
_CLOSED_BEFORE_LOGIN = re.compile(
    r"(kex_exchange|ssh_exchange|banner)_?\S*: .*(closed|reset|line)|Connection (closed|reset) by \S+ port \d+",
    re.IGNORECASE,
)
"""Its errors when an sshd closed the connection before the login, as one with too many connections does."""
_UNSENT = re.compile(f"{_UNREACHABLE.pattern}|{_CLOSED_BEFORE_LOGIN.pattern}", re.IGNORECASE | re.MULTILINE)
"""Errors after which it is certain that no request was sent."""


def is_closed_before_login(error_output: str) -> bool:
    """Return whether an sshd closed the connection before the login."""
    return bool(_CLOSED_BEFORE_LOGIN.search(error_output))


def explain_ssh_failure(error_output: str, address: str) -> tuple[str, dict[str, Any]]:
    """Explain why ssh failed: return a verb phrase with a remedy, and facts.

    Args:
        error_output: the standard error of ssh, or Ansible's error.
        address: where the connection leads.

    Returns:
        The phrase, and the facts: ``unsent`` if no request was sent, ``closed_before_login`` (ssh's error) if an sshd
        may have had too many connections.
    """
    error_output = _ANSIBLES_PREFIX.sub("", error_output)
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in error_output:
        return (
            "has another SSH host key than the one in known_hosts: it was reinstalled, or another machine answers at "
            "its address; compare the fingerprint with its administrator's before you remove the old key: "
            f"ssh-keygen -R {address}"
        ), {"unsent": True}
    if "Host key verification failed" in error_output:
        return (
            "has an SSH host key that is not in known_hosts; log in to it once and compare the fingerprint: "
            f"ssh {address}"
        ), {"unsent": True}
    line = _find_cause_line(error_output)
    if "too long" in line and "ControlPath" in line:
        line += "; set ansible_control_path_dir to a folder with a shorter name"
    facts: dict[str, Any] = {"unsent": True} if _UNSENT.search(error_output) else {}
    if _CLOSED_BEFORE_LOGIN.search(error_output) and not _UNREACHABLE.search(error_output):
        facts["closed_before_login"] = line
    return f"is unreachable: {line}", facts


def last_error(error_output: str) -> str:
    """Return the last line of a program's error output, for a sentence."""
    return last_line(error_output) or "it printed no error"


def _find_cause_line(error_output: str) -> str:
    """Return the line of ssh's that names the cause; where it goes through another machine, that is not the last."""
    lines = [line.strip() for line in error_output.strip().splitlines() if line.strip()]
    for pattern in (_UNREACHABLE, _CLOSED_BEFORE_LOGIN):
        for line in lines:
            if pattern.search(line):
                return line
    return last_line(error_output) or "ssh printed no error"
