# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The README and docs/: links lead somewhere, CI runs the commands, and messages that are explained exist."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playing import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
OTHERS_MACHINES = ("-i inventory/mine", "thunderhead.cluster.")
"""Of commands that CI cannot run as they are: it has no other machines, and tests/collection installs it elsewhere."""
PLACEHOLDER = re.compile(r"=ID\b.*")


def anchors(page: Path) -> set[str]:
    """Return the names by which GitHub links to a page's headings."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _hash, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_the_index_has_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (DOCS / "README.md").read_text()))
    assert linked == {path.name for path in DOCS.glob("*.md")} - {"README.md"}


def test_every_page_is_a_table_with_columns_alike() -> None:
    for page in PAGES:
        for table in re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE):
            cells = [re.sub(r"`[^`]*`", "", line).count("|") for line in table.splitlines()]
            assert len(set(cells)) == 1, f"{page.name}: {table.splitlines()[0]}"


def test_ci_runs_the_commands_of_the_readme() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    demo = re.findall(r"^demo: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[0]
    assert "make demo" in ci
    run = [line.strip() for line in f"{demo}{ci}".splitlines()]
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    typed = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    playbooks = [line for line in typed if line.startswith("ansible-playbook ")]
    assert {"ansible-playbook setup.yml", "ansible-playbook run.yml -e script=train.py"} <= set(playbooks)
    for command in playbooks:
        if not any(part in command for part in OTHERS_MACHINES):
            beginning = PLACEHOLDER.sub("=", command)
            assert any(line.startswith(beginning) for line in run), f".ci/run does not run: {command}"


@functools.cache
def sentences() -> str:
    """Return all texts of plugins/ and playbooks/, with … for what is put into them."""
    found = [" ".join(path.read_text().split()) for path in sorted(ROOT.glob("playbooks/*.yml"))]
    for path in sorted(ROOT.glob("plugins/**/*.py")):
        found += texts(ast.parse(path.read_text()))
    return "\n".join(found)


def texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(one.value if isinstance(one, ast.Constant) else "…" for one in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"\{[^{}]*\}", "…", node.value)


def explained(page: Path) -> list[str]:
    """Return the messages in the first column of tables that begin with "you see"."""
    tables = re.findall(r"^\| you see .*\n\|[-|]+\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE)
    return [message for table in tables for message in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)]


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "troubleshooting.md"], ids=lambda page: page.name)
def test_messages_that_are_explained_exist(page: Path) -> None:
    messages = explained(page)
    assert len(messages) == page.read_text().count("\n| `") - other_tables(page)
    for message in messages:
        for part in filter(None, map(str.strip, message.split("…"))):
            assert part in sentences(), f"no message has {part!r}"


def other_tables(page: Path) -> int:
    """Return how many rows of other tables begin with code."""
    other = re.sub(r"^\| you see .*\n\|[-|]+\n((?:\|.*\n)+)", "", page.read_text(), flags=re.MULTILINE)
    return other.count("\n| `")


def test_files_that_are_named_exist() -> None:
    folders = "|".join(("docs", "inventory", "playbooks", "plugins", "roles", "tests", "train"))
    for page in PAGES:
        for path in re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
