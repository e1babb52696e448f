"""The page of commands and the commands themselves name the same things."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from atoll.cli.main import root
from atoll.node.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `(atoll \w+)[^`]*`$(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
SHARED = {"--help"}


def leaves(command: Any, path: str = "atoll") -> dict[str, Any]:
    """Every command by its words."""
    inner = getattr(command, "commands", None)
    if inner is None:
        return {path: command}
    return {k: v for name, sub in inner.items() for k, v in leaves(sub, f"{path} {name}").items()}


COMMANDS = leaves(typer.main.get_command(root))


def section(path: str) -> str:
    return SECTIONS[" ".join(path.split()[:2])]


def test_every_command_has_its_section_and_there_is_no_other() -> None:
    assert set(SECTIONS) == {" ".join(path.split()[:2]) for path in COMMANDS}


@pytest.mark.parametrize("path", COMMANDS)
def test_the_page_tells_each_option_of_a_command(path: str) -> None:
    words = path.split()[2:]
    text = section(path)
    assert re.search(rf"`{' '.join(words)}\b", text) or not words
    options = {
        option
        for parameter in COMMANDS[path].params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("--")
    }
    told = set(re.findall(r"--[a-z-]+", text))
    hidden = {"--data"} if path == "atoll check" else set()  # told by its other side, --no-data
    assert options - SHARED - hidden <= told


@pytest.mark.parametrize("name", SECTIONS)
def test_the_page_tells_no_option_that_there_is_not(name: str) -> None:
    known = {
        option
        for path, command in COMMANDS.items()
        if path.split()[:2] == name.split()
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    told = set(re.findall(r"`(--[a-z-]+)", SECTIONS[name]))
    others = {"--set"} if name == "atoll run" else set()
    assert told - others <= known


def test_the_page_tells_each_key_of_a_node_s_settings_with_its_default() -> None:
    table = SECTIONS["atoll node"].partition("| key | default | meaning |")[2]
    said = dict(re.findall(r"^\| `([a-z_.]+)` \| ([^|]+) \|", table, re.M))
    keys: dict[str, object] = {}
    for name, value in Settings():
        inner = {f"{name}.{key}": one for key, one in value} if isinstance(value, BaseModel) else {}
        keys |= inner or {name: value}
    assert set(said) == set(keys)
    for key in set(keys) - {"limits.memory"}:  # depends on the machine
        assert said[key].strip("` ") in (json.dumps(keys[key]), "as above"), key
