import pytest
import torch
from torch import nn

from darkroom.training.optimizer import Ema, adamw, learning_rate


def test_learning_rate_warms_up_then_holds_or_falls_to_zero():
    schedule = {"lr": 2.0, "warmup_steps": 4, "steps": 104}
    assert [learning_rate(step, decay="constant", **schedule) for step in (0, 1, 3, 4, 99)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert learning_rate(54, decay="cosine", **schedule) == pytest.approx(1.0)
    assert learning_rate(104, decay="cosine", **schedule) == pytest.approx(0.0)


def test_only_matrices_decay():
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    groups = adamw(net, lr=1e-3, weight_decay=0.1).param_groups
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    assert decayed == {id(net[0].weight)}


def test_ema_follows_the_recurrence_and_is_applied_only_within():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    ema = Ema(net, decay=0.5)
    expected = 1.0
    for step, value in enumerate([2.0, 3.0, -1.0]):
        nn.init.constant_(net.weight, value)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    with ema.applied():
        assert float(net.weight.detach()) == pytest.approx(expected)
    assert float(net.weight.detach()) == -1.0
    ema.publish()
    assert float(net.weight.detach()) == pytest.approx(expected)


def test_without_decay_the_average_is_the_net_and_takes_no_memory():
    net = nn.Linear(2, 2)
    ema = Ema(net, decay=0.0)
    nn.init.normal_(net.weight)
    expected = net.weight.detach().clone()
    ema.update(0)
    with ema.applied():
        torch.testing.assert_close(net.weight.detach(), expected, rtol=0, atol=0)
    ema.publish()
    torch.testing.assert_close(net.weight.detach(), expected, rtol=0, atol=0)
    assert not ema.state_dict()


def test_the_average_holds_trained_parameters_only():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    net[0].requires_grad_(False)
    assert set(Ema(net, decay=0.9).state_dict()) == {"1.weight", "1.bias"}


def test_only_trained_parameters_are_optimised():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    net[0].requires_grad_(False)
    optimised = {id(parameter) for group in adamw(net, lr=1e-3, weight_decay=0.1).param_groups for parameter in group["params"]}
    assert optimised == {id(net[1].weight), id(net[1].bias)}
