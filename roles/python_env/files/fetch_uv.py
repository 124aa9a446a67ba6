"""Have a whole uv for a platform in a folder on the controller; say "fetched" if it had to be fetched.

Arguments: uv's version, the platform as pip names it, the folder. The binary is bin/uv in it.
"""

import base64
import csv
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

version, wanted, folder = sys.argv[1:]
FOLDER = Path(folder)
IMPATIENT = {
    **{"PIP_DEFAULT_TIMEOUT": "8", "PIP_RETRIES": "0", "UV_HTTP_CONNECT_TIMEOUT": "4", "UV_HTTP_RETRIES": "0"},
    **os.environ,
}
"""On a dead network both would try for a minute and longer."""
HASHES = Path(__file__).with_name("uv.txt")
IS_OWN = wanted == ("macosx_11_0_" if sys.platform == "darwin" else "manylinux2014_") + platform.machine()


def ran(*command: "str | Path") -> "tuple[int, str]":
    """Run a program; return its exit status and what it printed."""
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=IMPATIENT
        )
    except OSError as error:
        return 127, str(error)
    return result.returncode, result.stdout + result.stderr


def is_whole(place: Path) -> bool:
    """Return whether there is a uv that is not torn: by the hash in its wheel, and by running it where it can run."""
    binary = place / "bin" / "uv"
    if not binary.is_file():
        return False
    for record in place.glob("uv-*.dist-info/RECORD"):
        for name, digest, _size in csv.reader(record.read_text().splitlines()):
            if name.endswith("bin/uv"):
                found = base64.urlsafe_b64encode(hashlib.sha256(binary.read_bytes()).digest()).decode().rstrip("=")
                if digest != "sha256=" + found:
                    return False
    return not IS_OWN or is_version(binary)


def is_version(binary: "str | Path") -> bool:
    """Return whether a uv runs and is the one that is wanted."""
    code, text = ran(binary, "--version")
    return code == 0 and text.split()[1:2] == [version]


def fetch(place: Path) -> str:
    """Put uv into a folder; return why that did not work."""
    requirement = ["uv==" + version]
    if "==" + version + " " in HASHES.read_text():
        requirement = ["--require-hashes", "--requirement=" + str(HASHES)]
    why = "has neither pip nor uv"
    if ran(sys.executable, "-m", "pip", "--version")[0] == 0:
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--platform=" + wanted, "--target=" + str(place)]
        code, text = ran(sys.executable, "-m", "pip", "install", *options, *requirement)
        if code == 0:
            return ""
        why = "could not fetch it with pip: " + " ".join(text.split())[-400:]
    present = shutil.which("uv", path=os.path.dirname(sys.executable)) or shutil.which("uv")
    if present:
        if IS_OWN and is_version(present):
            (place / "bin").mkdir(parents=True)
            shutil.copy(present, place / "bin" / "uv")
            return ""
        is_mac = wanted.startswith("macosx_11_0_")
        machine = wanted.replace("macosx_11_0_" if is_mac else "manylinux2014_", "").replace("arm64", "aarch64")
        target = machine + ("-apple-darwin" if is_mac else "-manylinux2014")
        options = [
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--python-platform=" + target,
            "--target=" + str(place),
        ]
        code, text = ran(present, "pip", "install", "--python", sys.executable, *options, *requirement)
        if code == 0:
            return ""
        why = "could not fetch it with uv: " + " ".join(text.split())[-400:]
    return why


if is_whole(FOLDER):
    sys.exit()
FOLDER.parent.mkdir(parents=True, exist_ok=True)
with tempfile.TemporaryDirectory(dir=FOLDER.parent, prefix=FOLDER.name + ".") as workshop:
    made = Path(workshop, "made")
    reason = fetch(made) or ("" if is_whole(made) else "fetched one that does not run, or not as its wheel has it")
    if reason:
        sys.exit(
            f"This machine needs uv {version} for {wanted}, and {reason}; install pip for {sys.executable} or uv, see "
            f"that it reaches a package index, or put the binary to {FOLDER}/bin/uv"
        )
    if FOLDER.exists():
        FOLDER.rename(Path(workshop, "torn"))
    made.rename(FOLDER)
print("fetched")
