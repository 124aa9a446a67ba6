# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The code that reaches the nodes: what was chosen of a project, and what did not travel, by name."""

import hashlib
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from machines import USER, Cluster

LARGE_BYTES = 30 * 2**20
TRAIN = """\
import hashlib, os, sys
from .helper import NAME
from . import _version
with open("data/large.bin", "rb") as file:
    print(NAME, hashlib.file_digest(file, "sha256").hexdigest(), os.environ["JOB_GIT_COMMIT"][-5:], *sys.argv[1:])
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with a package, of which git ignores the version, and the data."""
    folder = tmp_path / "project"
    for name, text in {
        "pkg/__init__.py": "",
        "pkg/train.py": TRAIN,
        "pkg/helper.py": 'NAME = "helped"\n',
        "pkg/_version.py": "",
        ".gitignore": "_version.py\ndata/\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "data").mkdir()
    (folder / "data" / "large.bin").write_bytes(os.urandom(LARGE_BYTES))
    identity = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-C", folder, *command], check=True)
    return folder


def test_what_did_not_travel_is_named_and_comes_with_the_option_that_is_named(cluster: Cluster, project: Path) -> None:
    """Two things are missing; each time the words say which, and what to type."""
    code = ["-e", f"project_dir={project}", "-e", "module=pkg.train"]
    others = "inventory,names,reach,collective,hardware,time,software.environment,software.versions"
    preflight = cluster.playbook("preflight.yml", *code, "-e", f"skip={others}")
    assert preflight.wait() == 2
    assert "software.imports" in preflight.words and "pkg/_version.py" in preflight.words, preflight.text
    for node in cluster.nodes:
        assert node.execute("find", "/tmp", "/var/tmp", "-name", "thunderhead-*") == ""

    asked = [*code, "-e", "logs=all", "-e", "script_args='--rank $NODE_RANK of ${NUM_NODES} for $$5'"]
    first = cluster.playbook("run.yml", *asked)
    assert first.wait() == 2
    assert (
        "not part of the job's code: 2 files that git ignores, the largest data/large.bin (31.5 MB)" in first.words
    ), first.text
    record = cluster.record(first.job)
    missed = (
        r"\((\S+) lies in the project, but git ignores it, so it was no part of the job's code; "
        r"bring it with -e (\S+)\)"
    )
    found = re.search(missed, record["cause"])
    assert found and found[1] == "pkg/_version.py", record["cause"]
    assert found[0] in first.words, first.text

    second = cluster.playbook("run.yml", *asked, "-e", *shlex.split(found[2]))
    assert second.wait() == 2
    found = re.search(missed, cluster.record(second.job)["cause"])
    assert found and found[1] == "data/large.bin"

    (project / ".thunderheadinclude").write_text("_version.py\n*.bin\n")
    third = cluster.playbook("run.yml", *asked)
    assert third.wait() == 0, third.text
    digest = hashlib.sha256((project / "data" / "large.bin").read_bytes()).hexdigest()
    for rank, node in enumerate(cluster.nodes):
        assert third.printed(rank) == [f"helped {digest} dirty --rank {rank} of 3 for $5"]
        work = f"/opt/thunderhead/jobs/{third.job}/work"
        assert node.execute("ls", "-A", work).split() == [".gitignore", ".thunderheadinclude", "data", "pkg"]
        assert node.execute("stat", "--format=%U %s", f"{work}/data/large.bin") == f"{USER} {LARGE_BYTES}\n"
