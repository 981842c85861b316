import copy

import pytest
import torch
from torch import nn

from darkroom.training.optimizer import LEAST_SIDE, NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, Ema, learning_rate, make_optimizer, orthogonalised


def test_learning_rate_warms_up_then_holds_or_falls_to_zero():
    schedule = {"lr": 2.0, "warmup_steps": 4, "steps": 104}
    assert [learning_rate(step, decay="constant", **schedule) for step in (0, 1, 3, 4, 99)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert learning_rate(54, decay="cosine", **schedule) == pytest.approx(1.0)
    assert learning_rate(104, decay="cosine", **schedule) == pytest.approx(0.0)


KINDS = pytest.mark.parametrize("kind", ["adamw", "muon"])


@KINDS
def test_only_matrices_decay(kind):
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    groups = make_optimizer(net, kind=kind, lr=1e-3, weight_decay=0.1).param_groups
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


@KINDS
def test_only_trained_parameters_are_optimised(kind):
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    net[0].requires_grad_(False)
    optimised = {
        id(parameter) for group in make_optimizer(net, kind=kind, lr=1e-3, weight_decay=0.1).param_groups for parameter in group["params"]
    }
    assert optimised == {id(net[1].weight), id(net[1].bias)}


def test_an_orthogonalised_matrix_has_the_directions_of_the_matrix_and_nearly_equal_singular_values():
    random = torch.Generator().manual_seed(0)
    for shape in ((40, 50), (40, 70), (70, 40), (40, 400)):
        matrix = torch.randn(shape, generator=random)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        found = left.T @ orthogonalised(matrix) @ right.T
        assert (found - torch.diag(found.diagonal())).abs().max() < 1e-3
        assert found.diagonal().min() > 0.6
        assert found.diagonal().max() < 1.3


def test_a_wide_matrix_is_orthogonalised_as_if_it_were_iterated_itself():
    """Newton-Schulz on the matrix, in double precision, against the iteration through its Gram matrix in fp32; also nearly of low rank."""
    random = torch.Generator().manual_seed(0)
    for rank in (40, 5):
        matrix = torch.randn((40, rank), generator=random) @ torch.randn((rank, 400), generator=random)
        matrix += 1e-4 * torch.randn(matrix.shape, generator=random)
        expected = matrix.double() / matrix.double().norm()
        for _ in range(NEWTON_SCHULZ_STEPS):
            a, b, c = NEWTON_SCHULZ
            gram = expected @ expected.T
            expected = (a * torch.eye(40) + b * gram + c * gram @ gram) @ expected
        torch.testing.assert_close(orthogonalised(matrix).double(), expected, rtol=0, atol=1e-4)


def test_a_gradient_of_zeros_stays_zeros():
    for shape in ((40, 50), (40, 400)):
        assert not orthogonalised(torch.zeros(shape)).any()


def test_muon_moves_large_matrices_and_kernels_as_far_as_adamw_and_leaves_the_rest_to_adamw():
    torch.manual_seed(0)
    start = nn.Sequential(nn.Conv2d(LEAST_SIDE, 64, 3), nn.Linear(8, LEAST_SIDE), nn.GroupNorm(1, 4))
    moved = {}
    for kind in ("adamw", "muon"):
        net = copy.deepcopy(start)
        optimizer = make_optimizer(net, kind=kind, lr=1e-2, weight_decay=0.0)
        for step in range(3):
            random = torch.Generator().manual_seed(step)
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=random)
            optimizer.step()
        pairs = zip(net.named_parameters(), start.parameters(), strict=True)
        moved[kind] = {name: (after - before).detach() for (name, after), before in pairs}
    different = [name for name in moved["muon"] if not torch.equal(moved["muon"][name], moved["adamw"][name])]
    assert different == ["0.weight"]
    sizes = [float(moved[kind]["0.weight"].square().mean().sqrt()) for kind in ("adamw", "muon")]
    assert 0.2 < sizes[1] / sizes[0] < 1


def test_muon_goes_on_from_its_state_as_if_it_had_not_stopped():
    def steps(net, optimizer, numbers):
        for step in numbers:
            random = torch.Generator().manual_seed(step)
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=random)
            optimizer.step()

    torch.manual_seed(0)
    first, second = (nn.Linear(LEAST_SIDE, LEAST_SIDE) for _ in range(2))
    second.load_state_dict(first.state_dict())
    optimizers = [make_optimizer(net, kind="muon", lr=1e-2, weight_decay=0.1) for net in (first, second)]
    steps(first, optimizers[0], range(4))
    steps(second, optimizers[1], range(2))
    resumed = make_optimizer(second, kind="muon", lr=1e-2, weight_decay=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    steps(second, resumed, range(2, 4))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
