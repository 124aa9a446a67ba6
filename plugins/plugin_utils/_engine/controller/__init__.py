# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Work within ansible-playbook: actions, inventory, options, interrupts."""
