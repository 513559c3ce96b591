"""From a configuration to its data: samples, data sets, loaders."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from dataset.cache import PictureCache
from dataset.folders import Sample, find_samples, hold_out, write_list
from dataset.labels import DATA_SETS, IGNORE
from dataset.loader import (
    EndlessBatchSampler,
    SegmentationDataset,
    different_sizes,
    eval_loader,
    finite_loader,
    train_loader,
)
from dataset.messages import ChoiceError, DataError
from dataset.reading import read_image, read_label, read_pair, stored_size
from dataset.transforms import EvalTransform, JointTransform
from utils import distributed
from utils.config.schema import Config, Domain, Evaluation, Size

MAX_DISTORTION = 0.05  # of width to height, natural logarithm
TRAINING_PAIR = partial(read_pair, resizable=True)
SOURCE, TARGET = 0, 1  # domain numbers that seed augmentation, so that the two streams differ


class Data:
    """Samples and loaders of a configuration. What is found on the disk is looked up once, when it is first needed.

    Args:
        report: gets remarks on the data.
    """

    def __init__(self, config: Config, report: Callable[[str], None] = lambda text: None) -> None:
        self.config, self.report = config, report

    @cached_property
    def source(self) -> list[Sample]:
        """Labelled training images of the source.

        Raises:
            DataError: as ``find_samples``; not a single pixel is labelled.
        """
        found, kind = domain_samples(self.config.source, "required"), self.config.source.label_kind
        if not any_labelled(found, kind):
            raise DataError(
                f"no pixel of the {len(found)} source labels ({found[0].label}, ...) is of a class, all are void: is "
                f"{kind} right?"
            )
        return found

    @property
    def target(self) -> list[Sample]:
        """Target training images without labels: none of them is held out, whatever the spelling of its path.

        Raises:
            DataError: as ``find_samples``; all images are held out.
        """
        return self._target_and_held_out[0]

    @property
    def held_out(self) -> list[Sample]:
        """Labelled target images for model selection; none where val.held_out is 0 or the target has no labels.

        Labels without a labelled pixel count as none, which is reported. Raises DataError as ``target``.
        """
        return self._target_and_held_out[1]

    @cached_property
    def _target_and_held_out(self) -> tuple[list[Sample], list[Sample]]:
        t, v = self.config.target, self.config.val
        found = domain_samples(t, "optional")
        held_out: list[Sample] = []
        if v.data_list is not None:
            held_out = find_samples(
                t.dataset,
                v.data_dir or t.data_dir,
                split=t.split,
                data_list=v.data_list,
                label_list=v.label_list,
                label_root=v.label_dir,
            )
        elif v.held_out and any(sample.label for sample in found):
            _, held_out = hold_out([sample for sample in found if sample.label], v.held_out, v.held_out_seed)
        apart = {sample.image.resolve() for sample in held_out}
        if held_out and not any_labelled(held_out, t.label_kind):
            self.report(f"no pixel of the {len(held_out)} held-out labels is of a class: they count as no labels")
            apart, held_out = apart if v.data_list else set(), []
        unlabelled = [Sample(s.name, s.image, None) for s in found if s.image.resolve() not in apart]
        if not unlabelled:
            raise DataError(f"all {len(found)} target images are held out by {v.data_list}: none is left to train on")
        return unlabelled, held_out

    @property
    def has_test_set(self) -> bool:
        """Whether the configuration names a test set, or the target's data set has one at its usual place."""
        e = self.config.test
        if e.data_list is not None or e.data_dir is not None:
            return True
        layout = DATA_SETS.get(e.dataset)
        return layout is not None and (Path(self.config.target.data_dir) / layout.images.format(split=e.split)).is_dir()

    def test(self, labels: str = "required") -> list[Sample]:
        """Test images.

        Args:
            labels: "required": an image without label is an error, and so is a test set that is not there; "optional":
                no image where there is no test set, and images without labels where none has a labelled pixel.
        """
        if labels == "required":
            return self._find_test(labels)
        if not self.has_test_set:
            return []
        found = self._find_test(labels)
        if not any_labelled(found, self.config.test.label_kind):
            return [Sample(sample.name, sample.image, None) for sample in found]
        return self._find_test("required")

    def _find_test(self, labels: str) -> list[Sample]:
        e = self.config.test
        return find_samples(
            e.dataset,
            e.data_dir or self.config.target.data_dir,
            split=e.split,
            data_list=e.data_list,
            label_list=e.label_list,
            label_root=e.label_dir,
            labels=labels,
        )

    def lists(self) -> dict[str, list[Sample]]:
        """What a run is trained and selected on, by name."""
        return {"source": self.source, "target": self.target, "held_out": self.held_out}

    def write_lists(self) -> None:
        """Write the ``lists`` of a run into its folder."""
        folder = self.config.run_folder / "lists"
        folder.mkdir(parents=True, exist_ok=True)
        for name, samples in self.lists().items():
            root = self.config.source.data_dir if name == "source" else self.config.target.data_dir
            write_list(samples, folder / f"{name}.txt", root)

    def shape_remark(self, samples: Sequence[Sample]) -> str:
        """That ``test.input_size`` distorts the first of the ``samples``; "" where it does not.

        "" too where it cannot be read, which is an error when it is used.
        """
        try:
            return shape_remark(self.config.test.input_size, [read_image(sample.image).size for sample in samples[:1]])
        except DataError:
            return ""

    def _augmentation(self, domain: int, statistics_only: bool = False) -> Domain:
        """Keys of one domain; for statistics those that ``adabn`` changes."""
        options, a = self.config.source if domain == SOURCE else self.config.target, self.config.adabn
        if not statistics_only:
            return options
        options = replace(options, rotate=None, flip=False)
        if a.images == "whole":
            return replace(options, scale=None, crop_size=None)
        return options if a.scale is None else replace(options, scale=a.scale)

    def dataset(
        self, domain: int, samples: Sequence[Sample], *, statistics_only: bool = False, cached: bool = True
    ) -> SegmentationDataset:
        """Images of one domain, augmented as configured or, with ``statistics_only``, as ``adabn`` says.

        Args:
            cached: False leaves ``train.cache_dir`` alone.
        """
        options, t = self._augmentation(domain, statistics_only), self.config.train
        transform = JointTransform(
            size=options.input_size,
            scale=options.scale,
            rotate=options.rotate,
            flip=options.flip,
            crop=options.crop_size,
            scale_from=options.scale_from,
        )
        return SegmentationDataset(
            samples,
            options.label_kind,
            transform,
            seed=self.config.seed,
            domain=domain,
            skip_bad=t.skip_bad_samples,
            read=PictureCache(t.cache_dir, transform.fixed_size) if cached and t.cache_dir else TRAINING_PAIR,
        )

    def training_loader(self, domain: int) -> DataLoader:
        """Endless augmented batches of one domain.

        Raises:
            ChoiceError, DataError: the images cannot be batches, see ``check_whole_images``.
        """
        samples, t = self.source if domain == SOURCE else self.target, self.config.train
        check_whole_images(self._augmentation(domain), samples, t.batch_size // distributed.world_size())
        dataset = self.dataset(domain, samples)
        return train_loader(dataset, t.batch_size, seed=self.config.seed, num_workers=t.num_workers, **_this_process())

    def statistics_loader(self, domain: int, samples: Sequence[Sample]) -> DataLoader:
        """Finite batches for batch-norm statistics, ``adabn.num_steps`` of them or ``adabn.epochs`` times all images.

        Images of several sizes, which are no batch, go one at a time through each process; that is reported.

        Raises:
            ChoiceError: the images cannot be batches, see ``check_whole_images``.
        """
        a, options = self.config.adabn, self._augmentation(domain, statistics_only=True)
        batch_size = a.batch_size
        try:
            check_whole_images(options, samples, math.ceil(batch_size / distributed.world_size()))
        except DataError:
            batch_size = distributed.world_size()
            self.report(one_at_a_time("source" if domain == SOURCE else "target"))
        dataset = self.dataset(domain, samples, statistics_only=True)
        settings = {"seed": self.config.seed, "num_workers": self.config.test.num_workers, **_this_process()}
        return finite_loader(dataset, batch_size, steps=a.num_steps, epochs=a.epochs, **settings)

    def evaluation_loader(
        self, samples: Sequence[Sample], options: Domain | Evaluation, num_workers: int | None = None
    ) -> DataLoader:
        """Each image once over all processes, the label at its own size.

        Args:
            options: say how labels are read.
            num_workers: None: ``test.num_workers``.
        """
        test = self.config.test
        dataset = SegmentationDataset(
            samples,
            options.label_kind,
            EvalTransform(test.input_size),
            seed=self.config.seed,
            domain=TARGET,
            read=TRAINING_PAIR if options is self.config.source else read_pair,
        )
        return eval_loader(
            dataset, num_workers=test.num_workers if num_workers is None else num_workers, **_this_process()
        )


def _this_process() -> dict[str, Any]:
    return {"rank": distributed.rank(), "world_size": distributed.world_size()}


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


def any_labelled(samples: Sequence[Sample], kind: str) -> bool:
    """Whether a label has a pixel that is not void: reads up to the first one, unreadable ones count as labelled."""
    for sample in samples:
        try:
            if sample.label is not None and (read_label(sample.label, kind) != IGNORE).any():
                return True
        except DataError:  # reported where the file is used, or tolerated there
            return True
    return False


def are_labelled(samples: Sequence[Sample]) -> bool:
    """Whether there is anything to be scored: False for no samples, and for those of a set without labels."""
    return any(sample.label for sample in samples)


def shape_remark(input_size: Size | None, sizes: Iterable[Size]) -> str:
    """That ``test.input_size`` distorts images of ``sizes`` (W, H); "" where it does not, or by next to nothing."""
    if input_size is None:
        return ""
    width, height = input_size
    stretched = {size: (width / height) / (size[0] / size[1]) for size in sizes}
    size = max(stretched, key=lambda size: abs(math.log(stretched[size])), default=None)
    if size is None or abs(math.log(stretched[size])) <= MAX_DISTORTION:
        return ""
    return (
        f"images of {size[0]}x{size[1]} are seen {stretched[size]:.2f} times as wide at test.input_size "
        f"[{width}, {height}]: another shape, or null, would not distort them"
    )


def one_at_a_time(domain: str) -> str:
    """That the statistics of a domain are not taken by batches of ``adabn.batch_size``."""
    return (
        f"{domain} images have several sizes: adabn runs them one at a time. For batches set {domain}.input_size, or "
        f"adabn.images=crops and {domain}.crop_size"
    )


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


def start_at(loader: object, step: int) -> None:
    """Let a ``training_loader`` that nobody iterates over yet begin with the batch of ``step``."""
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(sampler, EndlessBatchSampler):
        sampler.start_step = step
