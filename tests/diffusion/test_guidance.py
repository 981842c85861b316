"""Classifier-free guidance by its defining equation."""

import pytest
import torch
from torch import Tensor

from darkroom.diffusion.guidance import classifier_free


class Net:
    """A stand-in for the U-Net that remembers the batch sizes it was called with."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        assert len(x) == len(t) == len(context)
        self.batches.append(len(x))
        return x.sin() * (1 + t.view(-1, 1, 1, 1)) + context.mean((1, 2)).view(-1, 1, 1, 1)


X, T = torch.randn(3, 2, 4, 4), torch.tensor([1.0, 2.0, 3.0])
CONTEXT, EMPTY = torch.randn(3, 5, 6), torch.randn(5, 6)


@pytest.mark.parametrize(("scale", "context"), [(1.0, CONTEXT), (0.0, EMPTY.expand(3, 5, 6))])
def test_scales_one_and_zero_are_the_plain_network_at_one_evaluation(scale: float, context: Tensor) -> None:
    net = Net()
    torch.testing.assert_close(classifier_free(net, CONTEXT, EMPTY, scale)(X, T), Net()(X, T, context))
    assert net.batches == [3]


def test_guidance_is_linear_in_the_scale_and_one_evaluation_of_twice_the_batch() -> None:
    net = Net()
    without, plain = Net()(X, T, EMPTY.expand(3, 5, 6)), Net()(X, T, CONTEXT)
    for scale in (-1.0, 0.5, 1.5, 7.5):
        torch.testing.assert_close(classifier_free(net, CONTEXT, EMPTY, scale)(X, T), without + scale * (plain - without))
    assert net.batches == [6] * 4


def test_a_negative_prompt_of_each_picture_takes_the_place_of_the_empty_one() -> None:
    negative = torch.randn(3, 5, 6)
    plain, avoided = Net()(X, T, CONTEXT), Net()(X, T, negative)
    torch.testing.assert_close(classifier_free(Net(), CONTEXT, negative, 3.0)(X, T), 3 * plain - 2 * avoided)


def test_a_prompt_guided_away_from_itself_is_unguided() -> None:
    torch.testing.assert_close(classifier_free(Net(), CONTEXT, CONTEXT, 9.0)(X, T), Net()(X, T, CONTEXT))
