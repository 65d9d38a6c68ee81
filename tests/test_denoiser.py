import pytest
import torch
from torch import Tensor, nn

from pocketdiff.denoiser import PARAMETERIZATIONS, Denoiser
from pocketdiff.schedule import Karras

SHAPE = (6, 1, 4, 4)
SIGMA = torch.logspace(-2, 2, 6, dtype=torch.float64)
LABEL = torch.zeros(6, dtype=torch.long)


class Constant(nn.Module):
    """A network that gives a prepared output and remembers what it was asked."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output
        self.seen: tuple[Tensor, ...] = ()

    def forward(self, x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        self.seen = (x, noise, label)
        return self.output


def draw(seed: int) -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X0, EPS, OUTPUT = draw(1), draw(2), draw(3)
S = SIGMA.view(-1, 1, 1, 1)
X = X0 + S * EPS


def make(parameterization: str, output: Tensor = OUTPUT, sigma_data: float = 1.0) -> Denoiser:
    return Denoiser(Constant(output), parameterization, sigma_data, 10, Karras().noise_input)


ALPHA = 1 / torch.sqrt(1 + S**2)  # sqrt(alpha_bar) of DDPM
TARGETS = {
    "eps": EPS,  # Ho et al. 2020, equation 14
    "x0": X0,
    "v": ALPHA * EPS - ALPHA * S * X0,  # Salimans and Ho 2022, section 4
    "flow": EPS - X0,  # Liu et al. 2022, equation 1, time reversed
}


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_loss_is_the_papers(name: str) -> None:
    expected = (OUTPUT - TARGETS[name]).square().mean((1, 2, 3))
    torch.testing.assert_close(make(name).loss(X0, EPS, SIGMA, LABEL), expected, rtol=1e-9, atol=1e-12)


def test_loss_is_edms() -> None:
    sigma_data = 0.5
    skip = sigma_data**2 / (S**2 + sigma_data**2)
    out = S * sigma_data / torch.sqrt(S**2 + sigma_data**2)
    target = (X0 - skip * X) / out  # Karras et al. 2022, equation 8; the network's sign is turned
    expected = (-OUTPUT - target).square().mean((1, 2, 3))
    torch.testing.assert_close(make("v", sigma_data=sigma_data).loss(X0, EPS, SIGMA, LABEL), expected)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_a_network_that_hits_its_target_gives_the_clean_image(name: str) -> None:
    denoiser = make(name, TARGETS[name])
    torch.testing.assert_close(denoiser(X, SIGMA, LABEL), X0, rtol=1e-9, atol=1e-9)
    assert denoiser.loss(X0, EPS, SIGMA, LABEL).max() < 1e-18


@pytest.mark.parametrize("name", ["eps", "x0", "v"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_input_has_unit_variance(name: str, sigma_data: float) -> None:
    in_ = make(name, sigma_data=sigma_data).scaling(SIGMA).in_
    torch.testing.assert_close(in_**2 * (S**2 + sigma_data**2), torch.ones_like(in_))


def test_network_sees_ddpms_image_and_the_log_of_the_noise_level() -> None:
    denoiser = make("eps")
    denoiser(X, SIGMA, LABEL)
    assert isinstance(denoiser.net, Constant)
    x, noise, label = denoiser.net.seen
    torch.testing.assert_close(x, ALPHA * X0 + torch.sqrt(1 - ALPHA**2) * EPS)  # Ho et al. 2020, equation 4
    torch.testing.assert_close(noise, SIGMA.log() / 4)
    assert label is LABEL


def test_flow_input_is_the_straight_line() -> None:
    denoiser = make("flow")
    denoiser(X, SIGMA, LABEL)
    assert isinstance(denoiser.net, Constant)
    t = S / (1 + S)
    torch.testing.assert_close(denoiser.net.seen[0], (1 - t) * X0 + t * EPS)


def test_half_precision_output_does_not_spread() -> None:
    denoiser = make("flow", OUTPUT.to(torch.bfloat16))
    assert denoiser(X, SIGMA, LABEL).dtype == torch.float64
    assert denoiser.loss(X0, EPS, SIGMA, LABEL).dtype == torch.float64
