"""A network of other code becomes an encoder: keys and values, in-place layers, strides."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import regnet_x_400mf

from models.adopted import AdoptedEncoder, with_our_batch_norm
from models.batchnorm import BatchNorm2d, batch_norms, bn_updates, configure_batchnorm


class NormThenActivation(nn.BatchNorm2d):
    """Like timm's: it has only the keys of batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class ActivationFirst(nn.Module):
    """The activation changes the input in place; the shortcut gets the changed input."""

    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, padding=1, bias=False), NormThenActivation(channels)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(self.activation(x)))
        return x + y


class OtherNetwork(nn.Module):
    def __init__(self, last: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8, eps=1e-2))
        self.body = nn.ModuleDict({"two": ActivationFirst(8, nn.Hardswish(inplace=True)), "unused": nn.Conv2d(8, 9, 1)})
        self.down = last or nn.Conv2d(8, 12, 2, 2)
        self.fc = nn.Linear(12, 10)


def stages(net: nn.Module) -> list[list[nn.Module]]:
    return [[net.stem], [net.body["two"], net.down]]


@pytest.fixture
def theirs() -> OtherNetwork:
    """A network with other batch-norm statistics and weights than a new one."""
    torch.manual_seed(0)
    net = OtherNetwork()
    for name, tensor in net.state_dict().items():
        if tensor.ndim == 1 and "num" not in name:
            tensor.uniform_(0.5, 1.5)
    return net


def test_keys_values_and_features_stay(theirs):
    before = copy.deepcopy(theirs).eval()
    ours = AdoptedEncoder(theirs, stages).eval()
    kept = {key: value for key, value in before.state_dict().items() if key.startswith(("stem", "body.two", "down"))}
    assert ours.state_dict().keys() == {key for key in kept if "num_batches" not in key}
    assert all(torch.equal(value, kept[key]) for key, value in ours.state_dict().items())
    assert set(ours.classifier) == {f"{name}.{kind}" for name in ("fc", "body.unused") for kind in ("weight", "bias")}
    assert len(bn_updates(ours)) == 2 and (ours.channels, ours.strides) == ((8, 12), (2, 4))
    images = torch.randn(2, 3, 16, 24)
    given = images.clone()
    first, last = ours(given)
    expected = before.stem(images)
    assert torch.allclose(first, expected, atol=1e-6)  # before the second stage changes it in place
    assert torch.allclose(last, before.down(before.body["two"](expected)), atol=1e-5) and torch.equal(given, images)


def test_recomputation_starts_from_what_was_not_changed_in_place(theirs):
    plain = AdoptedEncoder(theirs, stages)
    configure_batchnorm(plain, 0.1, True)
    saving, images, results = copy.deepcopy(plain), torch.randn(2, 3, 16, 24), []
    for encoder in (plain, saving):
        features = encoder(images, recompute=encoder is saving)
        sum(feature.sin().sum() for feature in features).backward()
        results.append([*features, *(p.grad for p in encoder.parameters()), *encoder.state_dict().values()])
        assert set(bn_updates(encoder).values()) == {1}
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results, strict=True))


def test_measuring_moves_no_statistic_and_no_random_number(theirs):
    theirs.stem.append(nn.Dropout(0.5))
    before, state = copy.deepcopy(theirs.state_dict()), torch.get_rng_state()
    ours = AdoptedEncoder(theirs, stages, output_stride=2)
    assert torch.equal(torch.get_rng_state(), state) and all(module.training for module in ours.modules())
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())
    assert all(norm.updates == 0 for _, norm in batch_norms(ours))


def test_dilation_keeps_the_values_of_shortcuts_and_groups_too():
    def of(net: nn.Module) -> list:
        return [[net.stem, *net.trunk_output[0]], *net.trunk_output[1:]]

    torch.manual_seed(0)
    plain = regnet_x_400mf()
    undilated = AdoptedEncoder(copy.deepcopy(plain), of).eval()
    images = torch.randn(1, 3, 96, 161)
    with torch.no_grad():
        expected = undilated(images)
        for output_stride in (4, 16):
            dilated = AdoptedEncoder(copy.deepcopy(plain), of, output_stride).eval()
            assert dilated.strides == tuple(min(stride, output_stride) for stride in undilated.strides)
            for feature, other, stride in zip(dilated(images), expected, undilated.strides, strict=True):
                step = max(1, stride // output_stride)
                assert torch.allclose(feature[:, :, ::step, ::step], other, rtol=1e-4, atol=1e-4)


def test_strides_that_are_no_convolutions_are_refused(theirs):
    with pytest.raises(ValueError, match="output stride 2 is impossible, .* stride 4"):
        AdoptedEncoder(OtherNetwork(nn.AvgPool2d(2)), stages, output_stride=2)


class Scaled(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_other_batch_norms_are_refused():
    with pytest.raises(ValueError, match="Scaled computes something else"):
        with_our_batch_norm(nn.Sequential(Scaled(3)))
    with pytest.raises(RuntimeError, match="running_mean"):
        with_our_batch_norm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))


def test_conversion_leaves_ours_and_takes_the_synchronised():
    ours = BatchNorm2d(3)
    net = with_our_batch_norm(nn.Sequential(ours, nn.SyncBatchNorm(3)))
    assert net[0] is ours and [name for name, _ in batch_norms(net)] == ["0", "1"]
