# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import ast
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.thunderhead.cluster.plugins.module_utils import _agent as _agent
from ansible_collections.thunderhead.cluster.plugins.plugin_utils import _engine as _engine
from ansible_collections.thunderhead.cluster.plugins.plugin_utils._engine import LAYERS

PLUGINS = "ansible_collections.thunderhead.cluster.plugins"
AGENT_LAYERS = ("contract", "base", "companion", "diagnosis", "supervisor", "operations")


def imports(package: str) -> Iterator[tuple[str, str]]:
    """Yield each module below a package with each module of the collection that it imports, wherever in it."""
    top = Path(_engine.__path__[0]).parents[1]
    for path in sorted(top.joinpath(*package.split(".")).rglob("*.py")):
        module = ".".join(path.relative_to(top).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                folder = top.joinpath(*node.module.removeprefix(f"{PLUGINS}.").split("."))
                found = [f"{node.module}.{alias.name}" for alias in node.names] if folder.is_dir() else [node.module]
            else:
                continue
            yield from ((module, name.removeprefix(f"{PLUGINS}.")) for name in found if name.startswith(PLUGINS))


def upward(package: str, layers: tuple[str, ...]) -> list[str]:
    """Return the imports of a package that lead to a later layer than the importing module's own."""

    def layer(module: str) -> int:
        return layers.index(module.removeprefix(f"{package}.").split(".")[0])

    return [
        f"{module} imports {imported}"
        for module, imported in imports(package)
        if imported.startswith(f"{package}.") and not module.endswith("__init__") and layer(imported) > layer(module)
    ]


def circles(package: str) -> list[list[str]]:
    """Return the import circles of a package's modules."""
    graph: dict[str, set[str]] = {}
    for module, imported in imports(package):
        graph.setdefault(module, set()).add(imported)
    found = []
    for start in graph:
        pending, seen = [[start]], {start}
        while pending:
            way = pending.pop()
            for following in graph.get(way[-1], ()):
                if following == start:
                    found.append([*way, start])
                elif following not in seen:
                    seen.add(following)
                    pending.append([*way, following])
    return found


def test_layers_name_each_package_of_the_engine() -> None:
    folder = Path(_engine.__path__[0])
    assert {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} == {
        *LAYERS,
        "__init__",
    }


def test_each_layer_of_the_engine_imports_only_those_above() -> None:
    assert upward("plugin_utils._engine", LAYERS) == []
    assert upward("module_utils._agent", AGENT_LAYERS) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles("plugin_utils") == [] and circles("module_utils") == []


def test_what_runs_on_nodes_imports_nothing_of_the_controller() -> None:
    assert [pair for pair in imports("module_utils") if not pair[1].startswith("module_utils")] == []


def test_two_operations_of_the_agent_use_what_the_roles_use() -> None:
    others = {pair for pair in imports("module_utils._agent") if not pair[1].startswith("module_utils._agent")}
    operations = "module_utils._agent.operations"
    assert others == {
        (f"{operations}.firewall_info", "module_utils._firewall.find_firewall"),
        (f"{operations}.python_env_info", "module_utils._python_env.node"),
    }


def test_one_file_of_the_engine_knows_how_ansible_connects() -> None:
    private = ("ansible.executor", "ansible.plugins.loader", "ansible.playbook")
    users = {
        path.name
        for path in Path(_engine.__path__[0]).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(private)
    }
    assert users == {"connect.py"}
