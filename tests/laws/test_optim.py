import pytest
import torch
from torch import nn

from pocketdiff.errors import PluginError
from pocketdiff.nets import NETS
from pocketdiff.nets.unet import UNetConfig
from pocketdiff.optim import Muon, ema_decay, learning_rate, make_optimizers, orthogonalize, update_ema


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (16, 16), (1, 9)])
def test_orthogonalize_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(x))
    assert values.min() > 0.6
    assert values.max() < 1.25


def test_orthogonalize_is_muons_iteration() -> None:
    """The steps on the small matrix equal the published loop on the full one."""
    x = torch.randn(8, 72, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    loop = x / x.norm()
    for _ in range(5):
        a = loop @ loop.T
        loop = 3.4445 * loop + (-4.7750 * a + 2.0315 * a @ a) @ loop
    torch.testing.assert_close(orthogonalize(x), loop, rtol=1e-6, atol=1e-6)


def test_orthogonalize_keeps_directions_and_ignores_scale() -> None:
    x = torch.randn(6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    turned = u.T @ orthogonalize(x) @ v.T
    torch.testing.assert_close(turned, torch.diag(turned.diagonal()), rtol=0, atol=1e-9)
    torch.testing.assert_close(orthogonalize(1e-4 * x), orthogonalize(x), rtol=1e-2, atol=1e-2)


def test_a_step_of_muon() -> None:
    weight = nn.Parameter(torch.zeros(4, 2, 3, 3))
    gradient = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(3))
    optimizer = Muon([{"params": [weight], "peak_lr": 0.1}], 0.1, momentum=0.9)
    weight.grad = gradient
    optimizer.step()
    # First momentum 0.1 g, then 0.1 g + 0.9 * 0.1 g with Nesterov momentum: the direction is g.
    torch.testing.assert_close(weight.data.flatten(1), -0.1 * orthogonalize(gradient.flatten(1)))


def test_a_tall_matrix_takes_larger_steps() -> None:
    weight = nn.Parameter(torch.zeros(16, 4))
    weight.grad = torch.randn(16, 4, generator=torch.Generator().manual_seed(4))
    Muon([{"params": [weight], "peak_lr": 1.0}], 1.0).step()
    assert torch.linalg.svdvals(weight.data).mean().item() == pytest.approx(2.0, rel=0.2)


def test_hidden_matrices_go_to_muon_and_the_rest_to_adam() -> None:
    net = UNetConfig(widths=(8, 16), blocks=1, embedding=16).build((1, 28, 28), 10)
    muon, adam = make_optimizers(net, 0.02, 0.003)
    names = {parameter: name for name, parameter in net.named_parameters()}
    hidden = {names[p] for group in muon.param_groups for p in group["params"]}
    rest = {names[p] for group in adam.param_groups for p in group["params"]}
    assert hidden | rest == set(names.values())
    assert not hidden & rest
    assert all(name.endswith(".weight") and name.startswith("levels.") for name in hidden)
    assert {"levels.down.0.conv1.weight", "levels.down.0.modulate.weight", "levels.shrink.weight"} <= hidden
    assert {"first.weight", "last.2.weight", "embedding.label.weight", "levels.down.0.conv1.bias"} <= rest
    assert [group["peak_lr"] for optimizer in (muon, adam) for group in optimizer.param_groups] == [0.02, 0.003]


class Plain(nn.Module):
    """A network from outside, with a parameter of its own."""

    def __init__(self, *adam_only: str) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(4, 4))
        self.first, self.hidden = nn.Linear(4, 4), nn.Linear(4, 4)
        if adam_only:
            self.adam_only = adam_only


def test_a_network_must_say_what_only_adam_trains() -> None:
    with pytest.raises(PluginError, match=r"^Plain has no adam_only; "):
        make_optimizers(Plain(), None, 0.003)
    with pytest.raises(PluginError, match=r"^Plain: adam_only names 'frist', which has no parameters"):
        make_optimizers(Plain("first", "frist"), 0.02, 0.003)
    with pytest.raises(PluginError, match="names 'fir'"):  # a name, not the beginning of one
        make_optimizers(Plain("fir"), 0.02, 0.003)
    net = Plain("first", "position")
    muon, _ = make_optimizers(net, 0.02, 0.003)
    assert [id(p) for group in muon.param_groups for p in group["params"]] == [id(net.hidden.weight)]


@pytest.mark.parametrize("kind", NETS)
def test_without_muon_adam_trains_everything(kind: str) -> None:
    net = NETS[kind]().build((1, 28, 28), 10)
    (adam,) = make_optimizers(net, None, 0.003)
    assert [id(p) for group in adam.param_groups for p in group["params"]] == [id(p) for p in net.parameters()]


def test_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [learning_rate(i / 1000, 0.1) for i in range(1000)]
    top = rates.index(max(rates))
    assert rates[0] > 0
    assert top == pytest.approx(100, abs=1)
    assert rates[top] == pytest.approx(0.9, abs=0.01)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=2e-3)
    assert learning_rate(0.0, 0.0) == 1.0


@pytest.mark.parametrize("power", [0.0, 6.94, 17.0])
def test_ema_is_its_closed_form(power: float) -> None:
    """Step i of t has the weight (1 - decay_i) (i / t) ** (power + 1), the product of all later decays."""
    net, ema = nn.Linear(3, 2), nn.Linear(3, 2)
    history = []
    generator = torch.Generator().manual_seed(5)
    for step in range(1, 41):
        with torch.no_grad():
            net.weight.copy_(torch.randn(2, 3, generator=generator))
        history.append(net.weight.clone())
        update_ema(ema, net, step, power)
    weights = torch.tensor([(1 - ema_decay(i, power)) * (i / 40) ** (power + 1) for i in range(1, 41)])
    assert weights.sum().item() == pytest.approx(1)
    torch.testing.assert_close(
        ema.weight, torch.einsum("t,tij->ij", weights, torch.stack(history)), rtol=1e-4, atol=1e-5
    )


def test_ema_of_the_first_step_is_that_step_and_of_constant_weights_is_constant() -> None:
    net, ema = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        net.weight.fill_(7.0)
        net.running_mean.fill_(3.0)
    for step in (1, 2, 3):
        update_ema(ema, net, step, 17.0)
        torch.testing.assert_close(ema.weight.data, torch.full((3,), 7.0))
    assert torch.equal(ema.running_mean, net.running_mean)  # type: ignore[arg-type]


def test_plain_mean_at_power_zero() -> None:
    net, ema = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    for step in range(1, 11):
        nn.init.constant_(net.weight, step)
        update_ema(ema, net, step, 0.0)
    assert ema.weight.item() == pytest.approx(5.5)
