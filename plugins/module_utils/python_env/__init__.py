# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Python environments by uv: on the controller, which resolves, and on the nodes, which install."""
