"""Build the network and the optimiser of a configuration."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from dataset.messages import SHOWN, ChoiceError, Report
from models import build_segmentor
from models.batchnorm import bn_updates, configure_batchnorm, set_bn_updates
from models.segmentor import Segmentor, parameter_groups, set_dropout
from models.weights import WeightsError, load_checkpoint_weights, load_encoder_decoder, read_checkpoint
from utils import distributed
from utils.config.schema import Config, ConfigError, Model, Size, Train
from utils.run_folder.checkpoint import class_table_of, resolve_weights, saved_keys

T = TypeVar("T")


def build_network(config: Config, device: torch.device) -> Segmentor:
    """The configured architecture with seeded initial weights.

    Raises:
        ChoiceError, ConfigError: names or sizes that do not fit together.
    """
    m = config.model
    torch.default_generator.manual_seed(config.seed)  # for the weights, drawn on the CPU; the caller seeds the GPUs
    model = build_segmentor(m.encoder, m.decoder, config.num_classes, m.fc_dim, m.use_aux)
    check_input_sizes(config, model)
    configure_batchnorm(model, m.bn_momentum, m.bn_bias_correction)
    if m.dropout is not None:
        set_dropout(model, m.dropout)
    if config.train.channels_last:
        convert_conv2d_weight_memory_format(model, torch.channels_last)  # no other weight has four dimensions
    return model.to(device)


def load_network(config: Config, files: Sequence[str | Path], device: torch.device) -> tuple[Segmentor, str]:
    """The configured network with trained weights, and a report of the loaded tensors for the log.

    Args:
        files: one checkpoint of this project, or an encoder and a decoder file of the released code.
    """
    model = build_network(config, device)
    if len(files) == 2:
        return model, _load_first(model, lambda: load_encoder_decoder(model, *map(str, files)))
    return model, _load_first(model, lambda: _load_checkpoint(config, model, files[0]))


def _load_checkpoint(config: Config, model: Segmentor, path: str | Path) -> str:
    """Load a checkpoint of this project. It must have the classes of ``config`` in the same order. Returns the report.

    Colours and ids may differ. Older checkpoints contain no class names: only the number of classes is compared.

    Raises:
        WeightsError: the checkpoint is damaged or has other classes; the message names the different classes.
    """
    content = read_checkpoint(path)
    names = class_table_of(content, config, str(path)).names if "classes" in content else ()
    number = len(names) or saved_keys(content, path).get("num_classes", config.num_classes)
    if number != config.num_classes:
        raise WeightsError(
            f"{path} has {number} classes, the configuration has {config.num_classes}: set the same classes"
        )
    pairs = enumerate(zip(names, config.class_table.names, strict=True)) if names else ()
    if differing := [f"class {c} is {there} there, {here} here" for c, (there, here) in pairs if there != here]:
        raise WeightsError(
            f"{path} has other classes than the configuration: {'; '.join(differing[:SHOWN])}. Use the checkpoint's "
            "classes and order in the id tables, or train a network with yours"
        )
    return load_checkpoint_weights(model, content, path)


def _load_first(model: Segmentor, load: Callable[[], T]) -> T:
    """Let the first process load weights into ``model`` and send them to all. The others do not need the file.

    Returns:
        the report of ``load``.
    """
    report, updates = distributed.from_first(lambda: (load(), bn_updates(model)))
    distributed.broadcast_model(model)
    set_bn_updates(model, updates)
    return report


def build_model(config: Config, report: Report, device: torch.device, pretrained: bool = True) -> Segmentor:
    """Network for training, equal on all processes; ``pretrained``: with the starting weights of ``model.*``."""
    t = config.train
    if t.compile and t.checkpoint_encoder:
        raise ChoiceError(
            "train.compile cannot compile the recomputation of train.checkpoint_encoder: set one of them to false"
        )
    model = build_network(config, device)
    for line in _load_first(model, lambda: _load_start(config, model) if pretrained else []):
        report(line)
    model.checkpoint_encoder = t.checkpoint_encoder
    if t.compile:
        model.compile()  # in place: the state-dict keys do not change
    return model


def _load_start(config: Config, model: Segmentor) -> list[str]:
    """Load the starting weights of ``model.*``. Returns lines for the log."""
    m = config.model
    parts = [path for path in (m.weights_encoder, m.weights_decoder) if path]
    if m.whole_network:
        report = _load_checkpoint(config, model, resolve_weights(m.whole_network))
        unused = [f"not loaded, because model.weights is the whole network: {' and '.join(parts)}"] if parts else []
        return [report, *unused]
    return [load_encoder_decoder(model, m.weights_encoder, m.weights_decoder)] if parts else []


def starting_files(m: Model) -> list[str]:
    """The existing files of ``model.*`` from which a new training starts."""
    given: list[str | None] = [m.weights_encoder, m.weights_decoder]
    if m.whole_network:
        given = [str(resolve_weights(m.whole_network))]
    return [path for path in given if path and Path(path).is_file()]


def build_optimizer(t: Train, model: Segmentor) -> torch.optim.SGD:
    """SGD with the encoder's and the decoder's learning rates; weight decay on convolution weights only."""
    groups = parameter_groups(model.encoder, t.lr_encoder, t.weight_decay)
    groups += parameter_groups(model.decoder, t.lr_decoder, t.weight_decay)
    return torch.optim.SGD(groups, lr=t.lr_decoder, momentum=t.momentum)


def check_input_sizes(config: Config, model: Segmentor) -> None:
    """Check that all inputs of the network are at least as large as the stride of its last feature map.

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
                f"{name} is {list(size)} (W, H), but {config.model.encoder} has stride {stride}: each side must be at "
                f"least {stride}"
            )


def check_batch(model: Segmentor, images: int, key: str) -> None:
    """Check that batch norm gets two values per channel from ``images`` in a forward pass of each process.

    Raises:
        ConfigError: it gets one value, in a head that averages the whole image; the message names ``key``.
    """
    if model.decoder.pools_whole_image and images * distributed.world_size() < 2:
        raise ConfigError(
            f"{key} gives one image in a forward pass. model.decoder averages the whole image, so its batch norm needs "
            "two images"
        )
