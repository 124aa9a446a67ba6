# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Explain why ssh did not reach a node."""

from __future__ import annotations

import re
from typing import Any

_ANSIBLES_OWN = re.compile(
    r"Failed to connect to the host via ssh: |Data could not be sent to remote host .*?over ssh: ", re.DOTALL
)
"""What Ansible puts before ssh's words."""
_NO_WAY = re.compile(
    r"ssh: connect to host |ssh: could not resolve |permission denied \(|too many authentication failures|no matching "
    r"\S.* found|bad owner or permissions|bad configuration option|during banner exchange|open failed: ",
    re.IGNORECASE | re.MULTILINE,
)
"""What ssh says when it does not reach a machine, or is not let in, whoever comes and when."""
_CROWDED = re.compile(
    r"(kex_exchange|ssh_exchange|banner)_?\S*: .*(closed|reset|line)|Connection (closed|reset) by \S+ port \d+",
    re.IGNORECASE,
)
"""What it says when an sshd closed the connection before anybody had logged in, as one that has too many of them."""
_UNSENT = re.compile(f"{_NO_WAY.pattern}|{_CROWDED.pattern}", re.IGNORECASE | re.MULTILINE)
"""Nothing was asked of the node then."""


def is_crowded(said: str) -> bool:
    """Return whether an sshd closed the connection before anybody had logged in."""
    return bool(_CROWDED.search(said))


def explain_ssh_failure(said: str, address: str) -> tuple[str, dict[str, Any]]:
    """Return a verb phrase with a remedy, and facts.

    Args:
        said: the standard error of ssh, or Ansible's error.
        address: where the connection leads.

    Returns:
        The phrase, and the facts: ``unsent`` if nothing was asked of the node, ``crowded`` (what ssh said) if an sshd
        may have had too many connections.
    """
    said = _ANSIBLES_OWN.sub("", said)
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
        return (
            "shows another SSH host key than the one you know it by: it was installed anew, or another machine answers "
            "in its place; compare the fingerprint with its administrator's before you remove the old key: "
            f"ssh-keygen -R {address}"
        ), {"unsent": True}
    if "Host key verification failed" in said:
        return (
            "shows an SSH host key that you do not know it by; log in to it once and compare the fingerprint: "
            f"ssh {address}"
        ), {"unsent": True}
    line = _telling_line(said)
    if "too long" in line and "ControlPath" in line:
        line += "; set ansible_control_path_dir to a folder with a shorter name"
    facts: dict[str, Any] = {"unsent": True} if _UNSENT.search(said) else {}
    if _CROWDED.search(said) and not _NO_WAY.search(said):
        facts["crowded"] = line
    return f"is unreachable: {line}", facts


def last_line(text: str) -> str:
    """Return the last line that is not blank."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _telling_line(said: str) -> str:
    """Return the line of ssh's that says most: where it goes through another machine, the last is none of them."""
    lines = [line.strip() for line in said.strip().splitlines() if line.strip()]
    for pattern in (_NO_WAY, _CROWDED):
        for line in lines:
            if pattern.search(line):
                return line
    return last_line(said)
