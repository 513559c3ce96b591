"""Every configuration key: its type, default and meaning. The help names the paper's symbol if there is one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset.labels import DATA_SETS, ClassTable, class_table, is_id_table
from dataset.messages import SHORT, DataError, UserError

SCRATCH = "scratch"  # value of model.weights: random weights, on purpose
LIST = "list"  # own data: a list names the pairs, a table the label ids
DATASETS = (*DATA_SETS, LIST)
TARGETS = "target"  # value of test.dataset: the same as target.dataset
Size = tuple[int, int]  # (W, H) in pixels
Range = tuple[float, float]


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message names the key."""

    longest = SHORT


@dataclass(frozen=True)
class Interval:
    """The numbers that a key accepts."""

    text: str
    holds: Callable[[float], bool]


COUNT = Interval("at least 0", lambda x: x >= 0)
POSITIVE = Interval("at least 1", lambda x: x >= 1)
WEIGHT = COUNT  # weight of a loss, or a rate: 0 disables it
ABOVE_0 = Interval("above 0", lambda x: x > 0)
TIMES = Interval("above 0 and at most 10", lambda x: 0 < x <= 10)  # the size of an input
SHARE = Interval("0 to 1", lambda x: 0 <= x <= 1)
FRACTION = Interval("at least 0 and below 1", lambda x: 0 <= x < 1)
MOMENTUM = Interval("above 0 and at most 1", lambda x: 0 < x <= 1)  # 0 would never change a running average
ANGLE = Interval("-180 to 180", lambda x: -180 <= x <= 180)  # degrees
CLASSES = Interval("1 to 254", lambda x: 1 <= x <= 254)  # train ids have 8 bits; 254 and 255 have other meanings


def key(
    default: Any,
    help: str,
    admits: Interval | tuple[str, ...] | None = None,
    *,
    path: bool = False,
    needs_one: bool = False,
) -> Any:
    """A configuration key with its default and meaning.

    Args:
        admits: the numbers that the value, or each entry of a tuple, may have; or the names that it may have.
        path: the value is the path of a file or folder, see ``expand_path``.
        needs_one: the tuple must not be empty.
    """
    return field(default=default, metadata={"help": help, "admits": admits, "path": path, "needs_one": needs_one})


@dataclass
class Model:
    encoder: str = key("resnet101_dilated8", "encoder name, see models/segmentor.py")
    decoder: str = key("ppm_bilinear", "head name, see models/segmentor.py")
    fc_dim: int | None = key(None, "must equal the encoder's output channels; null: the encoder's own", POSITIVE)
    use_aux: bool = key(True, "train an auxiliary head on conv4 of the source images")
    weights: str | None = key(
        None,
        "start from the whole network of a run: a run folder (its best.pth, else last.pth) or a file; "
        "scratch: random weights, which PyCDA uses only with this value",
        path=True,
    )
    weights_encoder: str | None = key(
        None, "encoder file: ImageNet or official checkpoint; or the name of torchvision weights", path=True
    )
    weights_decoder: str | None = key(None, "decoder file of an official checkpoint", path=True)
    bn_momentum: float = key(0.001, "batch-norm momentum of the running average", MOMENTUM)
    bn_bias_correction: bool = key(True, "update t has momentum m / (1 - (1-m)^(t+1)), as in the released code")
    dropout: float | None = key(
        None, "probability of all dropout layers; null: the head's default, 0.1 (fcn8s: 0.5)", FRACTION
    )

    @property
    def whole_network(self) -> str | None:
        """The run or checkpoint from which to start, if ``weights`` names one."""
        return None if self.weights == SCRATCH else self.weights


class _Labelled:
    """A data set with labels."""

    dataset: str
    id_table: str | None

    @property
    def label_kind(self) -> str:
        """The label kind of ``dataset.labels``: the data set's name, or the file of an id table.

        Raises:
            ConfigError: a list without an id table, or a table for SYNTHIA.
        """
        if self.dataset == LIST and self.id_table is None:
            raise ConfigError("dataset list needs an id_table")
        if self.dataset == "synthia" and self.id_table is not None:
            raise ConfigError(f"id_table {self.id_table}: a table is for 8-bit labels, SYNTHIA has 16-bit labels")
        return self.id_table or self.dataset


@dataclass
class Domain(_Labelled):
    dataset: str = key("cityscapes", "folder layout and label ids; list: own data, listed in data_list", DATASETS)
    id_table: str | None = key(
        None, "YAML file of the classes and raw label ids; null: Cityscapes' 19; dataset list needs a file", path=True
    )
    data_dir: str = key("", "root folder of the data set", path=True)
    split: str = key("train", "split folder (Cityscapes layout only)")
    data_list: str | None = key(
        None, "text file with one image path a line (list: and its label path); null: scan the folder", path=True
    )
    label_list: str | None = key(
        None, "text file with one label path a line, in the same order; null: labels by file name", path=True
    )
    input_size: Size | None = key(None, "resize images to this [W, H]; null: keep the size", POSITIVE)
    scale: Range | None = key(None, "random scale [min, max] on top of input_size; null: none", ABOVE_0)
    scale_from: str = key(
        "resized",
        "image that the random scale resizes: resized to input_size (released), or the original (sharper)",
        ("resized", "original"),
    )
    rotate: Range | None = key(None, "random rotation [min, max] in degrees; null: none", ANGLE)
    flip: bool = key(False, "random horizontal flip")
    crop_size: Size | None = key(
        None, "random crop [W, H], padded where the image is smaller; null: the full image", POSITIVE
    )


@dataclass
class Validation:
    held_out: int = key(500, "target training images held out for model selection; 0: no validation", COUNT)
    held_out_seed: int = key(0, "seed of the fixed choice of the held-out images", COUNT)
    data_dir: str | None = key(None, "root folder of the images in data_list; null: target.data_dir", path=True)
    data_list: str | None = key(None, "text file of the held-out images instead of the seeded choice", path=True)
    label_list: str | None = key(None, "text file of their labels, in the same order", path=True)
    label_dir: str | None = key(None, "root folder of the labels in label_list; null: the images' root", path=True)
    every: int = key(1000, "validate and save after this many iterations", POSITIVE)


@dataclass
class Evaluation(_Labelled):
    dataset: str = key(TARGETS, "folder layout and label ids; target: the same as target.dataset", (*DATASETS, TARGETS))
    id_table: str | None = key(
        None,
        "YAML file of the classes and raw label ids; null: target.id_table, if dataset is the target's or list",
        path=True,
    )
    data_dir: str | None = key(None, "root folder; null: target.data_dir", path=True)
    split: str = key("val", "split folder (Cityscapes layout only)")
    data_list: str | None = key(
        None,
        "text file with one image path a line (list: and its label path); null: scan the folder (list: no test set)",
        path=True,
    )
    label_list: str | None = key(None, "text file with one label path a line, in the same order", path=True)
    label_dir: str | None = key(None, "root folder of the labels in label_list; null: the images' root", path=True)
    input_size: Size | None = key(
        (1024, 512),
        "network input [W, H]; null: keep the size (the default for list); scores are always at the label's size",
        POSITIVE,
    )
    window: Size | None = key(
        None,
        "split the network input into overlapping windows of this [W, H] and average their probabilities, "
        "for images too large for the memory; null: one pass over the whole image",
        POSITIVE,
    )
    upsampling: str = key(
        "released",
        "logits to the label's size; released: first to the input's size, then with align_corners; direct: in one step",
        ("released", "direct"),
    )
    eval_classes: tuple[str, ...] | None = key(None, "score only these classes, by name; null: all", needs_one=True)
    num_workers: int = key(2, "loader processes of evaluation and validation", COUNT)


@dataclass
class AtTestTime:
    """Test-time augmentation. ``Domain`` has the augmentation of the training."""

    scales: tuple[float, ...] = key(
        (1.0,), "evaluate at these scales of the input and average the probabilities", TIMES, needs_one=True
    )
    flip: bool = key(False, "also evaluate the mirror image at each scale")


@dataclass
class Train:
    num_steps: int = key(35000, "iterations; each is one optimiser step a domain", POSITIVE)
    batch_size: int = key(8, "images of each domain in an iteration, all processes together", POSITIVE)
    iter_size: int = key(
        1, "forward a process's images in this many parts: less memory; only batch norm makes a difference", POSITIVE
    )
    num_workers: int = key(4, "loader processes of each domain, per process", COUNT)
    cache_dir: str | None = key(
        None,
        "keep decoded training images in this folder, 4 bytes a pixel, without loss; null: decode every time",
        path=True,
    )
    lr_encoder: float = key(0.0016, "initial learning rate of the encoder", WEIGHT)
    lr_decoder: float = key(0.016, "initial learning rate of the decoder", WEIGHT)
    schedule: str = key("poly", "learning-rate schedule", ("poly", "drop"))
    lr_pow: float = key(
        0.9, "poly: iteration i has lr * (1 - (i - 1) / num_steps) ^ lr_pow, iteration 0 has lr", WEIGHT
    )
    decrease_lr: int = key(1500, "drop: lr up to this iteration (counted from 0), 0.1 * lr after it", COUNT)
    momentum: float = key(0.9, "SGD momentum", FRACTION)
    weight_decay: float = key(5e-4, "SGD weight decay, on convolution weights only", WEIGHT)
    lambda_seg: float = key(0.4, "weight of the auxiliary source loss", WEIGHT)
    lambda_source: float = key(1.0, "weight of the whole source loss, including the auxiliary loss", WEIGHT)
    amp: str = key(
        "off",
        "half precision of the network's training forward; losses stay in float32; for GPUs (slower on most CPUs)",
        ("off", "bf16", "fp16"),
    )
    channels_last: bool = key(False, "memory format of images and network; faster on some devices")
    compile: bool = key(False, "torch.compile the network")
    checkpoint_encoder: bool = key(
        False, "compute the encoder's activations again in the backward pass: less memory, slower"
    )
    skip_bad_samples: int = key(
        0, "replace up to this many unreadable training images by the next one; the run stops at more", COUNT
    )
    print_freq: int = key(20, "write losses to the logs every this many iterations", POSITIVE)


@dataclass
class Curriculum:
    box_size: tuple[int, ...] = key(
        (4, 8), "sides of the squares of the middle layer, pixels; []: no squares", POSITIVE
    )
    use_pixels: bool = key(True, "bottom layer: pixel pseudo-labels")
    conf_threshold: float = key(0.5, "a prediction is a pseudo-label where max P is above this", SHARE)
    threshold: str = key(
        "constant",
        "constant: conf_threshold (released); class_balanced: a running quantile for each class (ours, after CBST)",
        ("constant", "class_balanced"),
    )
    threshold_quantile: float = key(0.5, "class_balanced: share of a class's predictions without a label", FRACTION)
    threshold_momentum: float = key(0.9, "class_balanced: momentum of the running quantile", FRACTION)
    conf_threshold_max: float = key(1.0, "class_balanced: upper limit of all thresholds", SHARE)
    merge_1x1: bool = key(False, "true: one mean over pixels and squares (paper); false: the sum of one mean each")
    lambda_pseudo: float = key(1.0, "weight of pixels and squares", WEIGHT)
    lambda_balance: float = key(1.0, "weight of the image term (top layer)", WEIGHT)
    lambda_eq: float = key(0.0, "weight of the spatial term; 0: off", WEIGHT)
    image_target: str = key("uniform", "target histogram of the image term", ("uniform", "source"))
    image_loss: str = key("bce", "bce: binary CE of the batch average; ce: CE per image", ("bce", "ce"))
    region_pool: str = key("logits", "values that are averaged over a square", ("logits", "probs"))
    drop_saturated: bool = key(True, "exclude losses that are exactly 0 from the means (released code)")
    class_prior: str | None = key(
        None, "text or .npy file of class frequencies; null: computed from the source labels", path=True
    )
    spatial_prior: str | None = key(None, ".npy (H, W, C) prior; null: computed from the source labels", path=True)
    prior_sigma: float = key(0.0, "Gaussian smoothing of the spatial prior, sigma in pixels", WEIGHT)


@dataclass
class AdaBN:
    mode: str = key(
        "cumulative",
        "cumulative: exact mean and variance of all images; ema: continue the running average (released)",
        ("cumulative", "ema"),
    )
    images: str = key("whole", "whole images, or crops of crop_size without flip and rotation", ("whole", "crops"))
    scale: Range | None = key(
        None, "random scale of the crops; null: as in the training. Released test_adabn: [0.5, 1.5]", ABOVE_0
    )
    domains: str = key("target", "domains whose images give the statistics", ("target", "source", "both"))
    batch_size: int = key(4, "images in a forward pass, all processes together. Released test_adabn: 8", POSITIVE)
    epochs: int = key(1, "passes over the images; each pass draws new crops", POSITIVE)
    num_steps: int | None = key(None, "forward passes in a domain; null: adabn.epochs decides", POSITIVE)
    score_every: int = key(
        0, "also score every this many forward passes; 0: only before and after. Released test_adabn: 1000", COUNT
    )
    weights: str | None = key(
        None,
        "run folder or file to convert; null: the run of this configuration, or if there is none, "
        "model.weights_encoder and model.weights_decoder",
        path=True,
    )


@dataclass
class Config:
    exp_name: str = key("", "name of the run; its folder is snapshot_dir/exp_name")
    snapshot_dir: str = key("runs", "folder of all runs", path=True)
    resume: str = key(
        "auto", "auto: resume from the run folder's last checkpoint; off: start anew; or a checkpoint file", path=True
    )
    resume_force: bool = key(False, "resume although the configuration differs from the checkpoint's")
    seed: int = key(0, "seed of initialisation, data order and augmentation", COUNT)
    num_classes: int = key(19, "classes, C in the paper", CLASSES)
    timeout_minutes: float = key(5.0, "longest time that processes wait for each other", ABOVE_0)
    model: Model = field(default_factory=Model)
    source: Domain = field(default_factory=lambda: Domain(dataset="gtav"))
    target: Domain = field(default_factory=Domain)
    val: Validation = field(default_factory=Validation)
    test: Evaluation = field(default_factory=Evaluation)
    tta: AtTestTime = field(default_factory=AtTestTime)
    train: Train = field(default_factory=Train)
    curriculum: Curriculum = field(default_factory=Curriculum)
    adabn: AdaBN = field(default_factory=AdaBN)

    @property
    def run_folder(self) -> Path:
        """Folder of the run's checkpoints, logs and results."""
        return Path(self.snapshot_dir) / self.exp_name

    def follow_target(self) -> None:
        """Fill in the test set's data set and id table: they are the target's unless they are set."""
        if self.test.dataset == TARGETS:
            self.test.dataset = self.target.dataset
        if self.test.dataset in (LIST, self.target.dataset) and self.test.id_table is None:
            self.test.id_table = self.target.id_table

    @property
    def class_table(self) -> ClassTable:
        """The classes, the same in all three data sets, with the colours and ids of the test set.

        Raises:
            ConfigError: an id table cannot be read, the classes differ, or num_classes is not their number.
        """
        tables = {}
        for name, options in (("source", self.source), ("target", self.target), ("test", self.test)):
            try:
                tables[name] = class_table(options.label_kind)
            except (DataError, ValueError) as error:
                raise ConfigError(f"{name}.id_table: {error}") from error
        for name, table in tables.items():
            if table.names != tables["source"].names:
                own, source = ", ".join(table.names), ", ".join(tables["source"].names)
                raise ConfigError(f"the classes of {name} are {own}, but the classes of source are {source}")
        if self.num_classes != tables["source"].num_classes:
            raise ConfigError(
                f"num_classes is {self.num_classes}, the data sets have {tables['source'].num_classes} classes: set it "
                "to that"
            )
        return tables["test"]

    def table_for(self, own: ClassTable) -> ClassTable:
        """The classes ``own`` of a checkpoint, with the test set's colours and ids if it has the same classes.

        The test set's id table may be missing: others may get the checkpoint without it. Raises DataError for a
        damaged table.
        """
        kind = self.test.label_kind
        if is_id_table(kind) and not Path(kind).is_file():
            return own
        table = class_table(kind)
        return table if table.names == own.names else own
