# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""The engine, on the controller.

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
