"""Your own images and label maps, in two folders and a list of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from hwnas.errors import DataError, refusals
from hwnas.segmentation.dataset import distinct_colours
from hwnas.segmentation.files import Pair, SplitFolder, image_files, require_folder
from hwnas.segmentation.labels import VOID


class ClassList(BaseModel):
    """The contents of ``classes.json``; entries other than these are left alone."""

    names: tuple[str, ...] = Field(min_length=1, max_length=255)
    """Names in the order of the values in the label files, from 0."""
    palette: tuple[tuple[int, int, int], ...] | None = None
    """RGB, 0…255, one for each name; made up where absent."""
    ignore_index: int = Field(default=VOID, ge=0, le=255)
    """The value that means void in the label files; 255 always does, too."""

    @classmethod
    def read(cls, path: Path) -> ClassList:
        """Read and check a file.

        Raises:
            DataError: if it is missing, is not such JSON, or contradicts itself.
        """
        wanted = '{"names": ["road", …], "palette": [[128, 64, 128], …], "ignore_index": 255}'
        try:
            found = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise DataError(f"no file {path}; it should hold {wanted}, the last two optional") from None
        except ValidationError as error:
            raise DataError(
                f"{path} should hold {wanted}, the last two optional:\n{refusals(error)}"
            ) from error
        if found.palette is not None and len(found.palette) != len(found.names):
            raise DataError(f"{path} has {len(found.names)} names but {len(found.palette)} palette colours")
        if found.ignore_index < len(found.names):
            name = found.names[found.ignore_index]
            raise DataError(f"{path}: ignore_index {found.ignore_index} is also the value of class {name!r}")
        return found


class ImageLabelFolders(SplitFolder):
    """Any images with label maps: ``images/SPLIT/*``, ``labels/SPLIT/*.png`` and ``classes.json``.

    A label has its image's name; its values are positions in the list of names. See :class:`ClassList`.
    Whatever value means void in the files, it is 255 in the targets.

    For the arguments see :class:`SplitFolder`; ``root`` holds ``images``, ``labels`` and ``classes.json``,
    and a split is the name of a subfolder.

    Raises:
        DataError: if a folder, a label or ``classes.json`` is missing or wrong, or the split is empty.
    """

    def find(self, root: Path, splits: Sequence[str]) -> tuple[list[Pair], dict[int, int]]:
        """See :meth:`SplitFolder.find`; reads the classes, too."""
        pairs = []
        for part in splits:
            images = require_folder(root / "images" / part, what=f"the images of split {part!r}")
            labels = require_folder(root / "labels" / part, what=f"the labels of split {part!r}")
            pairs += [Pair(path.stem, path, labels / f"{path.stem}.png") for path in image_files(images)]
        listed = ClassList.read(root / "classes.json")
        self.classes = listed.names
        self.palette = listed.palette or distinct_colours(len(listed.names))
        return pairs, self.class_values() | {listed.ignore_index: VOID}
