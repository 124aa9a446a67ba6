# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Explain why sudo, or another become method, did not work."""

from __future__ import annotations

import re

WITHOUT = "or work without it: ansible_become: false and job_user: ''"

BECOME_FAILURES: tuple[tuple[str, str], ...] = (
    (
        r"Missing \S+ password|: a (password|terminal) is required|no askpass program",
        "asks for a password for {method}, and none was given: set ansible_become_password (from a vault), give "
        "--ask-become-pass, or let the account there use {method} without one (NOPASSWD in sudoers); an "
        "account that may not use {method} at all is asked for one too",
    ),
    (
        r"Incorrect \S+ password|Duplicate become password prompt|incorrect password attempt|^{method}: Authentication",
        "does not take the password for {method}: correct ansible_become_password, or what --ask-become-pass is given; "
        "an account that may not use {method} at all is asked for one too",
    ),
    (
        r"not in the sudoers file|is not allowed to (execute|run)|may not run sudo",
        "does not let Ansible's account use {method} ({line}): allow it there, name one that may with ansible_user, "
        f"{WITHOUT}",
    ),
    (
        r"must have a tty|no tty present",
        "does not let {method} be used without a terminal ({line}): take requiretty out of its sudoers, for this "
        "account at least (Defaults:NAME !requiretty)",
    ),
    (
        r"waiting for (privilege escalation prompt|become success)",
        "took too long to run {method} ({line}): if it waits for a name server, put the node's own name into its "
        "/etc/hosts; else raise ansible_timeout",
    ),
    (
        r"\b{method}: (command )?not found|{method}: No such file|: {method}: inaccessible or not found",
        "has no {method}, which Ansible's account needs to become another account: install it there, set "
        f"ansible_become_method to what there is, log in as root (ansible_user: root), {WITHOUT}",
    ),
)
"""Patterns of a line, and what it means: a verb phrase. The first that fits counts."""


def explain_become_failure(method: str, error_output: str) -> str | None:
    """Explain why an account cannot become another, a verb phrase with a remedy; None if that is not the failure.

    Args:
        method: the become plugin's name, such as sudo.
        error_output: the standard error of a command that did not run, or Ansible's error.
    """
    for pattern, explanation in BECOME_FAILURES:
        for line in map(str.strip, error_output.splitlines()):
            if re.search(pattern.replace("{method}", re.escape(method)), line, re.IGNORECASE):
                return explanation.format(method=method, line=line.rstrip(": "))
    last = error_output.strip().rpartition("\n")[2]
    if last.startswith(f"{method}: ") and "unable to resolve" not in last:
        return f"does not let Ansible's account become another account ({last}): repair {method} there, {WITHOUT}"
    return None
