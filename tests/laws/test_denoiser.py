import pytest
import torch
from torch import Tensor, nn

from pocketdiff.denoiser import PARAMETERIZATIONS, WEIGHTINGS, Denoiser, Scaling
from pocketdiff.schedule import Karras

SHAPE = (6, 1, 4, 4)
SIGMA = torch.logspace(-2, 2, 6, dtype=torch.float64)
LABEL = torch.zeros(6, dtype=torch.long)


class Constant(nn.Module):
    """A network with a fixed output that records its input."""

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
def test_loss_is_that_of_the_paper(name: str) -> None:
    expected = (OUTPUT - TARGETS[name]).square().mean((1, 2, 3))
    torch.testing.assert_close(make(name).loss(X0, EPS, SIGMA, LABEL), expected, rtol=1e-9, atol=1e-12)


def test_loss_is_that_of_edm() -> None:
    sigma_data = 0.5
    skip = sigma_data**2 / (S**2 + sigma_data**2)
    out = S * sigma_data / torch.sqrt(S**2 + sigma_data**2)
    target = (X0 - skip * X) / out  # Karras et al. 2022, equation 8; the sign of the network's output is the opposite
    expected = (-OUTPUT - target).square().mean((1, 2, 3))
    torch.testing.assert_close(make("v", sigma_data=sigma_data).loss(X0, EPS, SIGMA, LABEL), expected)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_a_perfect_network_predicts_the_clean_image(name: str) -> None:
    denoiser = make(name, TARGETS[name])
    torch.testing.assert_close(denoiser(X, SIGMA, LABEL), X0, rtol=1e-9, atol=1e-9)
    assert denoiser.loss(X0, EPS, SIGMA, LABEL).max() < 1e-18


@pytest.mark.parametrize("name", ["eps", "x0", "v"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_input_has_unit_variance(name: str, sigma_data: float) -> None:
    in_ = make(name, sigma_data=sigma_data).scaling(SIGMA).in_
    torch.testing.assert_close(in_**2 * (S**2 + sigma_data**2), torch.ones_like(in_))


def test_network_input_is_ddpms_image_and_the_log_of_the_noise_level() -> None:
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


def test_output_of_a_half_precision_network_has_the_dtype_of_the_image() -> None:
    denoiser = make("flow", OUTPUT.to(torch.bfloat16))
    assert denoiser(X, SIGMA, LABEL).dtype == torch.float64
    assert denoiser.loss(X0, EPS, SIGMA, LABEL).dtype == torch.float64


SNR = 1 / SIGMA**2
WEIGHTS = {  # Hang et al. 2023: the weight of the simple loss, with SNR = alpha^2 / sigma^2 and sigma_data = 1
    "eps": SNR.clamp(max=5) / SNR,
    "x0": SNR.clamp(max=5),
    "v": SNR.clamp(max=5) / (SNR + 1),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_min_snr_is_that_of_the_paper(name: str) -> None:
    denoiser = make(name)
    weighted = denoiser.loss(X0, EPS, SIGMA, LABEL, WEIGHTINGS["min_snr"])
    torch.testing.assert_close(weighted, WEIGHTS[name] * denoiser.loss(X0, EPS, SIGMA, LABEL))


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_edm_weighting_is_that_of_the_paper(name: str) -> None:
    """Karras et al. 2022, equation 2 and table 1: the weighted error of x0_hat, for every parameterization."""
    denoiser = make(name, sigma_data=0.5)
    weight = (SIGMA**2 + 0.25) / (SIGMA * 0.5) ** 2
    expected = weight * (denoiser(X, SIGMA, LABEL) - X0).square().mean((1, 2, 3))
    torch.testing.assert_close(denoiser.loss(X0, EPS, SIGMA, LABEL, WEIGHTINGS["edm"]), expected)
    if name == "v":
        torch.testing.assert_close(WEIGHTINGS["edm"](S, denoiser.scaling(SIGMA), 0.5), torch.ones_like(S))


@pytest.mark.parametrize(("weighting", "parameterization"), [("uniform", "flow"), ("min_snr", "eps"), ("edm", "v")])
def test_weights_are_finite_where_sigma_squared_is_not(weighting: str, parameterization: str) -> None:
    sigma = torch.logspace(-20, 20, 41).view(-1, 1, 1, 1)
    weight = WEIGHTINGS[weighting](sigma, PARAMETERIZATIONS[parameterization](sigma, 0.5), 0.5)
    assert weight.shape == sigma.shape
    assert ((weight >= 0) & (weight < 1.001)).all()
    assert weight[-1] == pytest.approx(1)


def test_uniform_weighting_changes_no_bit_of_loss_and_gradient() -> None:
    output = OUTPUT.clone().requires_grad_()
    denoiser = make("flow", output)
    loss = denoiser.loss(X0, EPS, SIGMA, LABEL)
    (gradient,) = torch.autograd.grad(loss.mean(), output)
    skip, out, _ = denoiser.scaling(SIGMA)
    plain = (output - (X0 - skip * X) / out).square().mean((1, 2, 3))
    assert torch.equal(loss, plain)
    assert torch.equal(gradient, torch.autograd.grad(plain.mean(), output)[0])


def test_parameterizations_and_weightings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice_eps(sigma: Tensor, sigma_data: float) -> Scaling:
        return Scaling(torch.ones_like(sigma), -sigma / 2, torch.ones_like(sigma))

    def level(sigma: Tensor, scaling: Scaling, sigma_data: float) -> Tensor:
        return sigma

    with pytest.raises(ValueError, match="there is no parameterization 'twice_eps'"):
        make("twice_eps")
    monkeypatch.setitem(PARAMETERIZATIONS, "twice_eps", twice_eps)
    monkeypatch.setitem(WEIGHTINGS, "level", level)
    expected = SIGMA * (OUTPUT - 2 * EPS).square().mean((1, 2, 3))
    torch.testing.assert_close(make("twice_eps").loss(X0, EPS, SIGMA, LABEL, WEIGHTINGS.find("level")), expected)


def test_print_shows_the_settings() -> None:
    assert "v, sigma_data=0.5, num_classes=10" in repr(make("v", sigma_data=0.5))
