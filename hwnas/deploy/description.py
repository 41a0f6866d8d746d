"""What an exported file says of itself, in the metadata that every ONNX reader shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from hwnas.core.genotype import Genotype
from hwnas.errors import DataError, refusals
from hwnas.segmentation.labels import Labelling

ExportPrecision = Literal["fp32", "fp16", "int8"]
"""What a file computes in. Its input is fp32 in all of them."""

Output = Literal["logits", "classes"]
"""What a file gives: ``[N, classes, H, W]`` fp32, or with the argmax in the graph ``[N, H, W]`` uint8."""

SCHEMA_VERSION = 1

_PREFIX = "hwnas."


class Description(BaseModel):
    """Everything that a deployer needs beside the graph. Frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    """Of these metadata; files that do not say it are of version 1."""
    version: str
    """Of hwnas, that wrote the file."""
    precision: ExportPrecision
    """What the file computes in; its input is fp32 in any."""
    output: Output = "logits"
    """What it gives: logits or class numbers."""
    genotype: Genotype | None = None
    """The architecture, with the name and fields of its space."""
    labelling: Labelling | None = None
    """Classes, colours and normalisation; None where the file was exported without data."""
    calibration_images: int = 0
    """Of an int8 file: how many pictures its ranges come from."""

    def metadata(self) -> dict[str, str]:
        """As ONNX's ``metadata_props``: a key for each thing, its value JSON, or plain text where it is one.

        ``hwnas.schema_version``, ``hwnas.version``, ``hwnas.precision``, ``hwnas.output``,
        ``hwnas.calibration_images``; where known ``hwnas.space``, ``hwnas.genotype_id``, ``hwnas.genotype``,
        and ``hwnas.classes``, ``hwnas.palette``, ``hwnas.mean``, ``hwnas.std``, ``hwnas.ignore_index``.
        """
        values: dict[str, Any] = self.model_dump(mode="json", exclude={"labelling", "genotype"})
        if self.genotype is not None:
            values |= {
                "space": self.genotype.space,
                "genotype_id": self.genotype.short_id,
                "genotype": self.genotype.model_dump(mode="json"),
            }
        if self.labelling is not None:
            values |= self.labelling.model_dump(mode="json")
        return {
            _PREFIX + name: value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }

    @classmethod
    def read(cls, metadata: Mapping[str, str], where: str) -> Description | None:
        """What :meth:`metadata` wrote, or None where hwnas did not write the file.

        Raises:
            DataError: it is damaged, or of a newer schema; ``where`` names the file.
        """
        found = {
            name.removeprefix(_PREFIX): text for name, text in metadata.items() if name.startswith(_PREFIX)
        }
        if "version" not in found:
            return None
        try:
            schema = int(found.get("schema_version", "1"))
            if schema > SCHEMA_VERSION:
                raise DataError(
                    f"the metadata of {where} have schema {schema}, this hwnas reads up to {SCHEMA_VERSION}: "
                    "upgrade hwnas."
                )
            values: dict[str, Any] = {
                name: text if name in ("version", "precision", "output") else json.loads(text)
                for name, text in found.items()
                if name not in ("space", "genotype_id")
            }
            labelling = {name: values.pop(name) for name in Labelling.model_fields if name in values}
            return cls(**values, labelling=Labelling(**labelling) if labelling else None)
        except ValidationError as error:
            raise DataError(f"the metadata of {where} are damaged:\n{refusals(error)}") from error
        except ValueError as error:
            raise DataError(f"the metadata of {where} are damaged: {error}") from error
