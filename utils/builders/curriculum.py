"""From a configuration to the method's loss, with its priors."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np
import torch

from dataset import priors
from dataset.folders import Sample
from dataset.reading import read_image
from utils import distributed
from utils.builders.data import target_samples
from utils.builders.limits import check_one_size
from utils.config.schema import Config, ConfigError, Size
from utils.pycda.curriculum import PyramidCurriculum
from utils.run_folder.log import RunLog


def _whole_target_size(config: Config) -> Size:
    """(W, H) of the target images in training, which is the size of the spatial prior.

    Raises:
        DataError: they have several.
    """
    size = config.target.input_size
    if size is None:
        target, _ = target_samples(config)
        check_one_size(target)
        size = read_image(target[0].image).size
    return size


def _check_boxes(config: Config) -> None:
    t, boxes = config.target, config.curriculum.box_size
    if not boxes:
        return
    size = t.crop_size or t.input_size
    if size is None:
        size = read_image(target_samples(config)[0][0].image).size
    if t.crop_size is None and t.scale is not None:
        size = int(size[0] * t.scale[0]), int(size[1] * t.scale[0])
    if max(boxes) > min(size):
        raise ConfigError(f"curriculum.box_size is {list(boxes)}, which does not fit into images of {size} (W, H)")


def build_curriculum(
    config: Config, samples: Sequence[Sample] | None = None, log: RunLog | None = None
) -> PyramidCurriculum:
    """The method's loss, as every reader of a configuration builds it.

    Args:
        samples: of the source, whose labels give the priors that no file gives; None: no priors, and no term of the
            loss that needs one, which is enough for ``pseudo_labels``.
        log: gets the options; None: nobody.
    """
    c, say = config.curriculum, log.text if log else lambda text: None
    files = ("class_prior", "spatial_prior", "prior_sigma")  # all other keys are arguments of the curriculum
    switches = {name: value for name, value in asdict(c).items() if name not in files}
    class_prior = spatial_prior = None
    if samples is None:
        switches |= {"image_target": "uniform", "lambda_eq": 0.0}
    else:
        _check_boxes(config)
        class_prior, spatial_prior = distributed.from_first(lambda: _priors(config, samples, say))
    say("curriculum: " + ", ".join(f"{name}={value}" for name, value in switches.items()))
    return PyramidCurriculum(
        None if class_prior is None else torch.from_numpy(class_prior),
        spatial_prior=None if spatial_prior is None else torch.from_numpy(spatial_prior),
        all_reduce=distributed.all_reduce_sum,
        **switches,
    )


def _priors(
    config: Config, samples: Sequence[Sample], say: Callable[[str], None]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Class prior float64 (C,) and spatial prior float32 (C, H, W), None where it is not used."""
    c = config.curriculum
    t, kind, cache = config.train, config.source.label_kind, config.run_folder / "priors"
    reading = {"num_workers": t.num_workers, "skip_bad": t.skip_bad_samples}
    class_prior = spatial_prior = None
    if c.class_prior is not None:
        class_prior = priors.load_class_prior(c.class_prior, config.num_classes)
    elif c.image_target == "source" and c.lambda_balance:
        class_prior = priors.class_prior(samples, kind, config.num_classes, cache_dir=cache, **reading)
    if c.lambda_eq and c.spatial_prior is not None:
        spatial_prior = priors.load_spatial_prior(c.spatial_prior, config.num_classes, say)
    elif c.lambda_eq:
        size = _whole_target_size(config)
        spatial_prior = priors.spatial_prior(
            samples, kind, config.num_classes, size, sigma=c.prior_sigma, cache_dir=cache, **reading
        )
    return class_prior, spatial_prior
