"""What is known of a collection of films, beyond what its catalogue says of each: for the model card."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dicom_node.errors import ConfigurationError

CATALOGUES = Path(__file__).parent / "catalogues.toml"


class Catalogue(BaseModel):
    """One table `[[catalogue]]`."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    data: str
    """Digest of the rows, see `datasets.digest`."""
    read_first: tuple[str, ...]
    """What makes figures on these films say less than they seem to."""
    labels: tuple[str, ...]
    """Who said what a film shows, on what that rests, and which films are not among them."""


def catalogue_of(data_sha256: str, path: Path = CATALOGUES) -> Catalogue | None:
    """What is known of the films with a digest; None where nothing is.

    Raises:
        ConfigurationError: the file is no TOML, or an entry is unusable; the sentence names it.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("catalogue", [])
        known = [Catalogue.model_validate(table) for table in tables]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"The catalogues {path} cannot be read: {error}.") from None
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ConfigurationError(f"The catalogues {path} are not usable at `{where}`.") from None
    return next((catalogue for catalogue in known if catalogue.data == data_sha256), None)
