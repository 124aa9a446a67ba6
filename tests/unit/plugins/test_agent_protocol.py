import ast
import re
import shutil
import sys
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins.module_utils import agent
from local_nodes import LocalNode, code, refused


def test_an_error_of_the_system_is_a_sentence(node: LocalNode, tmp_path: Path) -> None:
    bundle = code(tmp_path / "code", "")
    shutil.rmtree(node.directory / "bundles")
    message = refused(node, "deliver", bundle, bundle.content)
    assert re.fullmatch(rf"node0 failed at deliver: No such file or directory: {node.directory}/bundles/\S+", message)


MODULES = sorted(Path(agent.__path__[0]).glob("*.py"))


def test_the_agent_is_found() -> None:
    assert {"__init__.py", "protocol.py", "launching.py", "supervising.py"} <= {path.name for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_agent_needs_nothing_but_itself_and_the_standard_library_of_python_3_9(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    imported = {
        node.module or "" if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    others = {name for name in imported if not name.startswith(f"{agent.__name__}.")}
    assert {name.split(".")[0] for name in others} <= sys.stdlib_module_names


STARTERS = [
    path for path in MODULES if path.stem in ["protocol", "node", "jobs", "processes", "launching", "supervising"]
]


@pytest.mark.parametrize("path", STARTERS, ids=lambda path: path.stem)
def test_what_is_on_the_way_to_a_start_imports_nothing_slow(path: Path) -> None:
    slow = {"json", "re", "subprocess", "typing", "shutil", "hashlib", "socket", "zlib", "traceback", "ctypes"}
    top = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {
        node.module or "" if isinstance(node, ast.ImportFrom) else alias.name for node in top for alias in node.names
    }
    assert not names & slow
