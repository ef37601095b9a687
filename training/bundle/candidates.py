"""The log of candidates: what was tried for the shipped network, what it gave, and whether it was kept."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dicom_node.errors import ConfigurationError

CANDIDATES = Path(__file__).parent / "candidates.toml"


class Candidate(BaseModel):
    """One table `[[candidate]]`; a figure that was not measured is left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(min_length=1)
    what: str = Field(min_length=1)
    """What is other than in the candidate that it is compared with, in a few words."""
    leave_one_source_out: dict[str, float] = Field(default_factory=dict)
    """AUROC on each source that was left out of training: the figure that selects."""
    pointing: float | None = Field(default=None, ge=0, le=1)
    """Share of the COVID films of dev whose map is highest in the lungs; they are a quarter of the area."""
    srcbal: float | None = None
    """AUROC on `srcbal, every patient not learnt from`."""
    dev: float | None = None
    """AUROC."""
    test: float | None = None
    """AUROC."""
    kept: bool


def read_candidates(path: Path = CANDIDATES) -> tuple[Candidate, ...]:
    """Read the log, in its order; none where there is no file.

    Raises:
        ConfigurationError: the file is no TOML, or an entry is unusable; the sentence names it.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"The candidates {path} cannot be read: {error}.") from None
    if set(tables) - {"candidate"} or not isinstance(tables.get("candidate", []), list):
        raise ConfigurationError(f"The candidates {path} are to be tables `[[candidate]]`.")
    found = []
    for number, table in enumerate(tables.get("candidate", []), 1):
        try:
            found.append(Candidate.model_validate(table))
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise ConfigurationError(
                f"The candidates {path} are not usable at entry {number}, `{where}`."
            ) from None
    return tuple(found)
