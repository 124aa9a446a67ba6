# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Python environments by uv: resolved once, installed on the nodes."""
