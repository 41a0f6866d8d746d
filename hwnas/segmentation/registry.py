"""From the name of a data set, as written on the command line, to the data set."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from hwnas.arguments import checked_arguments
from hwnas.errors import InvalidInput
from hwnas.lookup import imported, meant
from hwnas.segmentation.dataset import SegmentationDataset
from hwnas.segmentation.labels import Labelling

GROUP = "hwnas.datasets"
"""Entry-point group in which other packages offer theirs."""

_BUILT_IN = {
    "synthetic": "hwnas.segmentation.synthetic:SyntheticScenes",
    "camvid": "hwnas.segmentation.camvid:CamVid",
    "cityscapes": "hwnas.segmentation.cityscapes:Cityscapes",
    "idd_lite": "hwnas.segmentation.idd_lite:IddLite",
    "folders": "hwnas.segmentation.folders:ImageLabelFolders",
}


def known_datasets() -> dict[str, str]:
    """Name → ``package.module:Class``, of the built-in data sets and of those that other packages offer."""
    return _BUILT_IN | {point.name: point.value for point in entry_points(group=GROUP)}


def open_dataset(text: str, split: str = "train", **options: Any) -> SegmentationDataset:
    """The data set that a text names.

    Args:
        text: ``"synthetic"``, ``"camvid:DIR"``, ``"cityscapes:DIR"``, ``"folders:DIR"``, another name from
            the entry-point group ``hwnas.datasets``, or ``"package.module:Class"``, with or without a folder.
        split: its part, usually ``"train"`` or ``"val"``.
        **options: passed to its constructor (``size``, ``augment``, ``cache`` …).

    Raises:
        InvalidInput: if there is no such data set, or it wants a folder and none is given, or the reverse.
        DataError: if what lies in the folder is not such a data set.
    """
    kind, root = _parsed(text)
    parameters = inspect.signature(kind).parameters
    if "root" not in parameters and root:
        raise InvalidInput(f"{text.removesuffix(':' + root)} takes no folder; got {root!r}")
    if "root" in parameters and parameters["root"].default is inspect.Parameter.empty and not root:
        raise InvalidInput(f"{text} needs a folder: write {text.rstrip(':')}:DIR")
    unknown = sorted(set(options) - set(parameters))
    if unknown and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        taken = ", ".join(key for key in parameters if key not in ("root", "split"))
        raise InvalidInput(f"{text} has no option {', '.join(unknown)}; it takes {taken}")
    place = {"root": root} if root else {}
    dataset: SegmentationDataset = kind(**place, split=split, **checked_arguments(kind, options, text))
    return dataset


def labelling(text: str, split: str = "train", **options: Any) -> Labelling:
    """What the labels of a data set mean; its folder is opened only where its class does not say.

    Raises:
        InvalidInput: there is no such data set.
        DataError: what lies in the folder is not such a data set, or says nothing that holds together.
    """
    kind, _ = _parsed(text)
    return Labelling.of(kind if getattr(kind, "classes", None) else open_dataset(text, split, **options))


def _parsed(text: str) -> tuple[Callable[..., SegmentationDataset], str]:
    """The class that a text names, and the folder, or an empty text where it names none."""
    name, _, rest = text.partition(":")
    known = known_datasets()
    if name in known:
        module_name, _, class_name = known[name].partition(":")
        root = rest
    else:
        module_name = name
        class_name, _, root = rest.partition(":")
    return _find_class(text, module_name, class_name, known), root


def _find_class(
    text: str, module_name: str, class_name: str, known: dict[str, str]
) -> Callable[..., SegmentationDataset]:
    names = f"known are {', '.join(sorted(known))}, and package.module:Class"
    try:
        kind = imported(module_name, class_name)
    except LookupError:
        # A folder is no part of the name; of package.module:Class, the class is.
        is_class = "." in module_name
        name = f"{module_name}:{class_name}" if is_class else module_name
        raise InvalidInput(f'no data set is called "{name}"{meant(name, known)}; {names}') from None
    if not isinstance(kind, type) or not issubclass(kind, SegmentationDataset):
        raise InvalidInput(f"{module_name}:{class_name} is not a SegmentationDataset; {names}")
    return kind
