"""The genotype: what a search finds, a few hundred bytes of JSON that go through fit, export and measure."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from hwnas.errors import GenotypeError, refusals
from hwnas.files import write_json

SCHEMA_VERSION = 1
_REMEDY = "Restore it from a copy, or name the folder of a run, or its genotype.json."


class Genotype(BaseModel):
    """One architecture of a search space: an option for every choice that matters. Frozen.

    Choices that cannot matter (inside a cell that the depth cuts away) are left out, so that equal networks
    have equal genotypes. Make one with :meth:`hwnas.SearchSpace.genotype`, which does the leaving out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    space: str
    """Registered name of the space, or ``package.module:Class``."""
    fields: dict[str, Any]
    """The space's fields, so that the space can be rebuilt from the genotype alone."""
    choices: dict[str, str]
    """Choice name → option name, sorted by choice name."""

    @property
    def short_id(self) -> str:
        """Eight hexadecimal digits that name this architecture; equal networks share them."""
        text = json.dumps([self.space, self.fields, sorted(self.choices.items())], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def save(self, path: str | Path) -> None:
        """Write JSON to ``path``, atomically."""
        write_json(Path(path), self)

    @classmethod
    def load(cls, path: str | Path) -> Genotype:
        """Read what :meth:`save` wrote.

        Raises:
            GenotypeError: no such file, not a genotype, or of a newer schema.
        """
        path = Path(path)
        if not path.is_file():
            raise GenotypeError(
                f"no genotype at {path}; a search writes one:  hwnas search SPACE --out {path.parent}"
            )
        try:
            found = json.loads(path.read_text())
            version = found["schema_version"]
            if version > SCHEMA_VERSION:
                raise GenotypeError(
                    f"{path} has genotype schema {version}, this hwnas reads up to {SCHEMA_VERSION}: "
                    "upgrade hwnas."
                )
            return cls.model_validate(found)
        except ValidationError as error:
            raise GenotypeError(f"{path} is not a genotype:\n{refusals(error)}\n{_REMEDY}") from error
        except KeyError as error:
            raise GenotypeError(f"{path} is not a genotype: it has no {error}. {_REMEDY}") from error
        except (ValueError, TypeError) as error:
            raise GenotypeError(f"{path} is not a genotype: {error}. {_REMEDY}") from error
