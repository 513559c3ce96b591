"""From a configuration to its parts: samples, loaders, network, optimiser, curriculum."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from dataset import priors
from dataset.cache import PictureCache
from dataset.folders import (
    Sample,
    find_samples,
    hold_out,
    read_image,
    read_pair,
    write_list,
)
from dataset.labels import CITYSCAPES, ClassTable, is_id_table, read_id_table
from dataset.loader import SegmentationFolder, epoch_loader, eval_loader, train_loader
from dataset.transforms import EvalTransform, JointTransform
from models import build_segmentor
from models.batchnorm import configure_batchnorm
from models.segmentor import Segmentor, parameter_groups, set_dropout
from models.weights import load_checkpoint_weights, load_encoder_decoder
from utils import distributed
from utils.checkpoint import resolve_weights
from utils.curriculum import PyramidCurriculum
from utils.log import RunLog
from utils.schema import Config, Domain, Evaluation, Size

SOURCE, TARGET = 0, 1  # domain numbers that seed augmentation, so that the two streams differ


def label_kind(options: Domain | Evaluation) -> str:
    """What ``dataset.labels`` calls the label ids of a data set: its name, or the file of its id table."""
    if (options.dataset == "list") != (options.id_table is not None):
        raise ValueError(f"dataset {options.dataset} with id_table {options.id_table}: dataset list needs one, the others have their own")
    return options.id_table or options.dataset


def class_table(config: Config) -> ClassTable:
    """The classes, which all three data sets share.

    Raises:
        ValueError: they do not, or num_classes is another number.
    """
    tables = {}
    for name in ("source", "target", "test"):
        kind = label_kind(getattr(config, name))
        tables[name] = read_id_table(kind)[0] if is_id_table(kind) else CITYSCAPES
    for name, table in tables.items():
        if table.names != tables["source"].names:
            raise ValueError(f"the classes of {name} are {', '.join(table.names)}; those of source {', '.join(tables['source'].names)}")
    if config.num_classes != tables["source"].num_classes:
        raise ValueError(f"num_classes is {config.num_classes}, the data sets have {tables['source'].num_classes}: set it to that")
    return tables["source"]


def run_folder(config: Config) -> Path:
    return Path(config.snapshot_dir) / config.exp_name


def source_samples(config: Config) -> list[Sample]:
    s = config.source
    return find_samples(s.dataset, s.data_dir, split=s.split, data_list=s.data_list, label_list=s.label_list, labels="required")


def target_samples(config: Config) -> tuple[list[Sample], list[Sample]]:
    """Target training images without labels, and the held-out ones with theirs.

    A held-out image is never trained on. Nothing is held out where val.held_out is 0 or the target has no labels.
    """
    t, v = config.target, config.val
    found = find_samples(t.dataset, t.data_dir, split=t.split, data_list=t.data_list, label_list=t.label_list, labels="optional")
    held_out: list[Sample] = []
    if v.data_list is not None:
        held_out = find_samples(t.dataset, v.data_dir or t.data_dir, split=t.split, data_list=v.data_list, label_list=v.label_list, labels="required")
    elif v.held_out and any(sample.label for sample in found):
        _, held_out = hold_out([sample for sample in found if sample.label], v.held_out, v.held_out_seed)
    names = {sample.name for sample in held_out}
    unlabelled = [Sample(s.name, s.image, None) for s in found if s.name not in names]
    return unlabelled, held_out


def test_samples(config: Config) -> list[Sample]:
    e = config.test
    data_dir = e.data_dir or config.target.data_dir
    return find_samples(e.dataset, data_dir, split=e.split, data_list=e.data_list, label_list=e.label_list, labels="required")


def write_lists(config: Config, **lists: Sequence[Sample]) -> None:
    """Write the image lists that a run uses into its folder."""
    if distributed.is_main():
        folder = run_folder(config) / "lists"
        folder.mkdir(parents=True, exist_ok=True)
        for name, samples in lists.items():
            root = config.source.data_dir if name == "source" else config.target.data_dir
            write_list(samples, folder / f"{name}.txt", root)


def domain_dataset(config: Config, domain: int, samples: Sequence[Sample], whole_images: bool = False) -> SegmentationFolder:
    """Images of one domain, augmented as configured or, with ``whole_images``, only resized."""
    options = config.source if domain == SOURCE else config.target
    if whole_images:
        options = replace(options, scale=None, rotate=None, flip=False, crop_size=None)
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
    return SegmentationFolder(
        samples, label_kind(options), transform, seed=config.seed, domain=domain, skip_bad=t.skip_bad_samples > 0, read=read
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
    folder = SegmentationFolder(samples, label_kind(options), EvalTransform(config.test.input_size), seed=config.seed, domain=TARGET)
    return eval_loader(
        folder, num_workers=config.test.num_workers, rank=distributed.rank(), world_size=distributed.world_size()
    )


def statistics_loader(config: Config, domain: int, samples: Sequence[Sample]) -> DataLoader:
    """Each image ``adabn.epochs`` times, in batches of nearly equal size, for batch-norm statistics."""
    dataset = domain_dataset(config, domain, samples, whole_images=config.adabn.images == "whole")
    return epoch_loader(
        dataset,
        config.adabn.batch_size,
        epochs=config.adabn.epochs,
        seed=config.seed,
        num_workers=config.test.num_workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


def build_network(config: Config, device: torch.device) -> Segmentor:
    """The configured architecture with seeded initial weights."""
    m = config.model
    torch.manual_seed(config.seed)
    model = build_segmentor(m.encoder, m.decoder, config.num_classes, m.fc_dim, m.use_aux)
    configure_batchnorm(model, m.bn_momentum, m.bn_bias_correction)
    if m.dropout is not None:
        set_dropout(model, m.dropout)
    return model.to(device)


def build_model(config: Config, log: RunLog, device: torch.device, pretrained: bool = True) -> Segmentor:
    """Network to train, the same on every process; ``pretrained``: with the starting weights of ``model.*``."""
    m, t = config.model, config.train
    if t.compile and t.checkpoint_encoder:
        raise ValueError("train.compile cannot trace the recomputation of train.checkpoint_encoder: set one of them to false")
    model = build_network(config, device)
    if pretrained and m.weights is not None:
        log.text(load_checkpoint_weights(model, resolve_weights(m.weights)))
    if pretrained and (m.weights_encoder or m.weights_decoder):
        log.text(load_encoder_decoder(model, m.weights_encoder, m.weights_decoder))
    distributed.broadcast_model(model)
    model.checkpoint_encoder = t.checkpoint_encoder
    if t.channels_last:
        model.to(memory_format=torch.channels_last)
    if t.compile:
        model.compile()  # in place: the state-dict keys stay as they are
    return model


def build_optimizer(config: Config, model: Segmentor) -> torch.optim.SGD:
    """SGD with the encoder's and the decoder's learning rates; weight decay on convolution weights only."""
    t = config.train
    groups = parameter_groups(model.encoder, t.lr_encoder, t.weight_decay)
    groups += parameter_groups(model.decoder, t.lr_decoder, t.weight_decay)
    return torch.optim.SGD(groups, lr=t.lr_decoder, momentum=t.momentum)


def _whole_target_size(config: Config) -> Size:
    """(W, H) of the target images in training, which is the size of the spatial prior."""
    size = config.target.input_size
    if size is None:
        size = read_image(target_samples(config)[0][0].image).size
    return size


def build_curriculum(config: Config, samples: Sequence[Sample], log: RunLog) -> PyramidCurriculum:
    """The method's loss, with priors from files or from the labels of the source ``samples``."""
    c = config.curriculum
    options = dict(cache_dir=run_folder(config) / "priors", num_workers=config.train.num_workers)
    class_prior = spatial_prior = None
    if c.class_prior is not None:
        class_prior = priors.load_class_prior(c.class_prior, config.num_classes)
    elif c.image_target == "source" and c.lambda_balance:
        class_prior = priors.class_prior(samples, label_kind(config.source), config.num_classes, **options)
    if c.lambda_eq and c.spatial_prior is not None:
        spatial_prior = priors.load_spatial_prior(c.spatial_prior, config.num_classes)
    elif c.lambda_eq:
        size = _whole_target_size(config)
        spatial_prior = priors.spatial_prior(samples, label_kind(config.source), config.num_classes, size, sigma=c.prior_sigma, **options)
    files = ("class_prior", "spatial_prior", "prior_sigma")  # all other keys are arguments of the curriculum
    switches = {name: value for name, value in asdict(c).items() if name not in files}
    log.text("curriculum: " + ", ".join(f"{name}={value}" for name, value in switches.items()))
    return PyramidCurriculum(class_prior, spatial_prior=spatial_prior, all_reduce=distributed.all_reduce_sum, **switches)
