# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""What would make a job fail or hang, found before it starts: one module per group of checks."""
