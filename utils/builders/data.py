"""From a configuration to its data: samples, data sets, loaders."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch.utils.data import DataLoader

from dataset.cache import PictureCache
from dataset.folders import Sample, find_samples, hold_out, write_list
from dataset.labels import DATA_SETS, IGNORE
from dataset.loader import (
    EndlessBatchSampler,
    SegmentationDataset,
    eval_loader,
    finite_loader,
    train_loader,
)
from dataset.messages import DataError
from dataset.reading import read_image, read_label, read_pair
from dataset.transforms import EvalTransform, JointTransform
from utils import distributed
from utils.builders.limits import check_whole_images
from utils.config.schema import Config, Domain, Evaluation

MAX_DISTORTION = 0.05  # of width to height, natural logarithm
TRAINING_PAIR = partial(read_pair, resizable=True)
SOURCE, TARGET = 0, 1  # domain numbers that seed augmentation, so that the two streams differ


def domain_samples(options: Domain, labels: str) -> list[Sample]:
    """Training images of one domain, which a list may name several times; ``labels`` as of ``find_samples``."""
    return find_samples(
        options.dataset,
        options.data_dir,
        split=options.split,
        data_list=options.data_list,
        label_list=options.label_list,
        labels=labels,
        repeats=True,
    )


def source_samples(config: Config) -> list[Sample]:
    """Labelled training images of the source.

    Raises:
        DataError: as ``find_samples``; not a single pixel is labelled.
    """
    found = domain_samples(config.source, "required")
    if not any_labelled(found, config.source.label_kind):
        raise DataError(
            f"no pixel of the {len(found)} source labels ({found[0].label}, ...) is of a class, all are void: is "
            f"{config.source.label_kind} right?"
        )
    return found


def any_labelled(samples: Sequence[Sample], kind: str) -> bool:
    """Whether a label has a pixel that is no void: reads up to the first one, unreadable ones count as labelled."""
    for sample in samples:
        try:
            if sample.label is not None and (read_label(sample.label, kind) != IGNORE).any():
                return True
        except DataError:  # said where the file is used, or tolerated there
            return True
    return False


def target_samples(config: Config, report: Callable[[str], None] | None = None) -> tuple[list[Sample], list[Sample]]:
    """Target training images without labels, and the held-out ones with theirs.

    A held-out image, whatever the spelling of its path, is never trained on. Nothing is held out where val.held_out is
    0 or the target has no labels; labels without a labelled pixel are none, which ``report`` is told.
    """
    t, v = config.target, config.val
    found = domain_samples(t, "optional")
    held_out: list[Sample] = []
    if v.data_list is not None:
        data_dir = v.data_dir or t.data_dir
        held_out = find_samples(
            t.dataset,
            data_dir,
            split=t.split,
            data_list=v.data_list,
            label_list=v.label_list,
            label_root=v.label_dir,
        )
    elif v.held_out and any(sample.label for sample in found):
        _, held_out = hold_out([sample for sample in found if sample.label], v.held_out, v.held_out_seed)
    apart = {sample.image.resolve() for sample in held_out}
    if held_out and not any_labelled(held_out, t.label_kind):
        if report:
            report(f"no pixel of the {len(held_out)} held-out labels is of a class: they count as no labels")
        apart, held_out = apart if v.data_list else set(), []
    unlabelled = [Sample(s.name, s.image, None) for s in found if s.image.resolve() not in apart]
    if not unlabelled:
        raise DataError(f"all {len(found)} target images are held out by {v.data_list}: none is left to train on")
    return unlabelled, held_out


def test_samples(config: Config, labels: str = "required") -> list[Sample]:
    """Test images.

    Args:
        labels: "required": an image without label is an error, and so is a test set that is not there; "optional": no
            image where there is no test set, and images without labels where none of them has a labelled pixel.
    """
    if labels == "optional" and not has_test_set(config):
        return []
    e = config.test

    def find(labels: str) -> list[Sample]:
        data_dir = e.data_dir or config.target.data_dir
        return find_samples(
            e.dataset,
            data_dir,
            split=e.split,
            data_list=e.data_list,
            label_list=e.label_list,
            label_root=e.label_dir,
            labels=labels,
        )

    if labels == "optional":
        found = find("optional")
        if not any_labelled(found, e.label_kind):
            return [Sample(sample.name, sample.image, None) for sample in found]
    return find("required")


def has_test_set(config: Config) -> bool:
    """Whether the configuration names a test set, or the target's data set has one at its usual place."""
    e = config.test
    if e.data_list is not None or e.data_dir is not None:
        return True
    layout = DATA_SETS.get(e.dataset)
    return layout is not None and (Path(config.target.data_dir) / layout.images.format(split=e.split)).is_dir()


def are_labelled(samples: Sequence[Sample]) -> bool:
    """Whether there is anything to be scored: False for no samples, and for those of a set without labels."""
    return any(sample.label for sample in samples)


def shape_remark(config: Config, sizes: Iterable[tuple[int, int]]) -> str:
    """That ``test.input_size`` distorts images of ``sizes`` (W, H); "" where it does not, or by next to nothing."""
    if config.test.input_size is None:
        return ""
    width, height = config.test.input_size
    stretched = {size: (width / height) / (size[0] / size[1]) for size in sizes}
    size = max(stretched, key=lambda size: abs(math.log(stretched[size])), default=None)
    if size is None or abs(math.log(stretched[size])) <= MAX_DISTORTION:
        return ""
    return (
        f"images of {size[0]}x{size[1]} are seen {stretched[size]:.2f} times as wide at test.input_size "
        f"[{width}, {height}]: another shape, or null, would not distort them"
    )


def first_shape_remark(config: Config, samples: Sequence[Sample]) -> str:
    """``shape_remark`` by the first of the ``samples``; "" where it cannot be read, which is said when it is used."""
    try:
        return shape_remark(config, [read_image(sample.image).size for sample in samples[:1]])
    except DataError:
        return ""


def write_lists(config: Config, **lists: Sequence[Sample]) -> None:
    """Write the image lists that a run uses into its folder."""
    if distributed.is_main():
        folder = config.run_folder / "lists"
        folder.mkdir(parents=True, exist_ok=True)
        for name, samples in lists.items():
            root = config.source.data_dir if name == "source" else config.target.data_dir
            write_list(samples, folder / f"{name}.txt", root)


def _augmentation(config: Config, domain: int, statistics_only: bool) -> Domain:
    """Keys of one domain; for statistics those that ``adabn`` changes."""
    options = config.source if domain == SOURCE else config.target
    if not statistics_only:
        return options
    options = replace(options, rotate=None, flip=False)
    if config.adabn.images == "whole":
        return replace(options, scale=None, crop_size=None)
    return options if config.adabn.scale is None else replace(options, scale=config.adabn.scale)


def domain_dataset(
    config: Config, domain: int, samples: Sequence[Sample], statistics_only: bool = False
) -> SegmentationDataset:
    """Images of one domain, augmented as configured or, with ``statistics_only``, as ``adabn`` says: whole or crops."""
    options = _augmentation(config, domain, statistics_only)
    transform = JointTransform(
        size=options.input_size,
        scale=options.scale,
        rotate=options.rotate,
        flip=options.flip,
        crop=options.crop_size,
        scale_from=options.scale_from,
    )
    t = config.train
    read = TRAINING_PAIR if t.cache_dir is None else PictureCache(t.cache_dir, transform.fixed_size)
    return SegmentationDataset(
        samples, options.label_kind, transform, seed=config.seed, domain=domain, skip_bad=t.skip_bad_samples, read=read
    )


def domain_loader(config: Config, domain: int, samples: Sequence[Sample]) -> DataLoader:
    """Endless augmented batches of one domain.

    Raises:
        ChoiceError, DataError: the images cannot be batches, see ``check_whole_images``.
    """
    local = config.train.batch_size // distributed.world_size()
    check_whole_images(_augmentation(config, domain, False), samples, local)
    return train_loader(
        domain_dataset(config, domain, samples),
        config.train.batch_size,
        seed=config.seed,
        num_workers=config.train.num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


def start_at(loader: object, step: int) -> None:
    """Let a ``domain_loader`` that nobody iterates over yet begin with the batch of ``step``."""
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(sampler, EndlessBatchSampler):
        sampler.start_step = step


def evaluation_loader(config: Config, samples: Sequence[Sample], options: Domain | Evaluation) -> DataLoader:
    """Each image once over all processes, the label at its own size; ``options`` say how labels are read."""
    folder = SegmentationDataset(
        samples,
        options.label_kind,
        EvalTransform(config.test.input_size),
        seed=config.seed,
        domain=TARGET,
        read=TRAINING_PAIR if options is config.source else read_pair,
    )
    return eval_loader(
        folder, num_workers=config.test.num_workers, rank=distributed.rank(), world_size=distributed.world_size()
    )


def statistics_loader(config: Config, domain: int, samples: Sequence[Sample]) -> DataLoader:
    """Finite batches for batch-norm statistics, ``adabn.num_steps`` of them or ``adabn.epochs`` times all images.

    Raises:
        ChoiceError, DataError: the images cannot be batches, see ``check_whole_images``.
    """
    a = config.adabn
    check_whole_images(_augmentation(config, domain, True), samples, math.ceil(a.batch_size / distributed.world_size()))
    dataset = domain_dataset(config, domain, samples, statistics_only=True)
    options = {"seed": config.seed, "num_workers": config.test.num_workers}
    options |= {"rank": distributed.rank(), "world_size": distributed.world_size()}
    return finite_loader(dataset, a.batch_size, steps=a.num_steps, epochs=a.epochs, **options)
