# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Check what would make a job fail or hang; a module for each group of checks."""
