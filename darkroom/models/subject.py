"""The subject of a photo as a square: where the classifier that ships with Darkroom sees one of its classes.

SqueezeNet 1.0 is fully convolutional up to its last average: its last convolution scores the 1000 classes at each place of a map (class
activation mapping, Zhou et al. 2016, arXiv 1512.04150), for a picture of any size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import find_objects, label
from torch import nn

from darkroom.models.classifier import SHIPPED_PIXELS, class_names, classifier_pixels, load_shipped

Scores = NDArray[np.float32]  # (classes, h, w)

TEMPERATURE = 100.0  # of the softmax at a place: scores there are far larger than their average, by which the network was trained
THRESHOLD = 0.35  # of the highest share of the subject's classes; places above it show the subject
ENLARGED = 1.1  # the box around them, before it is made square
LEAST_SIDE = 1 / 3  # of the photo's shorter side; a smaller box is enlarged to that
TIMES_CHANCE = 2.0  # the subject is there if its classes get this many times the share that they get of equal scores


class Found(NamedTuple):
    box: tuple[float, float, float, float]  # left, top, right, bottom of a square in the picture, as shares of its sides
    certainty: float  # share of the subject's classes in the square, 0 to 1, to 0.01
    word: str  # ImageNet's name of the subject's class that the square scores highest


@dataclass(frozen=True)
class SubjectFinder:
    """Finds some of ImageNet's classes in a picture. It can be sent to another process, which then loads the classifier once."""

    classes: tuple[int, ...]  # numbers

    def __call__(self, image: NDArray[np.uint8]) -> Found | None:
        """uint8 (H, W, 3), of which the shorter side should have about 227 px and at least 64.

        The result does not depend on the number of threads or processes.
        """
        return locate(class_map(image), self.classes, (image.shape[0], image.shape[1]))


@torch.inference_mode()
def class_map(image: NDArray[np.uint8]) -> Scores:
    """Scores of the 1000 classes at each place of uint8 (H, W, 3), before ReLU and average: float32 (1000, about H/16, about W/16)."""
    network = _network()
    x = classifier_pixels(torch.tensor(image).permute(2, 0, 1)[None].float() / 255, SHIPPED_PIXELS)
    with _one_thread():
        scores: Scores = network(x)[0].numpy()
    return scores


def locate(scores: Scores, classes: Sequence[int], size: tuple[int, int]) -> Found | None:
    """The square around the largest part of a class map that shows the subject; None if the classifier does not see it there.

    A place shows the subject if the share of its classes in a softmax over all is above `THRESHOLD` of the highest such share. Parts
    are places that touch; the largest one holds the largest sum of shares. Their box is enlarged, made square, and moved into the
    picture; its side is at most the picture's shorter side. The subject is not seen if the square, scored as the network
    scores a whole picture, gives its classes less than `TIMES_CHANCE` times their part of all classes.

    Args:
        scores: (classes, h, w).
        classes: numbers of the subject's classes.
        size: (height, width) of the picture, in any unit.
    """
    shares = _share(scores / TEMPERATURE, classes)
    rows, columns = _largest_part(shares)
    box = _square(rows, columns, shares.shape, size)
    left, top, right, bottom = box
    height, width = shares.shape
    inside = scores[:, int(top * height) : int(np.ceil(bottom * height)), int(left * width) : int(np.ceil(right * width))]
    square = np.maximum(inside, 0).mean(axis=(1, 2))
    certainty = float(_share(square, classes))
    best = max(classes, key=lambda number: square[number])
    return Found(box, round(certainty, 2), class_names()[best]) if certainty >= TIMES_CHANCE * len(classes) / len(scores) else None


def _share(scores: Scores, classes: Sequence[int]) -> NDArray[np.float32]:
    """(classes, ...) -> (...): the share of some classes in the softmax over all."""
    shares: NDArray[np.float32] = F.softmax(torch.from_numpy(scores), dim=0)[list(classes)].sum(dim=0).numpy()
    return shares


def _largest_part(shares: NDArray[np.float32]) -> tuple[slice, slice]:
    """Rows and columns of the part with the largest sum, of places above the threshold; a common corner is enough to touch."""
    parts, num = label(shares >= THRESHOLD * shares.max(), structure=np.ones((3, 3)))
    sums = [float(shares[parts == number].sum()) for number in range(1, num + 1)]
    rows, columns = find_objects(parts)[int(np.argmax(sums))]
    return rows, columns


def _square(rows: slice, columns: slice, grid: tuple[int, ...], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The enlarged square around a part of the grid, inside the picture; left, top, right, bottom as shares of its sides."""
    height, width = size
    tall, wide = height / grid[0], width / grid[1]  # of a place
    side = ENLARGED * max((rows.stop - rows.start) * tall, (columns.stop - columns.start) * wide)
    side = min(max(side, LEAST_SIDE * min(size)), min(size))
    left = min(max((columns.start + columns.stop) / 2 * wide - side / 2, 0.0), width - side)
    top = min(max((rows.start + rows.stop) / 2 * tall - side / 2, 0.0), height - side)
    return left / width, top / height, min((left + side) / width, 1.0), min((top + side) / height, 1.0)


@cache
def _network() -> nn.Sequential:
    """SqueezeNet without its last ReLU and average."""
    from torchvision.models import SqueezeNet

    network = load_shipped()
    assert isinstance(network, SqueezeNet)
    return nn.Sequential(network.features, network.classifier[:2]).eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of two threads are rounded otherwise than those of one; and worker processes share the cores already."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
