# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Talk to the nodes: one channel each, all at once, through Ansible's connections."""
