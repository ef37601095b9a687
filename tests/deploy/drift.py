"""What files of `deploy/` may name: settings, commands, images, ports and places, as the code has them."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer
import yaml
from pydantic import BaseModel

from deploy.cli import app
from dicom_node.settings import CONFIGURATION_FILE, SECRETS_DIRECTORY
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
IMAGES = {file.name.partition(".")[0] for file in (DEPLOY / "containers").glob("*.Containerfile")}
PREFIX = "COVARIANCE_"
_VARIABLE = re.compile(r"\bCOVARIANCE_[A-Z][A-Z0-9_]*\b")


def variables(text: str) -> set[str]:
    """Every COVARIANCE_* variable that a text names."""
    return set(_VARIABLE.findall(text))


def is_setting(path: str) -> bool:
    """Whether `section__key` is a setting of the models."""
    model: type[BaseModel] = Settings
    for part in path.lower().split("__"):
        field = model.model_fields.get(part) if isinstance(model, type) else None
        if field is None:
            return False
        inner = type(field.default) if isinstance(field.default, BaseModel) else field.annotation
        model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else type(None)  # type: ignore[assignment]
    return True


def unknown_variables(text: str) -> set[str]:
    """The variables of a text that set nothing."""
    special = {CONFIGURATION_FILE, SECRETS_DIRECTORY}
    return {name for name in variables(text) - special if not is_setting(name.removeprefix(PREFIX))}


def refuse_unknown_command(words: list[str], *, mention: bool = False) -> None:
    """Raise unless `covariance WORDS...` is a command of ours, with options and arguments that it takes.

    A mention in a sentence need not have the arguments that the command asks for.
    """
    program, *rest = words
    assert program == "covariance", f"{program} is not our command"
    command: Any = typer.main.get_command(app)
    context = click.Context(command, info_name="covariance")
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        if not rest:
            return
        name, *rest = rest
        found = command.get_command(context, name)
        assert found is not None, f"covariance has no command {name}"
        context = type(context)(found, info_name=name, parent=context)
        command = found
    command.make_context(words[-1], list(rest), parent=context, resilient_parsing=mention)


def commands_in(text: str) -> Iterator[list[str]]:
    """Every `covariance ...` in the code of a Markdown page, in a container of the service `ops` too."""
    for code in re.findall(r"```\n(.*?)```|`([^`\n]+)`", text, re.DOTALL):
        for line in "\n".join(code).replace("\\\n", " ").splitlines():
            if not re.search(r"\bcovariance\b|\bops\b", line):
                continue  # what a program says, with an apostrophe in it
            words = shlex.split(line, comments=True)
            if words[:2] == ["docker", "compose"] and "ops" in words:
                yield ["covariance", *words[words.index("ops") + 1 :]]
            elif "covariance" in words and words[0] != "kubectl":
                yield words[words.index("covariance") :]


def documents(file: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return [one for one in yaml.safe_load_all(file.read_text()) if one]


def toml_is_of_the_settings(file: Path) -> Settings:
    """The settings that a TOML file makes; raises on a key that is none."""
    return Settings.model_validate(tomllib.loads(file.read_text()))


def instructions(image: str) -> list[tuple[str, str]]:
    """Instruction and argument of each line of a Containerfile, continued lines joined."""
    text = (DEPLOY / "containers" / f"{image}.Containerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = (line.partition(" ") for line in joined.splitlines() if line.strip())
    return [(name, argument.strip()) for name, _, argument in pairs]
