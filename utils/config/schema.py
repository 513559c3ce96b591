"""Every configuration key: its type, default and meaning. The paper's symbol stands in the help where a key has one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset.labels import DATA_SETS, ClassTable, class_table, is_id_table
from dataset.messages import SHORT, DataError, UserError

SCRATCH = "scratch"  # as model.weights: none, on purpose
LIST = "list"  # own data: pairs named by a list, label ids by a table
DATASETS = (*DATA_SETS, LIST)
TARGETS = "target"  # as test.dataset: that of the target
Size = tuple[int, int]  # (W, H) in pixels
Range = tuple[float, float]


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message names the key."""

    longest = SHORT


@dataclass(frozen=True)
class Interval:
    """The numbers that a key admits."""

    text: str
    holds: Callable[[float], bool]


COUNT = Interval("at least 0", lambda x: x >= 0)
POSITIVE = Interval("at least 1", lambda x: x >= 1)
WEIGHT = COUNT  # of a loss, or a rate: 0 switches it off
ABOVE_0 = Interval("above 0", lambda x: x > 0)
TIMES = Interval("above 0 and at most 10", lambda x: 0 < x <= 10)  # the size of an input
SHARE = Interval("0 to 1", lambda x: 0 <= x <= 1)
FRACTION = Interval("at least 0 and below 1", lambda x: 0 <= x < 1)
MOMENTUM = Interval("above 0 and at most 1", lambda x: 0 < x <= 1)  # of a running average, which never moves by 0
ANGLE = Interval("-180 to 180", lambda x: -180 <= x <= 180)  # degrees
CLASSES = Interval("1 to 254", lambda x: 1 <= x <= 254)  # train ids are 8 bits, two of which mean other things


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
        admits: the numbers that it may have, of a tuple each of its entries; or the names that it may have.
        path: of a file or folder, in which a leading ``~`` is the home folder.
        needs_one: a tuple that must not be empty.
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
        "start from a run of this project, all of it: run folder (its best.pth, else last.pth) or file; "
        "scratch: from random weights, which PyCDA does only with this word",
        path=True,
    )
    weights_encoder: str | None = key(
        None, "encoder file: ImageNet or official checkpoint, or torchvision enum name", path=True
    )
    weights_decoder: str | None = key(None, "decoder file of an official checkpoint", path=True)
    bn_momentum: float = key(0.001, "batch-norm momentum of the running average", MOMENTUM)
    bn_bias_correction: bool = key(True, "t-th update uses momentum m / (1 - (1-m)^(t+1)), as the released code")
    dropout: float | None = key(
        None, "probability of all dropout layers; null: the head's own, 0.1 (fcn8s 0.5)", FRACTION
    )


class _Labelled:
    """A data set whose labels can be read."""

    dataset: str
    id_table: str | None

    @property
    def label_kind(self) -> str:
        """How the labels are encoded, as ``dataset.labels`` takes it: the data set's name, or the file of an id table.

        Raises:
            ConfigError: a list without an id table, or a table for SYNTHIA.
        """
        if self.dataset == LIST and self.id_table is None:
            raise ConfigError("dataset list needs an id_table")
        if self.dataset == "synthia" and self.id_table is not None:
            raise ConfigError(f"id_table {self.id_table}: a table is for 8-bit labels, those of SYNTHIA have 16")
        return self.id_table or self.dataset


@dataclass
class Domain(_Labelled):
    dataset: str = key("cityscapes", "folder layout and label ids; list: own data, named by data_list", DATASETS)
    id_table: str | None = key(
        None, "YAML file of the classes and raw label ids; null: Cityscapes' 19 (dataset list needs one)", path=True
    )
    data_dir: str = key("", "root folder of the data set", path=True)
    split: str = key("train", "split folder (Cityscapes layout only)")
    data_list: str | None = key(
        None, "text file with one image path a line (list: and its label path); null: scan the folder", path=True
    )
    label_list: str | None = key(
        None, "text file with one label path a line, same order; without it by file name", path=True
    )
    input_size: Size | None = key(None, "resize images to this [W, H]; null keeps the size", POSITIVE)
    scale: Range | None = key(None, "random scale [min, max] on top of input_size; null: none", ABOVE_0)
    scale_from: str = key(
        "resized",
        "what the random scale resizes: the image at input_size (released), or the original, once and sharper",
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
    label_list: str | None = key(None, "text file of their labels, same order", path=True)
    label_dir: str | None = key(None, "root folder of the labels in label_list; null: that of the images", path=True)
    every: int = key(1000, "validate and save after this many iterations", POSITIVE)


@dataclass
class Evaluation(_Labelled):
    dataset: str = key(
        TARGETS, "folder layout and label ids as of target.dataset; target: the same", (*DATASETS, TARGETS)
    )
    id_table: str | None = key(
        None,
        "YAML file of the classes and raw label ids; null: target.id_table, if the layout is the same or list",
        path=True,
    )
    data_dir: str | None = key(None, "root folder; null: target.data_dir", path=True)
    split: str = key("val", "split folder (Cityscapes layout only)")
    data_list: str | None = key(
        None, "text file with one image path a line (list: and its label path); list without it: no test set", path=True
    )
    label_list: str | None = key(None, "text file with one label path a line", path=True)
    label_dir: str | None = key(None, "root folder of the labels in label_list; null: that of the images", path=True)
    input_size: Size | None = key(
        (1024, 512),
        "network input [W, H]; null keeps the size, as list does unless this is set; scores are at the label's size",
        POSITIVE,
    )
    window: Size | None = key(
        None,
        "see the network input in overlapping windows of this [W, H] and average their probabilities, "
        "for pictures larger than the memory; null: as a whole",
        POSITIVE,
    )
    upsampling: str = key(
        "released",
        "logits to the label's size: released: to the input's size first, then with align_corners; direct: in one step",
        ("released", "direct"),
    )
    eval_classes: tuple[str, ...] | None = key(None, "score only these classes, by name; null: all", needs_one=True)
    num_workers: int = key(2, "loader processes of evaluation and validation", COUNT)


@dataclass
class AtTestTime:
    """Test-time augmentation; training has its own, see ``Domain``."""

    scales: tuple[float, ...] = key(
        (1.0,), "evaluate at these scales of the input and average the probabilities", TIMES, needs_one=True
    )
    flip: bool = key(False, "... and at each scale its mirror image too")


@dataclass
class Train:
    num_steps: int = key(35000, "iterations; each is one optimiser step a domain", POSITIVE)
    batch_size: int = key(8, "images of each domain in an iteration, all processes together", POSITIVE)
    iter_size: int = key(
        1, "forward a process's images in this many parts: less memory, the same gradients up to batch norm", POSITIVE
    )
    num_workers: int = key(4, "loader processes of each domain, per process", COUNT)
    cache_dir: str | None = key(
        None,
        "keep training images decoded in this folder, 4 bytes a pixel, exactly; null: decode every time",
        path=True,
    )
    lr_encoder: float = key(0.0016, "initial learning rate of the encoder", WEIGHT)
    lr_decoder: float = key(0.016, "initial learning rate of the decoder", WEIGHT)
    schedule: str = key("poly", "learning-rate schedule", ("poly", "drop"))
    lr_pow: float = key(
        0.9, "poly: iteration i (from 0) has lr * (1 - (i - 1) / num_steps) ^ lr_pow, the first one lr", WEIGHT
    )
    decrease_lr: int = key(1500, "drop: lr is constant up to this iteration (from 0) and times 0.1 after it", COUNT)
    momentum: float = key(0.9, "SGD momentum", FRACTION)
    weight_decay: float = key(5e-4, "SGD weight decay, on convolution weights only", WEIGHT)
    lambda_seg: float = key(0.4, "weight of the auxiliary source loss", WEIGHT)
    lambda_source: float = key(1.0, "weight of the whole source loss, the auxiliary one included", WEIGHT)
    amp: str = key(
        "off",
        "half precision of the network's training forward, losses stay in float32; for GPUs: most CPUs are slower",
        ("off", "bf16", "fp16"),
    )
    channels_last: bool = key(False, "memory format of images and network; faster where the convolutions prefer it")
    compile: bool = key(False, "torch.compile the network")
    checkpoint_encoder: bool = key(
        False, "compute the encoder's activations twice instead of keeping them: less memory"
    )
    skip_bad_samples: int = key(
        0, "unreadable training images that are replaced by the next one before the run stops", COUNT
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
        "constant: conf_threshold (released); class_balanced: a running quantile for each class, ours, as in CBST",
        ("constant", "class_balanced"),
    )
    threshold_quantile: float = key(0.5, "of class_balanced: share of a class's predictions without a label", FRACTION)
    threshold_momentum: float = key(0.9, "of class_balanced: share of the running quantile that stays", FRACTION)
    conf_threshold_max: float = key(1.0, "of class_balanced: no threshold is above this", SHARE)
    merge_1x1: bool = key(False, "one mean over pixels and squares together (paper) instead of one mean each, added")
    lambda_pseudo: float = key(1.0, "weight of pixels and squares", WEIGHT)
    lambda_balance: float = key(1.0, "weight of the image term (top layer)", WEIGHT)
    lambda_eq: float = key(0.0, "weight of the spatial term; 0: off", WEIGHT)
    image_target: str = key("uniform", "histogram the image term aims at", ("uniform", "source"))
    image_loss: str = key("bce", "binary CE of the batch average or CE per image", ("bce", "ce"))
    region_pool: str = key("logits", "what a square averages", ("logits", "probs"))
    drop_saturated: bool = key(True, "leave losses that are exactly 0 out of the means (released code)")
    class_prior: str | None = key(
        None, "text or .npy file of class frequencies; null: from the source labels", path=True
    )
    spatial_prior: str | None = key(None, ".npy (H, W, C) prior; null: from the source labels", path=True)
    prior_sigma: float = key(0.0, "Gaussian smoothing of the spatial prior, sigma in pixels", WEIGHT)


@dataclass
class AdaBN:
    mode: str = key(
        "cumulative",
        "cumulative: exact mean and variance of all images; ema: the checkpoint's running average goes on (released)",
        ("cumulative", "ema"),
    )
    images: str = key("whole", "whole images, or crops of target.crop_size, not flipped or rotated", ("whole", "crops"))
    scale: Range | None = key(
        None, "random scale of the crops; null: that of the training. The released test_adabn: [0.5, 1.5]", ABOVE_0
    )
    domains: str = key("target", "images that give the statistics", ("target", "source", "both"))
    batch_size: int = key(4, "images in a forward pass, all processes together. The released test_adabn: 8", POSITIVE)
    epochs: int = key(1, "passes over the images; crops differ from pass to pass", POSITIVE)
    num_steps: int | None = key(
        None, "forward passes in a domain, instead of epochs; null: as many as the epochs take", POSITIVE
    )
    score_every: int = key(
        0, "score after every this many passes too; 0: only before and after. The released test_adabn: 1000", COUNT
    )
    weights: str | None = key(
        None,
        "run folder or file to convert; null: the run that this configuration trained, else the official pair of "
        "model.weights_encoder and model.weights_decoder",
        path=True,
    )


@dataclass
class Config:
    exp_name: str = key("", "name of the run; its folder is snapshot_dir/exp_name")
    snapshot_dir: str = key("runs", "folder of all runs", path=True)
    resume: str = key(
        "auto", "auto: go on from the run folder's last checkpoint; off: start anew; or a checkpoint file", path=True
    )
    resume_force: bool = key(False, "go on although the configuration differs from the checkpoint's")
    seed: int = key(0, "seed of initialisation, data order and augmentation", COUNT)
    num_classes: int = key(19, "classes, C in the paper", CLASSES)
    timeout_minutes: float = key(5.0, "wait of processes for each other before it is an error", ABOVE_0)
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
        """Let the test set be of the target's data set and classes where it is not said to be of others."""
        if self.test.dataset == TARGETS:
            self.test.dataset = self.target.dataset
        if self.test.dataset in (LIST, self.target.dataset) and self.test.id_table is None:
            self.test.id_table = self.target.id_table

    @property
    def class_table(self) -> ClassTable:
        """The classes, which all three data sets share, with the colours and ids of the test set.

        Raises:
            ConfigError: an id table cannot be read, they do not, or num_classes is another number.
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
                raise ConfigError(f"the classes of {name} are {own}; those of source {source}")
        if self.num_classes != tables["source"].num_classes:
            raise ConfigError(
                f"num_classes is {self.num_classes}, the data sets have {tables['source'].num_classes}: set it to that"
            )
        return tables["test"]

    def table_for(self, own: ClassTable) -> ClassTable:
        """The classes ``own`` of a checkpoint; if the test set has the same, with its colours and ids.

        Its id table need not be there: a checkpoint may be passed on without. Raises DataError for a damaged one.
        """
        kind = self.test.label_kind
        if is_id_table(kind) and not Path(kind).is_file():
            return own
        table = class_table(kind)
        return table if table.names == own.names else own
