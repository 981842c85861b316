"""The patch discriminator of adversarial training (Isola et al. 2017, section 3.2.2)."""

from itertools import pairwise

from torch import Tensor, nn

from darkroom.models.layers import reset_parameters

NEGATIVE_SLOPE = 0.2  # of the leaky ReLUs
GROUPS = 8  # of the norms; with batch norm a score would depend on the other images of its batch, and on its process


class PatchDiscriminator(nn.Module):
    """One score per patch: above 0 for real photos, below 0 for reconstructions. With 3 halvings a patch has 70 x 70 px."""

    def __init__(self, *, channels: int, num_halvings: int, size: int) -> None:
        """
        Args:
            channels: of the first layer, a multiple of 8; they double with each halving, up to eight times as many.
            num_halvings: how often the side is halved.
            size: px, the smallest side of an image; after the halvings it must still hold a patch.

        Raises:
            ValueError: images too small for this number of halvings, or channels that are not a multiple of the groups.
        """
        super().__init__()
        if channels % GROUPS:
            raise ValueError(f"adversarial.channels is {channels}; it must be a multiple of {GROUPS}, the groups of a norm.")
        if size // 2**num_halvings < 3:
            raise ValueError(
                f"adversarial.num_halvings is {num_halvings}, but photos of {size} px are too small for so many halvings; lower it."
            )
        widths = [channels * min(2**level, 8) for level in range(num_halvings + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(NEGATIVE_SLOPE)]
        for level, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            stride = 2 if level < num_halvings else 1
            layers += [nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1), nn.GroupNorm(GROUPS, outputs), nn.LeakyReLU(NEGATIVE_SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def initialise(self, seed: int) -> None:
        reset_parameters(self, seed)

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [-1, 1] -> scores (B, 1, h, w)"""
        return self.layers(images)
