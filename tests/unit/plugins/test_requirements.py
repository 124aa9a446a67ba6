# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requirements files as people write them: what is read, and what is refused by file and line."""

import os
import subprocess
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils._python_env.resolution import SOURCES
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.errors import JobError
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.check_lines import malware_among
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.credentials import secret_among
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.lay_out import (
    lay_out,
    lay_out_project,
)
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.local_projects import files_of
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.read_requirements import read
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine.requirements.requirements import Requirements
from local_nodes import IS_ROOT, NOBODY, closed


def file(folder: Path, text: str | bytes, name: str = "requirements.txt") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def project(folder: Path) -> None:
    file(folder, '[project]\nname = "mine"\nversion = "1"\n', "pyproject.toml")
    file(folder, "", "mine/__init__.py")


def refused(folder: Path, text: str | bytes, name: str = "requirements.txt") -> str:
    with pytest.raises(JobError) as caught:
        read(file(folder, text, name))
    return str(caught.value).replace(f"{folder}/", "")


# ------------------------------------------------------------------------------------------------------ what is read


def test_files_include_others_relative_to_themselves(tmp_path: Path) -> None:
    file(tmp_path, "one\n-r three.txt\n", "sub/two.txt")
    file(tmp_path, "three # a comment\n", "sub/three.txt")
    file(tmp_path, "numpy<2\n", "limits.txt")
    found = read(file(tmp_path, "-r sub/two.txt\n-climits.txt\n--requirement=sub/three.txt\nfour\\\n  >=1\n"))
    assert found.lines == ["one", "three", "three", "four  >=1"]
    assert found.constraints == ["numpy<2"]
    assert len(found.contents) == 4


def test_options_that_are_pips_alone(tmp_path: Path) -> None:
    text = "--pre\n--prefer-binary\n--trusted-host example.org\n--use-feature=fast-deps\nsix\n"
    found = read(file(tmp_path, text))
    assert (found.lines, found.takes_prereleases) == (["six"], True)


def test_several_options_on_one_line(tmp_path: Path) -> None:
    """Pip takes each."""
    for name in ("one.txt", "limits.txt"):
        file(tmp_path, f"{name[:3]}\n", name)
    (tmp_path / "my wheels").mkdir()
    text = "--extra-index-url https://a.example.org/ --trusted-host a.example.org\n"
    text += "-i https://b.example.org/ --extra-index-url=https://c.example.org/ --pre # a comment\n"
    text += "-r one.txt -c limits.txt -f'my wheels' --no-index --no-binary six,idna --only-binary=yarl\n"
    text += "--no-index \\\n -f 'https://d.example.org/a b'\n"
    found = read(file(tmp_path, text))
    expected = ["--extra-index-url https://a.example.org/", "--index-url https://b.example.org/"]
    expected += ["--extra-index-url https://c.example.org/", "one", f"--find-links {SOURCES}/0/my_wheels", "--no-index"]
    expected += ["--no-binary six", "--no-binary idna", "--only-binary yarl", "--no-index"]
    assert found.lines == [*expected, "--find-links https://d.example.org/a b"]
    assert (found.constraints, found.takes_prereleases) == (["lim"], True)
    urls = [f"https://{name}.example.org/" for name in ("a", "b", "c")]
    assert found.indexes == [*urls, "https://d.example.org/a b"]


@pytest.mark.parametrize(
    ("option", "rest"),
    [
        ("-i https://example.org/", "six"),
        ("-i = https://example.org/", "six"),
        ("--extra-index-url https://example.org/", "https://b.example.org/"),
        ("--extra-index-url https://example.org/", "; python_version > '3'"),
        ("-r https://example.org/r.txt", "six"),
        ("-e git+https://example.org/r.git", "six"),
        ("-f 'my wheels'", "six"),
        ("--pre", "six idna"),
        ("--no-index", "six"),
        ("--trusted-host=example.org", "six"),
        ("--no-binary a", "six"),
    ],
)
def test_what_stands_behind_an_option(tmp_path: Path, option: str, rest: str) -> None:
    """Pip passes over it without a word."""
    (tmp_path / "my wheels").mkdir()
    name = option.replace("=", " ").split()[0]
    assert refused(tmp_path, f"six\n{option} {rest}\n") == (
        f"requirements.txt line 2 has {rest} behind the option {name}, where pip ignores it; write it into a "
        "line of its own"
    )


def test_hashes_of_constraints(tmp_path: Path) -> None:
    """As pip-compile writes them; pip heeds them."""
    file(
        tmp_path,
        "six==1.0 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\nIdna==1.0 --hash=sha256:22\n",
        "locked.txt",
    )
    found = read(file(tmp_path, "six --hash=sha256:33\n-c locked.txt\n"))
    assert found.hashes == {"six": ["sha256:33", "sha256:00", "sha256:11"], "idna": ["sha256:22"]}
    assert (found.lines, found.constraints) == (["six"], ["six==1.0", "Idna==1.0"])


def test_hashes_that_are_required(tmp_path: Path) -> None:
    file(tmp_path, "six==1.0 --hash=sha256:00\n", "locked.txt")
    assert read(file(tmp_path, "--require-hashes\nsix\n-c locked.txt\n")).lines == ["six"]
    assert refused(tmp_path, "six==1.0\n--require-hashes\n") == (
        "requirements.txt line 2 requires hashes, and no line of a package has one; uv pip compile "
        "--generate-hashes writes such a file"
    )


def test_files_that_include_each_other(tmp_path: Path) -> None:
    file(tmp_path, "-r requirements.txt\ntwo\n", "two.txt")
    assert read(file(tmp_path, "-r two.txt\none\n")).lines == ["two", "one"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-e ./libs/x", f"mine @ file://{SOURCES}/0/x"),
        ("--editable=libs/x[extra]", f"mine[extra] @ file://{SOURCES}/0/x"),
        ("./libs/x ; python_version > '3'", f"mine @ file://{SOURCES}/0/x ; python_version > '3'"),
        ("-e libs/old[extra]", f"file://{SOURCES}/0/old[extra]"),
        ("-e ./libs/x ; python_version > '3'", f"mine @ file://{SOURCES}/0/x ; python_version > '3'"),
        ("-e \"./libs/x ; sys_platform > '3'\"", f"mine @ file://{SOURCES}/0/x ; sys_platform > '3'"),
        ("--index-url = https://example.org/simple", "--index-url https://example.org/simple"),
        ("mine @ file:./libs/x", f"mine @ file://{SOURCES}/0/x"),
        ("mine[extra] @ file://{folder}/libs/x", f"mine[extra] @ file://{SOURCES}/0/x"),
        ("libs/mine-1.0.tar.gz", f"file://{SOURCES}/0/mine-1.0.tar.gz"),
        ("--find-links wheels", f"--find-links {SOURCES}/0/wheels"),
        ("-f wheels", f"--find-links {SOURCES}/0/wheels"),
        ("--find-links=https://example.org/wheels", "--find-links https://example.org/wheels"),
        ("--extra-index-url https://example.org/simple", "--extra-index-url https://example.org/simple"),
        ("git+https://git@github.com/o/r.git@v1", "git+https://git@github.com/o/r.git@v1"),
        ("r @ git+ssh://git@github.com/o/r.git", "r @ git+ssh://git@github.com/o/r.git"),
        (
            "git+https://example.org/r.git#subdirectory=a&egg=r-1_x",
            "r-1_x @ git+https://example.org/r.git#subdirectory=a&egg=r-1_x",
        ),
        ("-e git+https://example.org/r.git@v1#egg=r[x]", "r[x] @ git+https://example.org/r.git@v1#egg=r"),
        ("-r https://example.org/requirements.txt", None),
        ("--no-binary six", None),
        ("six; python_version < '4'", "six; python_version < '4'"),
        ("ruamel.yaml[jinja2] == 0.18 ; sys_platform == 'linux'", None),
        ("torch==2.1.0+cu121", None),
        ("lightning==2.6.1", None),
        ("lightning!=2.6.2", None),
        ("lightning-utilities==2.6.2", None),
        ("https://example.org/a%2Db-1.0-py3-none-any.whl", None),
    ],
)
def test_lines_for_uv(tmp_path: Path, line: str, expected: str | None) -> None:
    project(tmp_path / "libs" / "x")
    file(tmp_path, b"", "libs/mine-1.0.tar.gz")
    (tmp_path / "wheels").mkdir()
    file(tmp_path, "", "libs/old/setup.py")
    assert read(file(tmp_path, line.format(folder=tmp_path) + "\n")).lines == [expected or line]


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffidna==3.20\nsix\n".encode(),
        "idna==3.20\nsix\n".encode("utf-16"),
        "idna==3.20\r\nsix\r\n".encode("utf-16"),
        b"idna==3.20\rsix\r",
        b"# -*- coding: latin-1 -*-\nidna==3.20 # caf\xe9\nsix\n",
        b"idna==3.20 # caf\xc3\xa9\nsix\n",
    ],
    ids=["bom", "utf-16", "powershell", "cr", "latin-1", "utf-8"],
)
def test_encodings(tmp_path: Path, content: bytes) -> None:
    assert read(file(tmp_path, content)).lines == ["idna==3.20", "six"]


def test_pylock(tmp_path: Path) -> None:
    text = """lock-version = "1.0"
[[packages]]
name = "idna"
version = "3.20"
marker = "python_version > '3'"
sdist = { url = "https://example.org/idna.tar.gz", hashes = { sha256 = "aa" } }
wheels = [{ url = "https://example.org/idna.whl", hashes = { sha256 = "bb" } }]
[[packages]]
name = "mine"
directory = { path = "libs/x" }
"""
    project(tmp_path / "libs" / "x")
    found = read(file(tmp_path, text, "pylock.toml"))
    assert found.lines == ["idna==3.20 ; python_version > '3'", f"mine @ file://{SOURCES}/0/x"]
    assert found.hashes["idna"] == ["sha256:bb", "sha256:aa"]


def test_extras_and_groups(tmp_path: Path) -> None:
    found = read(file(tmp_path, "[project]\n", "pyproject.toml"), ["a"], ["dev"])
    assert found.arguments == ["pyproject.toml", "--extra=a", "--group=pyproject.toml:dev"]
    with pytest.raises(JobError, match="has no extras or groups; take python_env_extras"):
        read(file(tmp_path, "idna\n"), ["a"])


# -------------------------------------------------------------------------------------------------- what is refused


def test_a_freeze_of_a_machine_is_told_at_once(tmp_path: Path) -> None:
    text = (
        "# made by pip freeze\n"
        "idna @ file:///croot/idna_1714398848350/work\n"
        "numpy==1.26.4\n"
        "pkg-resources==0.0.0\n"
        "torch==2.1.0+cu121\n"
        "nvidia-cublas-cu12==12.1.3.1\n"
        "nvidia-ml-py==12.535\n"
        "python=3.11=h123\n"
        "numpy @ file:///croot/numpy_1/work/dist/numpy-2.2.5-cp310-cp310-linux_x86_64.whl\n"
        "pywin32==306\n"
        "old @ file:///home/me/old-1.0.1%2Bcu118torch2.1-cp310-cp310-linux_x86_64.whl#sha256=00\n"
    )
    said = refused(tmp_path, text).splitlines()
    assert said == [
        "requirements.txt has 5 lines that nodes cannot install:",
        "requirements.txt line 2 names file:///croot/idna_1714398848350/work, a place on the machine that made this "
        "list; write idna==VERSION, as this prints there: pip list --format=freeze",
        "requirements.txt line 4 is no package (Debian's pip writes pkg-resources==0.0.0); leave it out",
        "requirements.txt line 8 is as conda writes it (python=3.11=h123); write python==3.11",
        "requirements.txt line 9 names file:///croot/numpy_1/work/dist/numpy-2.2.5-cp310-cp310-linux_x86_64.whl, a "
        "place on the machine that made this list; write numpy==2.2.5",
        "requirements.txt line 11 names file:///home/me/old-1.0.1%2Bcu118torch2.1-cp310-cp310-linux_x86_64.whl, a "
        "place on the machine that made this list; write old==1.0.1",
        "Lines that often fit only the machine that made the list:",
        "requirements.txt line 5 pins the build cu121 of torch; write torch==2.1.0: python_env_torch_backend "
        "sets which build a node gets",
        "requirements.txt line 6 belongs to one build of torch, which brings what it needs itself; leave it out",
        "requirements.txt line 10 is only for another system than Linux; leave it out",
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "-e .",
            "names the folder requirements, which has neither pyproject.toml nor setup.py; it is taken relative to "
            "requirements; write .. for ",
        ),
        (
            "./libs/x",
            "names ./libs/x, and there is nothing at requirements/libs/x; it is taken relative to requirements; write "
            "../libs/x for libs/x",
        ),
        ("./none", "names ./none, and there is nothing at requirements/none; correct it, or leave it out"),
    ],
)
def test_a_path_that_pip_takes_relative_to_where_it_is_started(tmp_path: Path, line: str, expected: str) -> None:
    project(tmp_path)
    project(tmp_path / "libs" / "x")
    said = refused(tmp_path, line + "\n", "requirements/dev.txt")
    assert said.startswith(f"requirements/dev.txt line 1 {expected}")


def test_what_pip_does_not_heed_behind_a_package(tmp_path: Path) -> None:
    """OpenMMLab's files have it."""
    text = "six>=1 --prefer-binary # a comment\nidna --pre --trusted-host=example.org\n"
    assert read(file(tmp_path, text)).lines == ["six>=1", "idna"]


@pytest.mark.parametrize("option", ["-f", "-i", "--find-links", "--index-url", "--extra-index-url"])
def test_a_place_of_packages_behind_one(tmp_path: Path, option: str) -> None:
    """Pip ignores it, and finds the package elsewhere; where nothing does, the message names it."""
    text = f"six\ntorch==2.1.0 {option} https://example.org/torch_stable.html ; python_version > '3'\n"
    found = read(file(tmp_path, text))
    assert (found.lines, found.indexes) == (["six", "torch==2.1.0 ; python_version > '3'"], [])
    expected = f"has the option {option} behind a package, where it does not count; write it into a line of its own"
    assert found.soft == [f"{found.path} line 2: {expected}"]
    said = refused(tmp_path, f"torch==2.1.0 {option}=https://user:pass@example.org/torch_stable.html\n")
    assert said.startswith("requirements.txt line 1 holds a password or a token in a URL")


def test_what_pip_heeds_wherever_it_stands(tmp_path: Path) -> None:
    """OpenMMLab's files have it behind a package; uv takes it in a line of its own, with one package each."""
    file(tmp_path, "yarl<9 --no-binary yarl\n", "limits.txt")
    text = "six>=1 --no-binary qudida,six # a comment\nidna --only-binary=:all:\n--only-binary a,b --no-binary c\n"
    found = read(file(tmp_path, text + "-c limits.txt\n"))
    expected = ["--no-binary qudida", "--no-binary six", "six>=1", "--only-binary :all:", "idna"]
    expected += ["--only-binary a", "--only-binary b", "--no-binary c", "--no-binary yarl"]
    assert (found.lines, found.constraints) == (expected, ["yarl<9"])
    assert found.places["--no-binary six"] == f"{found.path} line 1"


def test_what_may_fit_is_left_to_the_resolution(tmp_path: Path) -> None:
    found = read(file(tmp_path, "torch==2.1.0+cu121\nnvidia-cublas-cu12==12.1.3.1\nnvidia-ml-py==12.535\n"))
    assert [one.partition(": ")[0] for one in found.soft] == [f"{found.path} line 1", f"{found.path} line 2"]


@pytest.mark.parametrize(
    "text",
    [
        "lightning==2.6.2",
        "\ufefflightning==2.6.2 --hash=sha256:00",
        "Lightning [extra] === 2.6.3",
        "pytorch_lightning==2.6.02",
        "lightning==v2.6.2.0",
        "lightning\\\n==2.6.3",
        "https://example.org/lightning%2D2.6.2-py3-none-any.whl",
        "lightning @ https://example.org/lightning-2.6.3.tar.gz",
        "./lightning-2.6.2-py3-none-any.whl",
    ],
)
def test_malware(tmp_path: Path, text: str) -> None:
    assert "which was malware (GHSA-w37p-236h-pfx3); ask for another version there" in refused(tmp_path, text + "\n")
    assert refused(tmp_path, text + "\n").startswith("requirements.txt line 1 asks for ")


@pytest.mark.parametrize(
    ("lock", "is_malware"),
    [
        ("lightning==2.6.2 \\\n    --hash=sha256:00\n", True),
        ("idna==3.20\npytorch-lightning==2.6.3\n", True),
        ("lightning @ https://example.org/lightning-2.6.2-py3-none-any.whl\n", True),
        ("lightning @ file://${THUNDERHEAD_WHEELS}/lightning-2.6.3-py3-none-any.whl\n", True),
        ("lightning==2.6.20\nlightning-utilities==2.6.2\n", False),
        ("lightning==2.6.6\n", False),
    ],
)
def test_malware_in_a_lock(lock: str, is_malware: bool) -> None:
    assert bool(malware_among(lock)) is is_malware


@pytest.mark.parametrize(
    ("line", "holds_some"),
    [
        ("--index-url https://user:token@example.org/simple", True),
        ("-i HTTPS://token@example.org/simple", True),
        ("--extra-index-url https://user:pa$$word@example.org/simple", True),
        ("--extra-index-url https://user:${TOKEN}x@example.org/simple", True),
        ("tiny @ https://user:token@example.org/tiny-1.0-py3-none-any.whl", True),
        ("git+https://oauth2:secret@example.org/r.git", True),
        ("git+https://token:@example.org/r.git", True),
        ("-i https://token:@example.org/simple", True),
        ("git+https://git@github.com/o/r.git", False),
        ("git+ssh://me@github.com/o/r.git", False),
        ("-i https://example.org/simple https://user:token@example.org/", True),
        ("--pre -i https://example.org/simple -f https://user:token@example.org/", True),
        ("--index-url https://${TOKEN}@example.org/simple", False),
        ("--index-url https://${TOKEN}:@example.org/simple", False),
        ("--index-url https://__token__:${TOKEN}@example.org/simple", False),
        ("--index-url https://${NAME}:${TOKEN}@example.org/simple", False),
        ("--index-url https://example.org/simple/a@b", False),
        ("tiny @ https://user:${TOKEN}@example.org/tiny-1.0-py3-none-any.whl", None),
        ("git+https://${TOKEN}@example.org/r.git", None),
        ("-e git+https://oauth2:${TOKEN}@example.org/r.git", None),
        ("six # see https://example.com?mail=a@b and https://user:pass@example.com", False),
        ("six @ https://example.org/six-1.0-py3-none-any.whl?by=a@b", False),
    ],
)
def test_passwords(tmp_path: Path, line: str, holds_some: bool | None) -> None:
    """R6. None: a variable where uv fills in none."""
    if holds_some is None:
        said = refused(tmp_path, f"idna\n{line}\n")
        assert said.startswith("requirements.txt line 2 has a variable in the URL of a package, which is not filled in")
    elif holds_some:
        assert refused(tmp_path, f"idna\n{line}\n").startswith("requirements.txt line 2 holds a password or a token in")
    else:
        read(file(tmp_path, f"idna\n{line}\n"))


@pytest.mark.parametrize("user", ["user:hush-4711@", "hush-4711@", "user:${HUSH}@"])
@pytest.mark.parametrize(
    "content",
    [
        'dependencies = [\n"tiny @ https://USERexample.org/tiny.whl"]\n',
        "[tool.uv.sources]\ntiny = { git = 'https://USERexample.org/r.git' }\n",
        '[[tool.uv.index]]\nurl = "https://USERexample.org/simple" # with a password\n',
    ],
)
@pytest.mark.parametrize("place", ["pyproject.toml", "uv.lock", "lib/pyproject.toml"])
def test_passwords_in_toml(tmp_path: Path, place: str, content: str, user: str) -> None:
    """They would go into the lock, the output of --diff and files on the nodes."""
    project(tmp_path)
    file(tmp_path, content.replace("USER", user), place)
    file(tmp_path, "-e ./lib\n")
    name = "requirements.txt" if place.startswith("lib") else place
    with pytest.raises(JobError) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path}/{place} line 2 holds a password or a token in a URL, which is no")
    assert "hush-4711" not in str(caught.value)
    file(tmp_path, content.replace("USER", "git@"), place)
    read(tmp_path / name)


def test_a_password_that_another_project_brings_into_the_lock() -> None:
    assert secret_among("tiny @ https://user:hush-4711@example.org/t.whl\n").startswith(
        "leads to tiny, with a password"
    )
    assert not secret_among("tiny @ https://git@example.org/t.whl\nsix==1 ; x > 'a @ https://b:c@d'\n")


def test_variables_for_the_machine_that_resolves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hush-4711")
    monkeypatch.delenv("NO_SUCH", raising=False)
    text = "-i https://u:${TOKEN}@example.org/\n-f https://${NO_SUCH}@example.org/\nsix ; extra == '${HOME}'\n"
    assert read(file(tmp_path, text)).variables() == {"TOKEN": "hush-4711"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("environment.yml", "name: x\n", "environment.yml is an environment of conda, and nodes are set up with"),
        (
            "setup.py",
            "import x\n",
            "setup.py defines how a project is built; write -e . into a requirements.txt beside it",
        ),
        ("poetry.lock", "", "poetry.lock is another tool's lock file; run: poetry export -o requirements.txt, and"),
        ("requirements.txt", "-r base.txt\n", "requirements.txt line 1 names base.txt, and there is no file base.txt"),
        ("requirements.txt", "--find-links wheels\n", "line 1 names wheels, and there is no folder wheels; correct it"),
        ("requirements.txt", "-e .\n", "line 1 names the folder"),
        ("requirements.txt", "six\n-U\n", "requirements.txt line 2 has the option -U, which is not taken from a file"),
        (
            "requirements.txt",
            'six --global-option="x"\n',
            "line 1 has the option --global-option, which uv does not take",
        ),
        ("requirements.txt", "six\n./x\n", "line 2 names ./x, and there is nothing at x"),
        ("requirements.txt", "six\nidna = 3\n", "requirements.txt line 2 is no requirement ("),
        ("requirements.txt", b"six\nidna # caf\xe9\n", "requirements.txt line 2 is not in UTF-8; save it as UTF-8, or"),
        ("requirements.txt", b"# coding: no-such\nsix\n", "requirements.txt cannot be read as no-such"),
        ("pylock.toml", "a = ", "pylock.toml is no lock file as PEP 751 has it"),
        ("uv.lock", "", "uv.lock lies without its pyproject.toml"),
    ],
)
def test_what_cannot_be_installed(tmp_path: Path, name: str, content: Any, message: str) -> None:
    assert message in refused(tmp_path, content, name)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"The requirements file .*/none\.txt does not exist on the controller"):
        read(tmp_path / "none.txt")
    with pytest.raises(JobError, match="is a folder; set python_env_requirements to a file in it"):
        read(tmp_path)


# ------------------------------------------------------------------------------------------- what decides the content


def digest(path: Path, **settings: Any) -> str:
    return read(path).digest(settings)


def test_the_digest_is_that_of_all_that_is_named(tmp_path: Path) -> None:
    project(tmp_path / "mine")
    file(tmp_path, "idna\n", "base.txt")
    path = file(tmp_path, "-r base.txt\n-e mine\n")
    first = digest(path)
    assert digest(path) == first
    assert digest(path, index_url="https://a:b@example.org/") == digest(path, index_url="https://c:d@example.org/")
    assert digest(path, index_url="https://example.org/") != first
    file(tmp_path, "", "mine/mine.egg-info/PKG-INFO")  # what a build leaves there
    assert digest(path) == first
    file(tmp_path, "x = 1\n", "mine/mine/__init__.py")
    second = digest(path)
    file(tmp_path, "six\n", "base.txt")
    assert len({first, second, digest(path)}) == 3


def test_what_git_ignores_is_no_part_of_a_project(tmp_path: Path) -> None:
    project(tmp_path / "mine")
    subprocess.run(["git", "init", "-q", tmp_path / "mine"], check=True)
    file(tmp_path, "data/\n", "mine/.gitignore")
    path = file(tmp_path, "-e mine\n")
    first = digest(path)
    file(tmp_path, "1\n", "mine/data/large.bin")
    assert digest(path) == first
    (tmp_path / "there").mkdir()
    lay_out(read(path), tmp_path / "there")
    laid = {str(one.relative_to(tmp_path / "there")) for one in (tmp_path / "there").rglob("*") if one.is_file()}
    expected = {"0/mine/.gitignore", "0/mine/pyproject.toml", "0/mine/mine/__init__.py"}
    assert {one for one in laid if ".git/" not in one} == expected


SOURCED = '[project]\nname = "app"\nversion = "1"\ndependencies = ["lib"]\n[tool.uv.sources]\n'


@pytest.mark.parametrize("name", ["pyproject.toml", "uv.lock"])
@pytest.mark.parametrize(
    ("content", "changed"),
    [
        (f'{SOURCED}lib = {{ path = "../lib", editable = true }}\n', "lib/lib.py"),
        (f'{SOURCED}lib = [{{ path = "../lib", marker = "x" }}]\n', "lib/lib.py"),
        (f'{SOURCED}lib = {{ path = "../lib" }}\n', "other/other.py"),  # which lib takes in turn
        (f'{SOURCED}lib = {{ path = "../lib.whl" }}\n', "lib.whl"),
        (
            f'{SOURCED}lib = {{ workspace = true }}\n[tool.uv.workspace]\nmembers = ["packages/*"]\n',
            "app/packages/lib/x.py",
        ),
        ('[project]\nname = "app"\nversion = "1"\ndependencies = ["lib @ file://FOLDER/lib"]\n', "lib/lib.py"),
    ],
)
def test_what_a_pyproject_takes_from_beside_it(tmp_path: Path, name: str, content: str, changed: str) -> None:
    file(tmp_path, content.replace("FOLDER", str(tmp_path)), "app/pyproject.toml")
    file(tmp_path, "version = 1\n", "app/uv.lock")
    file(tmp_path, f'{SOURCED}other = {{ path = "../other" }}\n', "lib/pyproject.toml")
    for place in ("other", "app/packages/lib"):
        file(tmp_path, "[project]\n", f"{place}/pyproject.toml")
    file(tmp_path, "", "lib.whl")
    path = tmp_path / "app" / name
    first = digest(path)
    file(tmp_path, "changed = True\n", changed)
    assert digest(path) != first
    with pytest.raises(
        JobError, match=r"takes .* from the controller, which is sent to no node; set python_env_resolve_on"
    ):
        lay_out_project(read(path), tmp_path)


def test_a_project_that_takes_another_from_outside_of_it(tmp_path: Path) -> None:
    """It is built from a copy."""
    for place in ("lib", "app/inner"):
        file(tmp_path, "[project]\n", f"{place}/pyproject.toml")
    file(tmp_path, f'{SOURCED}lib = {{ path = "inner" }}\n', "app/pyproject.toml")
    read(file(tmp_path, "-e app\n"))
    file(tmp_path, f'{SOURCED}lib = {{ path = "../lib" }}\n', "app/pyproject.toml")
    said = refused(tmp_path, "-e app\n")
    assert said == (
        "app/pyproject.toml takes lib from outside of its project (tool.uv.sources), and is built from a copy; name "
        "each in a line of its own, as in -e lib, and set python_env_uv_settings: {no-sources: true}"
    )
    read(tmp_path / "requirements.txt", has_sources=False)


def test_what_a_pyproject_takes_from_where_nothing_is(tmp_path: Path) -> None:
    said = refused(tmp_path, f'{SOURCED}lib = {{ path = "lib" }}\n', "pyproject.toml")
    assert said == "pyproject.toml names lib, and there is nothing; correct it"
    for odd in ("tool = 1", "[tool.uv]\nsources = [1]", "[project]\ndynamic = 1", "a = "):
        read(file(tmp_path, odd, "pyproject.toml"))


def test_dependencies_that_only_a_build_says(tmp_path: Path) -> None:
    """They are in whatever file: each counts, and each is sent."""
    table = '[project]\nname = "app"\nversion = "1"\ndynamic = ["dependencies"]\n[tool.setuptools.dynamic]\n'
    path = file(tmp_path / "app", table + 'dependencies = { file = ["needs/deps.txt"] }\n', "pyproject.toml")
    file(tmp_path, "six\n", "app/needs/deps.txt")
    first = digest(path)
    file(tmp_path, "idna\n", "app/needs/deps.txt")
    assert digest(path) != first
    (tmp_path / "there").mkdir()
    lay_out_project(read(path), tmp_path / "there")
    assert (tmp_path / "there" / "needs" / "deps.txt").read_text() == "idna\n"


@pytest.mark.parametrize("git", ["none", "init", "add"])
def test_packages_that_are_called_build_or_dist(tmp_path: Path, git: str) -> None:
    """What building leaves has the same names; what git tracks is nobody's leaving."""
    project(tmp_path)
    ours = ["mine/build/__init__.py", "mine/build/data/x.txt", "mine/dist/one.py", "build/__init__.py", "build/run.py"]
    left = ["dist/mine-1.0.tar.gz", "mine.egg-info/PKG-INFO", "src/mine.egg-info/PKG-INFO", "mine/__pycache__/a.pyc"]
    for name in (*ours, *left):
        file(tmp_path, "", name)
    if git != "none":
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
    if git == "add":
        subprocess.run(["git", "-C", tmp_path, "add", "-A"], check=True)
    expected = {"pyproject.toml", "mine/__init__.py", *ours, *(left if git == "add" else ())}
    assert set(files_of(tmp_path)) == expected


@pytest.mark.parametrize("in_git", [False, True])
def test_what_tools_and_jobs_have_made_is_no_part_of_a_project(tmp_path: Path, in_git: bool) -> None:
    """-e ., in an own repository without .gitignore."""
    project(tmp_path)
    job = "runs/20261122-173000-train-9f3a"
    made = [f"{job}/job.json", f"{job}/logs/rank0.log", "venv/pyvenv.cfg", "venv/lib/x.py", ".mypy_cache/x.json"]
    for name in (*made, "conda/conda-meta/history", "mine/checkpoints/small.json"):
        file(tmp_path, "", name)
    if in_git:
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert files_of(tmp_path) == ["mine/__init__.py", "mine/checkpoints/small.json", "pyproject.toml"]


@pytest.mark.parametrize("git", ["none", "init", "add"])
def test_a_linked_folder_is_part_of_a_project(tmp_path: Path, git: str) -> None:
    """Of what it leads to, in the project or outside, the same counts as of the project; a circle does no harm."""
    app = tmp_path / "app"
    project(app)
    for name in (
        "app/conf/a.yaml",
        "app/conf/ignored/big.bin",
        "shared/b.yaml",
        "shared/.mypy_cache/x",
        "shared/venv/pyvenv.cfg",
    ):
        file(tmp_path, "1", name)
    file(app, "ignored/\n", ".gitignore")
    links = {"app/mine/conf": "../conf", "app/mine/shared": str(tmp_path / "shared"), "shared/more": "../app/conf"}
    links |= {"app/mine/up": "..", "app/conf/again": "../mine/shared", "app/mine/gone": "nowhere"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    if git != "none":
        subprocess.run(["git", "init", "-q", app], check=True)
    if git == "add":
        subprocess.run(["git", "-C", app, "add", "-A"], check=True)
    found = set(files_of(app)) - {"conf/ignored/big.bin", "mine/conf/ignored/big.bin"}
    expected = {
        ".gitignore",
        "pyproject.toml",
        "mine/__init__.py",
        "conf/a.yaml",
        "mine/conf/a.yaml",
        "mine/shared/b.yaml",
    }
    assert expected <= found
    assert not [one for one in found if ".mypy_cache" in one or "venv" in one or "/up/" in one]
    assert git == "none" or not [one for one in files_of(app) if "ignored/" in one and "shared" not in one]
    path = file(tmp_path, "-e app\n")
    first = digest(path)
    file(tmp_path, "2", "shared/b.yaml")
    assert digest(path) != first
    for place, has_history in (("here", True), ("there", False)):
        (tmp_path / place).mkdir()
        lay_out(read(path), tmp_path / place, has_history)
        assert (tmp_path / place / "0/app/mine/conf/a.yaml").read_text() == "1"
        assert (tmp_path / place / "0/app/mine/shared/b.yaml").read_text() == "2"
        assert not [one for one in (tmp_path / place / "0/app").rglob("*") if one.is_symlink() and one.name != ".git"]


@pytest.mark.parametrize("git", ["none", "init", "add"])
def test_a_link_to_data_is_no_part_of_a_project(tmp_path: Path, git: str) -> None:
    """As data/ in a .gitignore does not mean it; one that git tracks, or a package, is a part."""
    project(tmp_path / "app")
    for name in ("set/0.bin", "package/__init__.py"):
        file(tmp_path, "", name)
    for name in ("set", "package"):
        (tmp_path / "app" / name).symlink_to(tmp_path / name)
    if git != "none":
        subprocess.run(["git", "init", "-q", tmp_path / "app"], check=True)
    if git == "add":
        subprocess.run(["git", "-C", tmp_path / "app", "add", "-A"], check=True)
    expected = ["mine/__init__.py", "package/__init__.py", "pyproject.toml", *(["set/0.bin"] if git == "add" else [])]
    assert files_of(tmp_path / "app") == expected


@pytest.mark.parametrize("in_git", [False, True])
def test_results_are_no_part_of_a_project(tmp_path: Path, in_git: bool) -> None:
    """A folder of such a name that is a package, or lies in one, is."""
    project(tmp_path)
    made = ["checkpoints/big.ckpt", "lightning_logs/version_0/metrics.csv", "runs/events", "wandb/run"]
    for name in (*made, "mine/checkpoints/small.json"):
        file(tmp_path, "", name)
    if in_git:
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert files_of(tmp_path) == ["mine/__init__.py", "mine/checkpoints/small.json", "pyproject.toml"]
    file(tmp_path, "", "runs/__init__.py")
    assert {"runs/__init__.py", "runs/events"} <= set(files_of(tmp_path))


@pytest.mark.parametrize("content", ["-e mine\n", "mine @ file:mine\n"])
def test_a_project_with_data(tmp_path: Path, content: str) -> None:
    """It would be copied whole, and read at every setup."""
    project(tmp_path / "mine")
    for size in range(1, 5):
        file(tmp_path, "", f"mine/data/{size}.bin")
        os.truncate(tmp_path / f"mine/data/{size}.bin", size * 2**20)
    found = read(file(tmp_path, content))
    assert found.digest({}, 11) == found.digest({}, 100)
    with pytest.raises(JobError) as caught:
        found.digest({}, 10)
    assert str(caught.value) == (
        f"{tmp_path}/mine has 10.0 MB of files, and a local project that is built may have 10 MB (job_bundle_max_mb); "
        "the largest are data/4.bin (4.0 MB), data/3.bin (3.0 MB), data/2.bin (2.0 MB); add data and results to the "
        ".gitignore of its git repository, or raise the limit"
    )


def test_no_file_is_read_whole(tmp_path: Path) -> None:
    """Of a project or an archive it may be larger than the memory."""
    project(tmp_path / "mine")
    for name in ("mine/big.bin", "mine-1.0.tar.gz"):
        file(tmp_path, "", name)
        os.truncate(tmp_path / name, 64 * 2**20)
    found = read(file(tmp_path, "-e mine\n./mine-1.0.tar.gz\n"))
    tracemalloc.start()
    found.digest({})
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


def test_a_submodule_is_part_of_a_project(tmp_path: Path) -> None:
    """Its code is built too."""
    git = ["git", "-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "protocol.file.allow=always"]
    for name in ("vendored", "mine"):
        project(tmp_path / name)
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
            subprocess.run([*git, "-C", tmp_path / name, *command], check=True)
    add = ["submodule", "--quiet", "add", tmp_path / "vendored", "vendor"]
    subprocess.run([*git, "-C", tmp_path / "mine", *add], check=True)
    own, vendored = ["mine/__init__.py", "pyproject.toml"], ["vendor/mine/__init__.py", "vendor/pyproject.toml"]
    assert files_of(tmp_path / "mine") == [".gitmodules", *own, *vendored]


@pytest.mark.parametrize("kind", ["submodule", "worktree"])
def test_a_project_whose_history_lies_elsewhere(tmp_path: Path, kind: str) -> None:
    """Its .git is a file, and may be relative; its version comes from there."""
    git = ["git", "-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "protocol.file.allow=always"]
    project(tmp_path / "vendored")
    subprocess.run(["git", "init", "-q", tmp_path / "main"], check=True)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"], ["tag", "-a", "v1.2", "-m", "one"]):
        subprocess.run([*git, "-C", tmp_path / "vendored", *command], check=True)
    if kind == "submodule":
        add = ["-C", tmp_path / "main", "submodule", "--quiet", "add", tmp_path / "vendored", "lib"]
    else:
        add = ["-C", tmp_path / "vendored", "worktree", "add", "-q", tmp_path / "main/lib"]
    subprocess.run([*git, *add], check=True)
    (tmp_path / "here").mkdir()
    lay_out(read(file(tmp_path, "-e main/lib\n")), tmp_path / "here")
    for folder in (tmp_path / "main/lib", tmp_path / "here/0/lib"):
        told = [
            subprocess.run([*git, "-C", folder, *command], check=True, capture_output=True, text=True).stdout.strip()
            for command in (["describe", "--dirty"], ["rev-parse", "--show-toplevel"], ["ls-files"])
        ]
        assert told == ["v1.2", str(folder), "mine/__init__.py\npyproject.toml"]
    file(tmp_path, "gitdir: ../gone\n", "main/lib/.git")  # copied without what it belongs to
    (tmp_path / "there").mkdir()
    lay_out(read(tmp_path / "requirements.txt"), tmp_path / "there")
    assert {one.name for one in (tmp_path / "there/0/lib").iterdir()} == {"mine", "pyproject.toml"}


@pytest.mark.parametrize(
    ("build", "has_version_of_git"),
    [
        ("setuptools>=61", False),
        ("setuptools_scm[toml]>=8", True),
        ("setuptools-scm", True),
        ("hatch-vcs", True),
        ("pbr", True),
    ],
)
def test_the_history_of_a_project_stays_on_the_controller(tmp_path: Path, build: str, has_version_of_git: bool) -> None:
    """It may hold what was deleted long ago."""
    project(tmp_path / "mine")
    subprocess.run(["git", "init", "-q", tmp_path / "mine"], check=True)
    file(tmp_path, f'[build-system]\nrequires = ["{build}"]\n[project]\nname = "mine"\n', "mine/pyproject.toml")
    found = read(file(tmp_path, "-e mine\n"))
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
    lay_out(found, tmp_path / "here")
    assert (tmp_path / "here/0/mine/.git/HEAD").is_file()
    if has_version_of_git:
        with pytest.raises(
            JobError, match=r"/mine takes its version from git's history, which is sent to no node; set"
        ):
            lay_out(found, tmp_path / "there", has_history=False)
    else:
        lay_out(found, tmp_path / "there", has_history=False)
        assert (tmp_path / "there/0/mine/pyproject.toml").is_file()
    assert not list((tmp_path / "there").rglob(".git"))


def test_nothing_is_kept_between_files(tmp_path: Path) -> None:
    assert read(file(tmp_path, "idna\n")) == read(file(tmp_path, "idna\n"))
    assert isinstance(read(file(tmp_path, "")), Requirements)


@pytest.mark.parametrize("in_git", [False, True])
def test_a_local_project_with_a_folder_that_the_user_may_not_enter(in_git: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        project = Path(name)
        (project / "closed").mkdir()
        (project / "pkg.py").touch()
        (project / "closed" / "part.py").touch()
        if in_git:
            subprocess.run(["git", "init", "--quiet", name], check=True)
            subprocess.run(["git", "-C", name, "add", "--all"], check=True)
        if IS_ROOT:
            for path in (project, *project.rglob("*")):
                os.lchown(path, NOBODY, NOBODY)
        with closed(project / "closed"):
            assert files_of(project) == ["pkg.py"]
