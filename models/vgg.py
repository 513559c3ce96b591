"""VGG-16 encoder of the FCN8s head, without its classifier."""

from torch import Tensor, nn

from models.encoder import Encoder

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and 3x3 convolutions before each pooling


class VGG16(Encoder):
    """Convolutions and poolings of VGG-16, numbered in ``features`` as torchvision numbers them.

    Poolings round sizes up, as those of FCN8s do: no row or column at the border is lost.
    """

    # What an ImageNet file has on top of the encoder; the FCN8s head is initialised from the first two layers.
    classifier = tuple(f"classifier.{layer}.{kind}" for layer in (0, 3, 6) for kind in ("weight", "bias"))

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        inputs = 3
        for channels, count in BLOCKS:
            for _ in range(count):
                self.features.extend([nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(inplace=True)])
                inputs = channels
            self.features.append(nn.MaxPool2d(2, 2, ceil_mode=True))
        self.channels = tuple(channels for channels, _ in BLOCKS)
        self.strides = tuple(2 ** (i + 1) for i in range(len(BLOCKS)))

    def forward(self, x: Tensor, recompute: bool = False) -> tuple[Tensor, ...]:
        """(N, 3, H, W) -> the five pooled feature maps, strides 2, 4, 8, 16 and 32; see ``Encoder``."""
        features, start = [], 0
        for _, count in BLOCKS:
            end = start + 2 * count + 1
            x = self.run([self.features[start:end]], x, recompute)
            features.append(x)
            start = end
        return tuple(features)
