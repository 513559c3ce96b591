"""Build the method's loss and its priors from a configuration."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from dataset import priors
from dataset.messages import Report
from dataset.reading import read_image
from utils import distributed
from utils.builders.data import Data, check_one_size
from utils.config.schema import ConfigError, Curriculum, Size
from utils.pycda.class_thresholds import ClassThresholds
from utils.pycda.curriculum import PyramidCurriculum, layer_names

# Keys of the class thresholds
THRESHOLD = ("threshold", "threshold_quantile", "threshold_momentum", "conf_threshold_max")


def _target_size(data: Data) -> Size:
    """(W, H) of the target images in training, without a crop. Raises DataError if their sizes differ."""
    size = data.config.target.input_size
    if size is None:
        check_one_size(data.target)
        size = read_image(data.target[0].image).size
    return size


def _check_boxes(data: Data) -> None:
    t, boxes = data.config.target, data.config.curriculum.box_size
    if not boxes:
        return
    size = t.crop_size or t.input_size or read_image(data.target[0].image).size
    if t.crop_size is None and t.scale is not None:
        size = int(size[0] * t.scale[0]), int(size[1] * t.scale[0])
    if max(boxes) > min(size):
        raise ConfigError(f"curriculum.box_size is {list(boxes)}, larger than target images of {size} (W, H)")


def build_curriculum(
    options: Curriculum, num_classes: int, data: Data | None = None, report: Report = lambda text: None
) -> PyramidCurriculum:
    """The method's loss for the keys ``options``.

    Args:
        data: its source labels give the priors that no file gives. None: no priors and no loss terms that need them,
            for ``pseudo_labels``.
        report: gets a line with the options.
    """
    others = ("class_prior", "spatial_prior", "prior_sigma", *THRESHOLD)  # the other keys are constructor arguments
    switches = {name: value for name, value in asdict(options).items() if name not in others}
    class_prior = spatial_prior = None
    if data is None:
        switches |= {"image_target": "uniform", "lambda_eq": 0.0}
    else:
        _check_boxes(data)
        class_prior, spatial_prior = distributed.from_first(lambda: _priors(data, report))
    thresholds = _thresholds(options, num_classes)
    used = switches | {name: getattr(options, name) for name in THRESHOLD if thresholds or name == "threshold"}
    report("curriculum: " + ", ".join(f"{name}={value}" for name, value in used.items()))
    return PyramidCurriculum(
        None if class_prior is None else torch.from_numpy(class_prior),
        spatial_prior=None if spatial_prior is None else torch.from_numpy(spatial_prior),
        class_thresholds=thresholds,
        all_reduce=distributed.all_reduce_sum,
        **switches,
    )


def _thresholds(options: Curriculum, num_classes: int) -> nn.Module | None:
    """The rule that ``curriculum.threshold`` names; None: ``conf_threshold`` is the only threshold."""
    if options.threshold == "constant":
        return None
    if options.threshold != "class_balanced":
        raise ValueError(f"curriculum.threshold={options.threshold!r} has no rule here")
    return ClassThresholds(
        num_classes,
        layer_names(options.box_size, options.use_pixels),
        quantile=options.threshold_quantile,
        maximum=options.conf_threshold_max,
        momentum=options.threshold_momentum,
        all_reduce=distributed.all_reduce_sum,
    )


def _priors(data: Data, report: Report) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Class prior float64 (C,) and spatial prior float32 (C, H, W); None for a prior that is not used."""
    config, c = data.config, data.config.curriculum
    kind, num_classes = config.source.label_kind, config.num_classes
    reading: dict[str, Any] = {"num_workers": config.train.num_workers, "skip_bad": config.train.skip_bad_samples}
    reading["cache_dir"] = config.run_folder / "priors"
    class_prior = spatial_prior = None
    if c.class_prior is not None:
        class_prior = priors.load_class_prior(c.class_prior, num_classes)
    elif c.image_target == "source" and c.lambda_balance:
        class_prior = priors.class_prior(data.source, kind, num_classes, **reading)
    if c.lambda_eq and c.spatial_prior is not None:
        spatial_prior = priors.load_spatial_prior(c.spatial_prior, num_classes, report)
    elif c.lambda_eq:
        size = _target_size(data)
        spatial_prior = priors.spatial_prior(data.source, kind, num_classes, size, sigma=c.prior_sigma, **reading)
    return class_prior, spatial_prior
