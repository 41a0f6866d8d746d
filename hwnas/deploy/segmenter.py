"""From pictures of any size to class maps, with whatever network is at hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hwnas.deploy.export import class_map
from hwnas.errors import InvalidInput
from hwnas.segmentation.dataset import Pixels, normalised
from hwnas.segmentation.labels import Labelling
from hwnas.segmentation.transforms import resize_image, resize_label


@dataclass(frozen=True)
class Segmenter:
    """A network with all that a picture's way through it depends on.

    Attributes:
        network: gives logits ``[N, classes, H, W]`` or class numbers ``[N, H, W]``.
        labelling: classes, colours and normalisation.
        size: height and width of the network's images.
    """

    network: nn.Module
    labelling: Labelling
    size: tuple[int, int]

    def __call__(self, picture: Pixels) -> Pixels:
        """Class numbers, uint8 ``[H, W]``, of an RGB picture, uint8 ``[H, W, 3]``.

        The picture is brought to the network's size, and the class numbers back to the picture's (nearest).

        Raises:
            InvalidInput: the network names a class that the labelling does not have.
        """
        image = torch.from_numpy(picture.copy()).permute(2, 0, 1).contiguous()
        pixels = resize_image(image, self.size).float() / 255
        image_CHW = normalised(pixels, self.labelling.mean, self.labelling.std)
        found = class_map(self.network, image_CHW[None])[0]
        if int(found.max()) >= len(self.labelling.classes):
            raise InvalidInput(
                f"the network names class {int(found.max())}, and there are only "
                f"{len(self.labelling.classes)} classes: {', '.join(self.labelling.classes)}"
            )
        small = found.to(torch.uint8).cpu()
        full: Pixels = resize_label(small, (picture.shape[0], picture.shape[1])).numpy()
        return full
