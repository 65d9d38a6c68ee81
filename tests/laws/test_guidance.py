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
    """Predicts noise that depends on image and label; counts its evaluations."""

    def __init__(self, phase: float = 0.0) -> None:
        super().__init__()
        self.phase = phase
        self.calls = self.evaluations = 0

    def forward(self, x: Tensor, noise: Tensor, label: Tensor) -> Tensor:
        self.calls += 1
        self.evaluations += len(x)
        return torch.sin(self.phase + x * (1 + label.view(-1, 1, 1, 1)))


def make(phase: float = 0.0) -> Denoiser:
    return Denoiser(ByLabel(phase), "eps", 1.0, 3, Karras().noise_input)


def evaluations(denoiser: Denoiser) -> int:
    """Evaluations per image so far."""
    assert isinstance(denoiser.net, ByLabel)
    return denoiser.net.evaluations // len(X)


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


def test_an_image_does_not_depend_on_the_others_of_its_batch() -> None:
    denoiser = make()
    together = guide(denoiser, LABEL, 2.0)(X, SIGMA)
    alone = torch.cat([guide(denoiser, LABEL[i : i + 1], 2.0)(X[i : i + 1], SIGMA) for i in range(4)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("interval", [(SIGMA * 1.01, 9.0), (0.0, SIGMA * 0.99)])
@pytest.mark.parametrize("weak", [None, make(0.5)])
def test_outside_the_interval_a_step_is_conditional_and_costs_one_evaluation(interval, weak: Denoiser | None) -> None:
    denoiser = make()
    before = 0 if weak is None else evaluations(weak)
    x0_hat = guide(denoiser, LABEL, 2.0, interval=interval, weak=weak)(X, SIGMA)
    assert evaluations(denoiser) == 1
    assert weak is None or evaluations(weak) == before
    assert torch.equal(x0_hat, denoiser(X, level(4), LABEL))


@pytest.mark.parametrize("interval", [(0.0, 9.0), (SIGMA, 9.0), (0.0, SIGMA)])
def test_inside_the_interval_guidance_is_unchanged(interval: tuple[float, float]) -> None:
    denoiser = make()
    guided = guide(denoiser, LABEL, 2.0, interval=interval)(X, SIGMA)
    assert evaluations(denoiser) == 2
    assert torch.equal(guided, guide(denoiser, LABEL, 2.0)(X, SIGMA))
    assert not torch.equal(guided, guide(denoiser, LABEL, 1.0)(X, SIGMA))
    assert torch.equal(guide(denoiser, LABEL, 1.0, interval=interval)(X, SIGMA), denoiser(X, level(4), LABEL))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.5])
def test_autoguidance_extrapolates_from_the_weak_model(scale: float) -> None:
    strong, weak = make(), make(0.5)
    guided = guide(strong, LABEL, scale, weak=weak)(X, SIGMA)
    assert (evaluations(strong), evaluations(weak)) == (1, 0 if scale == 1 else 1)
    better, worse = strong(X, level(4), LABEL), weak(X, level(4), LABEL)
    torch.testing.assert_close(guided, worse + scale * (better - worse), rtol=1e-12, atol=1e-12)


def test_a_model_guided_by_itself_is_itself() -> None:
    denoiser = make()
    assert torch.equal(guide(denoiser, LABEL, 3.0, weak=denoiser)(X, SIGMA), denoiser(X, level(4), LABEL))
