# Copyright (c) The Thunderhead developers
# SPDX-License-Identifier: GPL-3.0-or-later
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible.plugins.doc_fragments import action_common_attributes
from ansible_collections.thunderhead.cluster.plugins.action import job

ROOT = Path(__file__).parents[3]
PLUGINS = "ansible_collections.thunderhead.cluster.plugins"
MODULES = sorted(path.stem for path in ROOT.glob("plugins/modules/*.py"))
ACTIONS = sorted(path.stem for path in ROOT.glob("plugins/action/*.py"))
ROLES = sorted(path.name for path in ROOT.glob("roles/*") if path.is_dir())
COMPARED = ("type", "default", "choices", "required", "elements")


def module(name: str) -> Any:
    return importlib.import_module(f"{PLUGINS}.modules.{name}")


def documentation(name: str) -> dict[str, Any]:
    """What ansible-doc shows of a module: with the fragments that it shares with others."""
    documented: dict[str, Any] = {"attributes": {}, **yaml.safe_load(module(name).DOCUMENTATION)}
    for fragment in sentences(documented.get("extends_documentation_fragment", [])):
        shared = yaml.safe_load(shared_documentation(fragment))
        own = documented.setdefault("options", {})
        assert not own.keys() & shared.get("options", {}).keys()
        own |= shared.get("options", {})
        for attribute, about in shared.get("attributes", {}).items():
            # Ansible's fragments only describe; the collection's own says what is supported.
            if attribute in documented["attributes"] or "support" in about:
                documented["attributes"][attribute] = about | documented["attributes"].get(attribute, {})
    return documented


def shared_documentation(fragment: str) -> str:
    """The text of a fragment, of this collection or of those that Ansible brings for attributes."""
    common = "ansible.builtin.action_common_attributes"
    if fragment.startswith(common):
        variable = fragment.removeprefix(common).removeprefix(".").upper() or "DOCUMENTATION"
        return str(getattr(action_common_attributes.ModuleDocFragment, variable))
    assert fragment.startswith("thunderhead.cluster.")
    source = importlib.import_module(f"{PLUGINS}.doc_fragments.{fragment.rpartition('.')[2]}")
    return str(source.ModuleDocFragment.DOCUMENTATION)


class Constructed(BaseException):
    """Carries what a module gave to AnsibleModule out of it."""


def specification(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], bool]:
    """Return the argument spec of a module, or of the action that stands before it, and if it supports check mode."""
    if name in ACTIONS:
        action = importlib.import_module(f"{PLUGINS}.action.{name}")
        return action.ActionModule.ARGUMENTS, action.ActionModule._supports_check_mode

    def construct(argument_spec: dict[str, Any], supports_check_mode: bool = False, **_more: Any) -> None:
        raise Constructed(argument_spec, supports_check_mode)

    code = module(name)
    monkeypatch.setattr(code, "AnsibleModule", construct)
    with patch_module_args({}), pytest.raises(Constructed) as caught:
        code.main()
    return caught.value.args[0], caught.value.args[1]


def comparable(options: dict[str, Any]) -> dict[str, Any]:
    """Options with what is said of them in both places, defaults of the format left out."""
    result: dict[str, Any] = {}
    for name, option in options.items():
        kept = {key: option[key] for key in COMPARED if option.get(key) not in (None, False)}
        kept.setdefault("type", "str")
        if option.get("options"):
            kept["options"] = comparable(option["options"])
        result[name] = kept
    return result


def sentences(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def test_every_action_has_a_module_for_its_documentation() -> None:
    assert set(ACTIONS) <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_options(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    documented = documentation(name)
    spec, check_mode = specification(name, monkeypatch)
    assert comparable(documented.get("options") or {}) == comparable(spec)
    assert (documented["attributes"]["check_mode"]["support"] == "full") is check_mode
    for option in (documented.get("options") or {}).values():
        assert all(sentences(option["description"]))


@pytest.mark.parametrize("name", MODULES)
def test_documentation(name: str) -> None:
    documented = documentation(name)
    assert documented["module"] == name
    assert not documented["short_description"].endswith(".")
    version = yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
    assert tuple(map(int, documented["version_added"].split("."))) <= tuple(map(int, version.split(".")))


@pytest.mark.parametrize("name", MODULES)
def test_attributes(name: str) -> None:
    attributes = documentation(name)["attributes"]
    expected = {"check_mode", "diff_mode", "platform"}
    if name in ACTIONS:
        action = importlib.import_module(f"{PLUGINS}.action.{name}").ActionModule
        expected |= {"action", "async", "bypass_host_loop"}
        assert attributes["action"]["support"] == "full"
        assert (attributes["async"]["support"] == "full") is action._supports_async
        assert (attributes["bypass_host_loop"]["support"] == "full") is bool(action.BYPASS_HOST_LOOP)
    assert attributes.keys() == expected
    for about in attributes.values():
        assert about["description"] and about["support"] in ("full", "none", "N/A")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    options = documentation(name).get("options") or {}
    examples = yaml.safe_load(module(name).EXAMPLES)
    assert examples
    for task in examples:
        given = task[f"thunderhead.cluster.{name}"] or {}
        assert task["name"][0].isupper()
        assert given.keys() <= options.keys()
        assert {option for option, about in options.items() if about.get("required")} <= given.keys()
        assert all(
            about["choices"].count(given[key]) for key, about in options.items() if key in given and "choices" in about
        )


@pytest.mark.parametrize("name", MODULES)
def test_return(name: str) -> None:
    for about in yaml.safe_load(module(name).RETURN).values():
        assert about["description"] and about["returned"]
        assert about["type"] in ("str", "int", "bool", "list", "dict", "float")
        assert about["type"] != "list" or "elements" in about
        if "sample" in about:
            assert isinstance(about["sample"], {"str": str, "int": int, "list": list, "dict": dict}[about["type"]])


@pytest.mark.parametrize(
    ("playbook", "name"),
    [
        *(("run", "job"), ("logs", "job_logs"), ("status", "job_info"), ("stop", "job_stop")),
        *(("clean", "job_cleanup"), ("preflight", "preflight")),
    ],
)
def test_a_playbook_passes_every_argument_of_its_action(playbook: str, name: str) -> None:
    arguments = importlib.import_module(f"{PLUGINS}.action.{name}").ActionModule.ARGUMENTS
    _required, play = yaml.safe_load((ROOT / "playbooks" / f"{playbook}.yml").read_text())
    (task,) = play["tasks"]
    given = task[f"thunderhead.cluster.{name}"]
    looked_up = set(re.findall(r"'(\w+)'", given["options"]))
    assert given.keys() | looked_up == arguments.keys()
    assert given.keys() & looked_up <= {"skip", "format"}  # what the inventory or the playbook says otherwise
    assert task["run_once"] is True


@pytest.mark.parametrize("playbook", ["run", "logs", "status", "stop", "clean", "preflight", "teardown"])
def test_a_playbook_says_which_options_it_has(playbook: str) -> None:
    text = (ROOT / "playbooks" / f"{playbook}.yml").read_text()
    comment = text[: text.index("\n- ")]
    looked_up = re.search(r"thunderhead\.cluster\.options'([^)]*)", text)
    assert looked_up
    for option in re.findall(r"'(\w+)'", looked_up[1]):
        assert re.search(rf"""{option}=|"{option}"|\b{option}\b""", comment), f"{option} is not in the comment"


@pytest.mark.parametrize("name", ["job_logs", "job_stop", "job_cleanup"])
def test_actions_agree_about_what_they_share_with_run(name: str) -> None:
    arguments = importlib.import_module(f"{PLUGINS}.action.{name}").ActionModule.ARGUMENTS
    for shared in arguments.keys() & job.ActionModule.ARGUMENTS.keys() - {"keep"}:
        assert arguments[shared] == job.ActionModule.ARGUMENTS[shared]


# ---------------------------------------------------------------------------------------------------------------- roles


def role_file(role: str, path: str) -> Any:
    return yaml.safe_load((ROOT / "roles" / role / path).read_text(encoding="utf-8")) or {}


@pytest.mark.parametrize("role", ROLES)
def test_defaults_agree_with_the_argument_spec(role: str) -> None:
    options = role_file(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    defaults = role_file(role, "defaults/main.yml")
    assert all(name.startswith(f"{role}_") for name in options)
    assert {name: about["default"] for name, about in options.items() if "default" in about} == defaults
    assert {name for name, about in options.items() if about.get("required")} == options.keys() - defaults.keys()


@pytest.mark.parametrize("role", ROLES)
def test_defaults_are_what_the_spec_allows(role: str) -> None:
    from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

    options = role_file(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    optional = {
        name: {key: value for key, value in about.items() if key in COMPARED}
        for name, about in options.items()
        if not about.get("required")
    }
    result = ArgumentSpecValidator(optional).validate(role_file(role, "defaults/main.yml"))
    assert result.error_messages == []


@pytest.mark.parametrize("role", ROLES)
def test_every_role_is_described(role: str) -> None:
    assert (ROOT / "roles" / role / "README.md").read_text().startswith("# ")
    galaxy = role_file(role, "meta/main.yml")["galaxy_info"]
    assert galaxy["description"] and galaxy["license"] == "GPL-3.0-or-later"
