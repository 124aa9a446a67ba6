# Copyright (c) The Thunderhead developers
# Licensed under the Apache License, Version 2.0 (see LICENSE)
"""Follow a job: fetch its output, judge it, end it, collect what it left."""
