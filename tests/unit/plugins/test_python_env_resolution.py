"""A resolution with a program in uv's place, which writes down how it was called."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils.python_env.resolution import resolve

SETTINGS: dict[str, Any] = {"index_url": "", "extra_index_urls": [], "find_links": [], "proxy": "", "uv_settings": {}}
TARGET = {
    "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
    "platform": "x86_64-manylinux_2_28",
    "machine": "x86_64",
    "backend": "none",
    "driver": "",
}
UV = """#!{python}
import json, os, sys, zipfile
arguments = sys.argv[1:]
with open("{folder}/calls", "a") as file:
    file.write(json.dumps([arguments, dict(os.environ)]) + "\\n")
if arguments[0] == "build":
    folder = arguments[arguments.index("--out-dir") + 1]
    os.makedirs(folder)
    with zipfile.ZipFile(folder + "/mine-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("mine.py", "")
elif "--output-file" in arguments:
    with open(arguments[arguments.index("--output-file") + 1], "w") as file:
        file.write({lock!r})
"""


class Bench:
    """A workshop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "sources").mkdir()

    def request(self, lines: list[str], lock: str = "", **changes: Any) -> dict[str, Any]:
        uv = self.folder / "uv"
        uv.write_text(UV.format(python=sys.executable, folder=self.folder, lock=lock))
        uv.chmod(0o755)
        given = {"uv": str(uv), "folder": str(self.folder), "project": "", "arguments": [], "lines": lines}
        given |= {"constraints": [], "hashes": {}, "targets": {"here": TARGET}, "settings": SETTINGS, "variables": {}}
        return {**given, "needs_torch": [], "takes_prereleases": False, "preferred": "", **changes}

    @property
    def calls(self) -> list[tuple[list[str], dict[str, str]]]:
        return [tuple(json.loads(line)) for line in (self.folder / "calls").read_text().splitlines()]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "UV_INDEX_URL", "UV_OFFLINE", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    return Bench(tmp_path)


def test_no_password_is_an_argument(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every account of the machine sees arguments, and builds are long."""
    monkeypatch.delenv("TOKEN", raising=False)  # a node knows none of the controller's variables
    lines = [
        "--index-url https://user:${TOKEN}@127.0.0.1/simple",
        "--extra-index-url https://user:${TOKEN}@127.0.0.1/more",
        "--find-links https://user:${TOKEN}@127.0.0.1/wheels",
        "mine @ file:///srv/mine",
    ]
    settings = {**SETTINGS, "index_url": "none", "find_links": ["/srv/wheels"]}
    resolve(bench.request(lines, "mine @ file:///srv/mine\n", settings=settings, variables={"TOKEN": "hush-4711"}))
    assert [arguments[0] for arguments, _environment in bench.calls] == ["pip", "build"]
    assert "hush-4711" not in str([arguments for arguments, _environment in bench.calls])
    environment = bench.calls[-1][1]
    assert environment["UV_DEFAULT_INDEX"] == "https://user:hush-4711@127.0.0.1/simple"
    assert environment["UV_INDEX"] == "https://user:hush-4711@127.0.0.1/more"
    folders = environment["UV_FIND_LINKS"].split(",")  # besides, those of this machine
    assert folders[:2] == ["https://user:hush-4711@127.0.0.1/wheels", "/srv/wheels"]
