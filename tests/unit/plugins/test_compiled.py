import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.thunderhead.cluster.plugins import plugin_utils

IMPORT = """
import importlib, sys
from ansible.utils.collection_loader._collection_finder import _AnsibleCollectionFinder
_AnsibleCollectionFinder(paths=[sys.argv[1]])._install()
for name in sys.argv[2:]:
    module = importlib.import_module(name)
print(module.__cached__)
"""


@pytest.mark.parametrize("name", ["plugin_utils.errors", "plugin_utils.preflight.check", "module_utils.agent.protocol"])
def test_under_ansibles_finder_the_engine_is_compiled_once(name: str, tmp_path: Path) -> None:
    """By itself it compiles whatever it finds, each time."""
    collections = Path(plugin_utils.__path__[0]).parents[4]
    modules = [plugin_utils.__name__, f"{plugin_utils.PLUGINS}.{name}"]
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    result = subprocess.run(
        [sys.executable, "-c", IMPORT, collections, *modules], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    cached = Path(result.stdout.strip())
    assert cached.is_file()
    assert cached.is_relative_to(tmp_path)
