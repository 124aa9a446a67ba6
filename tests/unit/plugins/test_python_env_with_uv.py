# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the very uv that nodes get makes of the settings that it is given; indexes are folders."""

import http.server
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env import uv
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.resolution import resolve
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.uv import Failure
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.locks import lay_out
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.read_requirements import read
from packages import Quiet, make_index
from test_python_env_resolution import SETTINGS, TARGET

PROJECT = '[project]\nname = "app"\nversion = "1"\n'
HARMLESS = {"concurrent-downloads": 4}


class Controller:
    """A machine with a company's index, in whose name PyPI has another package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        (self.home / ".config" / "uv").mkdir(parents=True)
        (folder / "workshop" / "sources").mkdir(parents=True)
        self.company = make_index(folder / "company", mine="1.0", inner="1.0")

    def resolve(self, text: str, name: str = "pyproject.toml", groups: Any = (), **settings: Any) -> dict[str, Any]:
        path = self.folder / "app" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        found = read(path, groups=groups)
        lay_out(found, self.folder / "workshop" / "sources")
        request = {
            name: getattr(found, name) for name in ("arguments", "lines", "constraints", "hashes", "uv_settings")
        }
        request |= {"uv": str(Path(sys.executable).with_name("uv")), "cache": str(self.folder / "cache")}
        request |= {"project": str(path.parent), "folder": str(self.folder / "workshop"), "variables": {}}
        request |= {"targets": {"here": TARGET}, "settings": {**SETTINGS, **settings}, "needs_torch": [], "commits": {}}
        return resolve({**request, "takes_prereleases": False, "preferred": "", "builder": {}})


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Controller:
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "UV_INDEX_URL", "UV_CONFIG_FILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UV_OFFLINE", "1")  # of PyPI
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(uv, "Machine", partial(uv.Machine, str(tmp_path), str(tmp_path / "home")))
    return Controller(tmp_path)


INDEX = '\n[[{}index]]\nname = "company"\nurl = "{}"\ndefault = true\n'


@pytest.mark.parametrize("settings", [{}, {"uv_settings": HARMLESS}])
@pytest.mark.parametrize("where", ["machine", "project", "uv.toml beside it", "workspace"])
def test_settings_are_added_to_uvs_own(controller: Controller, where: str, settings: dict[str, Any]) -> None:
    """They took the place of the company's index, so that packages of its names came from PyPI."""
    text = PROJECT + 'dependencies = ["mine"]\n'
    if where == "machine":
        (controller.home / ".config" / "uv" / "uv.toml").write_text(INDEX.format("", controller.company))
    elif where == "project":
        text += INDEX.format("tool.uv.", "../company")
    elif where == "uv.toml beside it":
        (controller.folder / "app").mkdir()
        (controller.folder / "app" / "uv.toml").write_text(INDEX.format("", controller.company))
    else:
        root = '[tool.uv.workspace]\nmembers = ["app"]\n' + INDEX.format("tool.uv.", "company")
        (controller.folder / "pyproject.toml").write_text(root)
        text += "[tool.uv]\nmanaged = true\n"
    assert "mine==1.0" in controller.resolve(text, **settings)["locks"]["here"]


def test_settings_are_added_to_the_machines_for_a_requirements_file(controller: Controller) -> None:
    (controller.home / ".config" / "uv" / "uv.toml").write_text(INDEX.format("", controller.company))
    result = controller.resolve("mine\n", "requirements.txt", uv_settings=HARMLESS)
    assert "mine==1.0" in result["locks"]["here"]


def test_settings_count_more_than_those_of_the_project(controller: Controller) -> None:
    theirs = make_index(controller.folder / "theirs", mine="2.0")
    text = PROJECT + 'dependencies = ["mine"]\n' + INDEX.format("tool.uv.", "../company")
    result = controller.resolve(text, uv_settings={"index": [{"url": str(theirs), "default": True}]})
    assert "mine==2.0" in result["locks"]["here"]


def test_what_only_a_project_may_have_is_no_matter(controller: Controller) -> None:
    """And its groups and sources count besides."""
    (controller.folder / "lib").mkdir()
    (controller.folder / "lib" / "pyproject.toml").write_text(
        '[project]\nname = "lib"\nversion = "1"\n[build-system]\nrequires = []\n'
    )
    text = PROJECT + '[dependency-groups]\ng = ["mine"]\n' + INDEX.format("tool.uv.", "../company")
    text += '[tool.uv.sources]\nlib = { path = "../lib" }\n[tool.uv]\npackage = false\nenvironments = []\n'
    result = controller.resolve(text, groups=["g"], uv_settings=HARMLESS)
    assert "mine==1.0" in result["locks"]["here"]


def test_a_setting_that_only_a_project_may_have(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # at which uv would break its lines
    with pytest.raises(Failure, match=r"python_env_uv_settings has what no uv\.toml may have"):
        controller.resolve("mine\n", "requirements.txt", uv_settings={"package": False})


BACKEND = """import inner, zipfile
def get_requires_for_build_wheel(settings=None): return []
def build_wheel(folder, settings=None, metadata=None):
    about = "lib-1.dist-info"
    with zipfile.ZipFile(folder + "/lib-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(about + "/METADATA", "Metadata-Version: 2.1\\nName: lib\\nVersion: 1\\n")
        wheel.writestr(about + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(about + "/RECORD", "")
    return "lib-1-py3-none-any.whl"
"""


def test_a_project_with_an_index_in_pypis_place(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyPI, which may be closed, is not asked, also for what the build of a project beside it needs."""
    lib = controller.folder / "lib"
    lib.mkdir()
    build = '[build-system]\nrequires = ["inner"]\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    (lib / "pyproject.toml").write_text(f'[project]\nname = "lib"\nversion = "1"\n{build}')
    (lib / "backend.py").write_text(BACKEND)
    monkeypatch.delenv("UV_OFFLINE")
    monkeypatch.setattr(uv.Uv, "_try", staticmethod(lambda place, problems: problems.update({place: "it is closed"})))
    text = PROJECT + 'dependencies = ["mine", "lib"]\n[tool.uv.sources]\nlib = { path = "../lib" }\n'
    index = INDEX.format("tool.uv.", "../company")
    result = controller.resolve(text + index)
    assert "mine==1.0" in result["locks"]["here"]
    assert result["wheels"] == ["lib-1-py3-none-any.whl"]
    more = '[[tool.uv.index]]\nurl = "https://more.example.org/simple"\n'
    with pytest.raises(
        Failure, match=r"does not reach the index https://more\.example\.org/simple: it is closed; take"
    ):
        controller.resolve(text + index + more)
    with pytest.raises(Failure, match=r"does not reach the index https://pypi\.org/simple: it is closed; set"):
        controller.resolve(text)


@pytest.fixture
def pages(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of the company's folder."""
    monkeypatch.delenv("UV_OFFLINE")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=controller.company)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("where", ["line", "line with a variable", "machine", "uv.toml", "project", "inventory"])
def test_a_page_of_links_goes_to_the_nodes(
    controller: Controller, pages: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Resolution found the packages, and every node then said that there are none."""
    url, settings = f"{pages}/mine/", {"index_url": "none"}
    text, name = "mine\n", "requirements.txt"
    if where == "line":
        text += f"-f {url}\n"
    elif where == "line with a variable":
        monkeypatch.setenv("TOKEN", "hush-4711")
        text += f"-f {url.replace('//', '//user:${TOKEN}@')}\n"
    elif where == "machine":
        monkeypatch.setenv("UV_FIND_LINKS", url.replace("//", "//user:hush-4711@"))
    elif where == "uv.toml":
        (controller.home / ".config" / "uv" / "uv.toml").write_text(f'find-links = ["{url}"]\n')
    elif where == "project":
        text, name = f'{PROJECT}dependencies = ["mine"]\n[tool.uv]\nfind-links = ["{url}"]\n', "pyproject.toml"
    result = controller.resolve(text, name, **settings, **({"find_links": [url]} if where == "inventory" else {}))
    assert "mine==1.0" in result["locks"]["here"]
    assert result["find_links"] == ([] if where == "inventory" else [url])
    assert result["wheels"] == []


@pytest.mark.parametrize("where", ["project", "machine"])
def test_the_files_of_a_folder_of_links_go_to_the_nodes(
    controller: Controller, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    text = f'{PROJECT}dependencies = ["mine"]\n'
    if where == "project":
        text += '[tool.uv]\nfind-links = ["../company/mine"]\n'
    else:
        monkeypatch.setenv("UV_FIND_LINKS", (controller.company / "mine").as_uri())
    result = controller.resolve(text, index_url="none")
    assert (result["find_links"], result["wheels"]) == ([], ["mine-1.0-py3-none-any.whl"])
