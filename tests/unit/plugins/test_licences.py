# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each file names its licence, by the folder that it lies in."""

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
import tomllib
import yaml
from playing import ROOT

GPL, BSD, MIT = "GPL-3.0-or-later", "BSD-2-Clause", "MIT"
LICENCES = {
    "**": GPL,  # what imports Ansible has to be; tests, docs and the rest are as well
    "plugins/module_utils/**": BSD,
    "train/**": MIT,  # what users start from, and make their own
    "inventory/**": MIT,
    "requirements.txt": MIT,
}
"""Which counts for what; a later one before an earlier one. REUSE.toml says the same."""
NAMED_WITHIN = (
    *("*.py", "*.sh", "*.yml", "*.yaml", "*.toml", "*.cfg", ".ci/run", "Makefile"),
    # These have it in REUSE.toml alone: what stands for users' files, what users copy, and what a tool writes.
    *("!tests/field/*", "!tests/*/project/*", "!inventory/*", "!changelogs/*", "!REUSE.toml"),
)
"""Files that name it themselves, in a line of their own at the top; with ! those that do not."""
CODE = re.compile(r"^plugins/(?!module_utils/).*\.py$")
GPL_LINE = (
    "# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)"
)
"""What ansible-test looks for in a module."""


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def licence(name: str) -> str:
    return [one for pattern, one in LICENCES.items() if fnmatch(name, pattern)][-1]


def names_it(name: str) -> bool:
    fits = [not pattern.startswith("!") for pattern in NAMED_WITHIN if fnmatch(name, pattern.removeprefix("!"))]
    return bool(fits) and all(fits)


@pytest.mark.parametrize("folder", sorted({name.partition("/")[0] for name in tracked()}))
def test_files_name_their_licence(folder: str) -> None:
    names = [name for name in tracked() if name.partition("/")[0] == folder]
    for name in filter(names_it, names):
        head = (ROOT / name).read_text(encoding="utf-8").splitlines()[:6]
        assert f"# SPDX-License-Identifier: {licence(name)}" in head, name
        assert "# Copyright (c) The Thunderhead developers" in head, name
        assert (GPL_LINE in head) is bool(CODE.match(name)), name
    for name in names:
        if not names_it(name):
            assert b"SPDX-License-Identifier: " not in (ROOT / name).read_bytes()[:400], name


def test_reuse_has_the_same_table() -> None:
    annotations = tomllib.loads((ROOT / "REUSE.toml").read_text())["annotations"]
    said = {path: one["SPDX-License-Identifier"] for one in annotations for path in [*one["path"]]}
    assert said == LICENCES
    assert all(one["precedence"] == "closest" for one in annotations)


def test_every_licence_has_its_text() -> None:
    assert {path.stem for path in (ROOT / "LICENSES").iterdir()} == set(LICENCES.values())
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "LICENSES" / f"{GPL}.txt").read_bytes()


def test_galaxy_and_the_roles_are_told() -> None:
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text())
    assert galaxy["license"] == list(dict.fromkeys(LICENCES.values()))
    assert "license_file" not in galaxy  # one of the two
    for path in Path(ROOT, "roles").glob("*/meta/main.yml"):
        assert yaml.safe_load(path.read_text())["galaxy_info"]["license"] == GPL
