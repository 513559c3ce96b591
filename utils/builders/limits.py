"""What does not go together: sizes, batches, the network, the images. Said before anything is computed."""

from collections.abc import Sequence

from dataset.folders import Sample
from dataset.loader import different_sizes
from dataset.messages import ChoiceError, DataError
from dataset.reading import read_image, stored_size
from models.segmentor import Segmentor
from utils import distributed
from utils.config.schema import Config, ConfigError, Domain, Size


def check_input_sizes(config: Config, model: Segmentor) -> None:
    """Whether what the network is to see is as large as one place of its last feature map.

    Raises:
        ConfigError: a side of a crop, of an input without crop, or of the test input is smaller.
    """
    stride = model.encoder.strides[-1]
    sizes: dict[str, Size | None] = {"test.input_size": config.test.input_size}
    for name, options in (("source", config.source), ("target", config.target)):
        key = "input_size" if options.crop_size is None else "crop_size"
        sizes[f"{name}.{key}"] = getattr(options, key)
    for name, size in sizes.items():
        if size is not None and min(size) < stride:
            raise ConfigError(
                f"{name} is {list(size)} (W, H), {config.model.encoder} makes one place of {stride}x{stride} pixels: "
                "each side must be that at least"
            )


def check_batch(model: Segmentor, images: int, key: str) -> None:
    """Whether batch norm has two values a channel of ``images`` in a forward pass of each process.

    Raises:
        ConfigError: it has one, in a head that averages the whole image; the message names ``key``.
    """
    if model.decoder.pools_whole_image and images * distributed.world_size() < 2:
        raise ConfigError(
            f"{key} leaves one image in a forward pass, whose average over the image is one value a channel: batch "
            "norm of this model.decoder needs two images"
        )


def check_one_size(samples: Sequence[Sample]) -> None:
    """Whether all images have one size, by their headers; those that cannot be read are left to who reads them.

    Raises:
        DataError: two do not.
    """
    first: tuple[Sample, Size, Size] | None = None
    for sample in samples:
        try:
            stored = stored_size(sample.image)
            if first and stored == first[1]:
                continue
            size = read_image(sample.image).size  # upright
        except DataError:
            continue
        if first is None:
            first = sample, stored, size
        elif size != first[2]:
            raise DataError(different_sizes(str(first[0].image), first[2], str(sample.image), size))


def check_whole_images(options: Domain, samples: Sequence[Sample], images: int) -> None:
    """Whether batches of ``images`` can be made of what ``options`` leave of ``samples``.

    Raises:
        ChoiceError: a random scale without a crop. DataError: no size is set, and the images have several.
    """
    if images == 1 or options.crop_size is not None:
        return
    if options.scale is not None and options.scale[0] < options.scale[1]:
        raise ChoiceError(
            f"a random scale of {list(options.scale)} gives every image another size, which is no batch: set crop_size"
        )
    if options.input_size is None:
        check_one_size(samples)
