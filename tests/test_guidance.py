import pytest
import torch
from torch import Tensor, nn

from pocketdiff.denoiser import Denoiser
from pocketdiff.guidance import guide
from pocketdiff.schedule import Karras

X = torch.randn(4, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABEL = torch.tensor([0, 1, 2, 1])
SIGMA = 0.7


class ByLabel(nn.Module):
    """Predicts noise that depends on image and label; counts its calls."""

    calls = 0

    def forward(self, x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        self.calls += 1
        return torch.sin(x * (1 + label.view(-1, 1, 1, 1)))


def make() -> Denoiser:
    return Denoiser(ByLabel(), "eps", 1.0, 3, Karras().noise_input)


def level(n: int) -> Tensor:
    return torch.full((n,), SIGMA, dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 3.0])
def test_guidance_in_x0_space_equals_guidance_in_eps_space(scale: float) -> None:
    denoiser = make()
    w = scale - 1
    scaled = X / (1 + SIGMA**2) ** 0.5
    cond, null = (denoiser.net(scaled, level(4), label) for label in (LABEL, torch.full_like(LABEL, 3)))
    expected = X - SIGMA * ((1 + w) * cond - w * null)  # Ho and Salimans 2022, equation 6
    torch.testing.assert_close(guide(denoiser, LABEL, scale)(X, SIGMA), expected, rtol=1e-12, atol=1e-12)


def test_scale_1_is_no_guidance() -> None:
    denoiser = make()
    plain = guide(denoiser, LABEL)(X, SIGMA)
    assert torch.equal(plain, denoiser(X, level(4), LABEL))
    nearly = guide(denoiser, LABEL, 1 + 1e-12)(X, SIGMA)
    torch.testing.assert_close(nearly, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_one_call_a_step(scale: float) -> None:
    denoiser = make()
    guide(denoiser, LABEL, scale)(X, SIGMA)
    assert isinstance(denoiser.net, ByLabel)
    assert denoiser.net.calls == 1


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    denoiser = make()
    together = guide(denoiser, LABEL, 2.0)(X, SIGMA)
    alone = torch.cat([guide(denoiser, LABEL[i : i + 1], 2.0)(X[i : i + 1], SIGMA) for i in range(4)])
    torch.testing.assert_close(together, alone)
