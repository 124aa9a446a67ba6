# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand in for the script that ansible-test would download to put pip into a new environment.

It is called as that script is: the requirement of pip, then options for what else not to install. The environment's
own Python has a pip in ``ensurepip``, and that one gets the wanted one from the package index.
"""

import runpy
import subprocess
import sys

subprocess.run([sys.executable, "-m", "ensurepip", "--default-pip"], check=True, stdout=subprocess.DEVNULL)
sys.argv = ["pip", "install", "--quiet", *(word for word in sys.argv[1:] if not word.startswith("--no-"))]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
