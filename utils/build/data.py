"""From a configuration to its data: samples, data sets, loaders."""

from collections.abc import Sequence
from dataclasses import replace

from torch.utils.data import DataLoader

from dataset.cache import PictureCache
from dataset.folders import Sample, find_samples, hold_out, write_list
from dataset.loader import SegmentationDataset, epoch_loader, eval_loader, step_loader, train_loader
from dataset.reading import read_pair
from dataset.transforms import EvalTransform, JointTransform
from utils import distributed
from utils.config.schema import Config, Domain, Evaluation

SOURCE, TARGET = 0, 1  # domain numbers that seed augmentation, so that the two streams differ


def source_samples(config: Config) -> list[Sample]:
    s = config.source
    return find_samples(
        s.dataset, s.data_dir, split=s.split, data_list=s.data_list, label_list=s.label_list, labels="required"
    )


def target_samples(config: Config) -> tuple[list[Sample], list[Sample]]:
    """Target training images without labels, and the held-out ones with theirs.

    A held-out image is never trained on. Nothing is held out where val.held_out is 0 or the target has no labels.
    """
    t, v = config.target, config.val
    found = find_samples(
        t.dataset, t.data_dir, split=t.split, data_list=t.data_list, label_list=t.label_list, labels="optional"
    )
    held_out: list[Sample] = []
    if v.data_list is not None:
        data_dir = v.data_dir or t.data_dir
        held_out = find_samples(
            t.dataset, data_dir, split=t.split, data_list=v.data_list, label_list=v.label_list, labels="required"
        )
    elif v.held_out and any(sample.label for sample in found):
        _, held_out = hold_out([sample for sample in found if sample.label], v.held_out, v.held_out_seed)
    names = {sample.name for sample in held_out}
    unlabelled = [Sample(s.name, s.image, None) for s in found if s.name not in names]
    return unlabelled, held_out


def test_samples(config: Config) -> list[Sample]:
    e = config.test
    data_dir = e.data_dir or config.target.data_dir
    return find_samples(
        e.dataset, data_dir, split=e.split, data_list=e.data_list, label_list=e.label_list, labels="required"
    )


def write_lists(config: Config, **lists: Sequence[Sample]) -> None:
    """Write the image lists that a run uses into its folder."""
    if distributed.is_main():
        folder = config.run_folder / "lists"
        folder.mkdir(parents=True, exist_ok=True)
        for name, samples in lists.items():
            root = config.source.data_dir if name == "source" else config.target.data_dir
            write_list(samples, folder / f"{name}.txt", root)


def domain_dataset(
    config: Config, domain: int, samples: Sequence[Sample], statistics_only: bool = False
) -> SegmentationDataset:
    """Images of one domain, augmented as configured or, with ``statistics_only``, as ``adabn`` says: whole or crops."""
    options = config.source if domain == SOURCE else config.target
    if statistics_only:
        options = replace(options, rotate=None, flip=False)
        if config.adabn.images == "whole":
            options = replace(options, scale=None, crop_size=None)
        elif config.adabn.scale is not None:
            options = replace(options, scale=config.adabn.scale)
    transform = JointTransform(
        size=options.input_size,
        scale=options.scale,
        rotate=options.rotate,
        flip=options.flip,
        crop=options.crop_size,
        scale_from=options.scale_from,
    )
    t = config.train
    read = read_pair if t.cache_dir is None else PictureCache(t.cache_dir, transform.fixed_size)
    skip_bad, seed = t.skip_bad_samples > 0, config.seed
    return SegmentationDataset(
        samples, options.label_kind, transform, seed=seed, domain=domain, skip_bad=skip_bad, read=read
    )


def domain_loader(config: Config, domain: int, samples: Sequence[Sample], start_step: int = 0) -> DataLoader:
    """Endless augmented batches of one domain."""
    return train_loader(
        domain_dataset(config, domain, samples),
        config.train.batch_size,
        seed=config.seed,
        num_workers=config.train.num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        start_step=start_step,
    )


def evaluation_loader(config: Config, samples: Sequence[Sample], options: Domain | Evaluation) -> DataLoader:
    """Each image once over all processes, the label at its own size; ``options`` say how labels are read."""
    folder = SegmentationDataset(
        samples, options.label_kind, EvalTransform(config.test.input_size), seed=config.seed, domain=TARGET
    )
    return eval_loader(
        folder, num_workers=config.test.num_workers, rank=distributed.rank(), world_size=distributed.world_size()
    )


def statistics_loader(config: Config, domain: int, samples: Sequence[Sample]) -> DataLoader:
    """Finite batches for batch-norm statistics, ``adabn.num_steps`` of them or ``adabn.epochs`` times all images."""
    a = config.adabn
    dataset = domain_dataset(config, domain, samples, statistics_only=True)
    options = {"seed": config.seed, "num_workers": config.test.num_workers}
    options |= {"rank": distributed.rank(), "world_size": distributed.world_size()}
    if a.num_steps is not None:
        return step_loader(dataset, a.batch_size, steps=a.num_steps, **options)
    return epoch_loader(dataset, a.batch_size, epochs=a.epochs, **options)
