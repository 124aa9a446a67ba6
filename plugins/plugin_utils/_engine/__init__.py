# Copyright (c) The Thunderhead developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run, follow and diagnose jobs from the controller.

Each module imports only from its own package and from those before it in ``LAYERS``.
"""

LAYERS = (
    "errors",
    "paths",
    "text",
    "transport",
    "output",
    "cluster",
    "project",
    "diagnosis",
    "controller",
    "requirements",
    "preflight",
    "jobs",
    "following",
    "commands",
)
