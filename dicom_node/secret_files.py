"""Settings that stand in files of their own, as container platforms hand secrets over.

A file `database__url` in the directory that `COVARIANCE_SECRETS` names sets `[database] url`. Nothing of a
secret then stands in a settings file, in an environment that `/proc` shows, or in a command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic_settings import BaseSettings, EnvSettingsSource

_LARGEST_BYTES = 65_536
"""A secret is a line; what is longer is some other file."""


class SecretFiles(EnvSettingsSource):
    """Reads one directory as if its files were variables: named alike, after the prefix of all of them.

    Raises `ValueError` or `OSError` for a directory or a file that cannot be what it is taken for, without
    what is in it.
    """

    def __init__(self, settings_cls: type[BaseSettings], directory: Path | None) -> None:
        self._directory = directory
        self._knows_all = settings_cls.model_config.get("extra") == "forbid"
        super().__init__(settings_cls)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        if self._directory is None:
            return {}
        if not self._directory.is_dir():
            raise NotADirectoryError(f"there is no directory of secrets {self._directory}")
        return {f"{self.env_prefix}{file.name}".lower(): _content(file) for file in self._files()}

    def _files(self) -> list[Path]:
        directory, sections = self._directory or Path(), self.settings_cls.model_fields
        # Kubernetes keeps the files in a hidden folder beside links to them.
        files = sorted(one for one in directory.iterdir() if one.is_file() and not one.name.startswith("."))
        for file in files:
            section, _, key = file.name.lower().partition("__")
            if not key or (self._knows_all and section not in sections):
                raise ValueError(
                    f"the secret {file.name} is no setting: name it section__key, e.g. database__url"
                )
        return files


def _content(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST_BYTES + 1)
    except PermissionError:
        raise PermissionError(f"the secret {file.name} may not be read by this user") from None
    if len(content) > _LARGEST_BYTES:
        raise ValueError(f"the secret {file.name} is longer than {_LARGEST_BYTES} bytes")
    try:
        # Editors end a line; a newline at the end is never part of a secret.
        return content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"the secret {file.name} is not UTF-8 text") from None
