"""Print what the role must know of a node, as one JSON object.

Arguments: the cluster directory, the wanted build of torch, a digest of what else decides the environment's content.
Written for Python 2.7 and later, so that the role can say which version is too old.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys


def nvidia_driver():
    # type: () -> bool
    """Whether this machine has an NVIDIA driver."""
    tools = [os.path.join(folder, "nvidia-smi") for folder in os.environ.get("PATH", "").split(os.pathsep)]
    return os.path.exists("/proc/driver/nvidia/version") or any(os.path.exists(tool) for tool in tools)


def uv_version(uv):
    # type: (str) -> str
    """The version of the uv at this path, empty if it does not run."""
    try:
        return subprocess.check_output([uv, "--version"]).decode().split()[1]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


directory, backend, digest = sys.argv[1:]
if backend == "auto" and not nvidia_driver():
    backend = "cpu"
# The patch release is left out: the environment links to the node's Python and gets its security updates.
decides = [digest, backend, sys.executable, sys.version_info[0], sys.version_info[1], platform.machine()]
key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
link, target = os.path.join(directory, "env"), "envs/" + key
files = [os.path.join(directory, target, name) for name in ("installed.txt", "bin/python")]
complete = all(os.path.exists(path) for path in files)
node = {
    "python": platform.python_version(),
    "executable": sys.executable,
    "supported": (3, 10) <= sys.version_info[:2] <= (3, 13),
    # As pip names it in --platform.
    "platform": ("macosx_11_0_" if sys.platform == "darwin" else "manylinux2014_") + platform.machine(),
    "backend": backend,
    "root": os.geteuid() == 0,
    "uv": uv_version(os.path.join(directory, "bin", "uv")),
    "target": target,
    "complete": complete,
    "current": complete and os.path.islink(link) and os.readlink(link) == target,
}
print(json.dumps(node))
