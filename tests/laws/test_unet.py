import pytest
import torch
from hypothesis import given, settings, strategies as st

from pocketdiff.nets import GANS, NETS, GanNet, NetConfig, Network
from pocketdiff.nets.unet import UNet, UNetConfig

SMALL = UNetConfig(widths=(8, 16), blocks=1, embedding=16)


def filled(net: UNet) -> UNet:
    """A network with random weights in the zero-initialized layers too, so that its output depends on its input."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net


def run(net: UNet, x: torch.Tensor) -> torch.Tensor:
    n = len(x)
    with torch.no_grad():
        return net(x, torch.linspace(-1, 1, n), torch.arange(n) % 3)


def test_a_new_network_predicts_zeros_and_its_blocks_are_the_identity() -> None:
    net = UNetConfig().build((1, 28, 28), 10)
    x = torch.randn(2, 1, 28, 28)
    assert run(net, x).abs().max() == 0
    block = net.levels.down[0]
    h = torch.randn(2, 32, 14, 14)
    assert torch.equal(block(h, torch.randn(2, 128)), h)


@settings(max_examples=25, deadline=None)
@given(st.integers(16, 64), st.integers(16, 64), st.sampled_from([1, 3]), st.integers(1, 3))
def test_any_size_any_channels(height: int, width: int, channels: int, levels: int) -> None:
    net = filled(UNetConfig(widths=(8,) * levels, blocks=1, embedding=16).build((channels, height, width), 2))
    out = run(net, torch.randn(2, channels, height, width))
    assert out.shape == (2, channels, height, width)
    assert out.isfinite().all()


@pytest.mark.parametrize("size", range(27, 34))
def test_every_pixel_matters_at_odd_sizes(size: int) -> None:
    """The last row and column are an input, and have an output."""
    net = filled(SMALL.build((1, 28, 28), 2))
    x = torch.zeros(1, 1, size, size + 1)
    corner = x.clone()
    corner[..., -1, -1] = 1.0
    change = (run(net, corner) - run(net, x)).abs()
    assert change[..., -1, -1] > 0


def test_a_padded_image_is_the_image_with_its_edge_repeated() -> None:
    net = filled(SMALL.build((1, 28, 28), 2))
    x = torch.randn(1, 1, 26, 27)
    repeated = torch.nn.functional.pad(x, (0, 1, 0, 2), mode="replicate")
    torch.testing.assert_close(run(net, x), run(net, repeated)[..., :26, :27])


def test_label_and_noise_level_change_the_output() -> None:
    net = filled(SMALL.build((1, 28, 28), 2))
    x = torch.randn(1, 1, 28, 28)
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.long)
    with torch.no_grad():
        base, null, louder = net(x, one, zero), net(x, one, zero + 2), net(x, one * 1.1, zero)
    assert (base - null).abs().max() > 1e-3
    assert (base - louder).abs().max() > 1e-4


def test_an_image_does_not_depend_on_the_others_of_its_batch() -> None:
    net = filled(SMALL.build((1, 28, 28), 2))
    x = torch.randn(3, 1, 28, 28)
    noise, label = torch.linspace(-1, 1, 3), torch.tensor([0, 1, 2])
    with torch.no_grad():
        together = net(x, noise, label)
        alone = torch.cat([net(x[i : i + 1], noise[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_every_parameter_learns() -> None:
    net = filled(SMALL.build((1, 28, 28), 2))
    net(torch.randn(3, 1, 28, 28), torch.rand(3), torch.tensor([0, 1, 2])).square().mean().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == []


@pytest.mark.parametrize("wrong", [(), (12,), (0,), (32, 7)])
def test_widths_that_are_not_multiples_of_8_are_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="widths"):
        UNetConfig(widths=wrong)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 20)])
def test_every_network_fulfills_the_protocol(kind: str, shape: tuple[int, int, int]) -> None:
    config: NetConfig = NETS[kind]()
    net = config.build(shape, 3)
    assert isinstance(net, Network)
    assert config.kind == kind
    x = torch.randn(2, *shape)
    assert net.eval()(x, torch.tensor([0.1, 0.9]), torch.tensor([0, 3])).shape == x.shape


@pytest.mark.parametrize("kind", GANS)
def test_every_gan_fulfills_the_protocol(kind: str) -> None:
    config: GanNet = GANS[kind]()
    gan = config.build((3, 16, 20), 4)
    x = gan.generator(torch.randn(2, config.latent), torch.tensor([0, 3]))
    real, classes = gan.discriminator(x, torch.tensor([0, 3]))
    assert (x.shape, real.shape) == ((2, 3, 16, 20), (2,))
    assert (classes is not None) == config.conditional


def test_a_network_from_outside_needs_no_base_class_of_ours() -> None:
    class Wrong(torch.nn.Module):
        def forward(self, x: torch.Tensor, noise: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return x

    class Right(Wrong):
        adam_only = ()

    assert isinstance(Right(), Network)
    assert not isinstance(Wrong(), Network)
