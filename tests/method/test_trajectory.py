"""Whole training iterations are those of the authors' training scripts: losses, learning rates, weights, statistics.

``golden/trajectory.json`` holds three iterations of each released script, run on a CPU in float64 on arrays that its
``note`` describes. Here our own scripts run on the same arrays: their configurations, phases, losses, optimiser,
schedule and batch norm; only the loaders are replaced. Losses and weights do not depend on how statistics are averaged:
one run is compared with both ways, ``bias_corrected`` and, without that, ``one_device``. ``PYCDA_TRAJECTORY=FILE``
reads the cases of another file.
"""

import copy
import functools
import importlib
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.batchnorm import BatchNorm2d, batch_norms
from tests.golden import reference
from utils.builders import data, network
from utils.config.read import build_config
from utils.config.schema import Config
from utils.engine.experiment import Experiment
from utils.engine.trainer import Trainer
from utils.run_folder.log import RunLog

pytestmark = pytest.mark.slow(10)  # seconds

CASES = json.loads(
    Path(os.environ.get("PYCDA_TRAJECTORY", Path(reference.__file__).parent / "trajectory.json")).read_text()
)["cases"]
CONFIGS = {
    "source_only": "source_only_exp001",
    "adabn": "adabn_exp001",
    "pycda": "pycda_exp001",
    "pycda_spatial": "pycda_spatial_ratio_exp001",
}
CLASSES, TOLERANCE = 19, 1e-8
PROBE_STRIDE = 7919  # probe i is flat[i * 7919 % size]


def write_official(spec: dict, folder: Path, encoder: torch.nn.Module, decoder: torch.nn.Module) -> list[str]:
    """An encoder and a decoder file as the released code writes them, with running sums at t = 0."""
    paths = []
    for part, module in (("encoder", encoder), ("decoder", decoder)):
        tensors = {}
        for key, own in module.state_dict().items():
            tensors[key] = torch.from_numpy(reference.weights(f"{part}.{key}", tuple(own.shape)))
            if f"{part}.{key}" == "decoder.conv_last.4.weight":
                tensors[key] *= np.float32(spec["gain"])
            if key.endswith(("running_mean", "running_var")):
                tensors[key.replace("running", "_tmp_running")] = tensors[key].clone()
                tensors[f"{key.rpartition('.')[0]}._running_iter"] = torch.ones(1)
        paths.append(str(folder / f"{part}.pth"))
        torch.save(tensors, paths[-1])
    return paths


@pytest.fixture(scope="module")
def official_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict, Config], list[str]]:
    """The files of a case; the same for all cases of one network."""
    made: dict[tuple, list[str]] = {}

    def files(spec: dict, config: Config) -> list[str]:
        kind = spec["encoder"], spec["fc_dim"], spec["gain"]
        if kind not in made:
            blank = network.build_network(config, torch.device("cpu"))
            made[kind] = write_official(spec, tmp_path_factory.mktemp("official"), blank.encoder, blank.decoder)
        return made[kind]

    return files


def batches(spec: dict, domain: int) -> list[dict]:
    """The iterations' batches of one domain, in memory."""
    shape, name = (spec["n"], spec["h"], spec["w"]), ("source", "target")[domain]
    found = []
    for i in range(spec["steps"]):
        images = torch.from_numpy(reference.image(f"{spec['name']}.{name}.{i}", *shape))
        labels = reference.labels(f"{spec['name']}.{name}.{i}", *shape, CLASSES)
        valid = reference.valid(*shape, padded=domain == data.TARGET and spec["valid"] == "padded")
        found.append(
            {
                "image": images.double(),
                "label": torch.from_numpy(labels) if domain == data.SOURCE else torch.full(shape, 255),
                "valid": torch.from_numpy(valid),
                "name": [""] * spec["n"],
                "skipped": [""] * spec["n"],
            }
        )
    return found


def trainer(
    spec: dict,
    folder: Path,
    device: torch.device,
    official_files: Callable[[dict, Config], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> Trainer:
    """Our script's trainer of a case, in float64, before its first iteration."""
    script = importlib.import_module(f"train_{spec['method']}")
    overrides = [
        f"model.encoder={spec['encoder']}",
        f"model.fc_dim={spec['fc_dim']}",
        "model.dropout=0.0",
        "model.weights=null",
    ]
    if spec["method"] == "pycda_spatial":
        prior = reference.spatial_prior(f"{spec['name']}.spatial", CLASSES, spec["h"], spec["w"])
        np.save(folder / "prior.npy", prior.transpose(1, 2, 0))
        overrides.append(f"curriculum.spatial_prior={folder}/prior.npy")
    defaults = getattr(script, "DEFAULTS", None)
    config = build_config(f"cfgs/{CONFIGS[spec['method']]}.yaml", overrides, defaults, script.__name__)
    config.train.lr_encoder *= spec["lr_mult"]
    config.train.lr_decoder *= spec["lr_mult"]
    assert config.train.num_steps == 35000

    model, report = network.load_network(config, official_files(spec, config), device)
    assert "tensors loaded" in report
    model.double()
    monkeypatch.setattr(data.Data, "training_loader", lambda self, domain: batches(spec, domain))
    log = RunLog(folder, enabled=False)
    phases = script.phases(Experiment(data.Data(config), device, log))
    return Trainer(config, model.train(), network.build_optimizer(config.train, model), phases, None, device, log)


def relative(ours: list[float], theirs: list[float]) -> float:
    """Norm of the difference, relative to the norm of ``theirs``."""
    return float(np.linalg.norm(np.subtract(ours, theirs)) / np.linalg.norm(theirs))


def check_tensor(name: str, tensor: torch.Tensor, expected: dict) -> None:
    flat = tensor.detach().flatten()
    probes = [flat[i * PROBE_STRIDE % flat.numel()].item() for i in range(len(expected["probe"]))]
    assert flat.abs().sum().item() == pytest.approx(expected["l1"], rel=TOLERANCE), name
    assert flat.norm().item() == pytest.approx(expected["l2"], rel=TOLERANCE), name
    assert relative(probes, expected["probe"]) < TOLERANCE, name


def beside(model: torch.nn.Module) -> dict[str, BatchNorm2d]:
    """By name, batch norms that see the batches of the model's own and average them without bias correction."""
    others = {name: copy.deepcopy(own) for name, own in batch_norms(model)}

    @torch.no_grad()
    def follow(other: BatchNorm2d, own: BatchNorm2d, inputs: tuple[Tensor]) -> None:
        other.frozen = own.frozen
        other.train(own.training)(*inputs)

    for name, own in batch_norms(model):
        own.register_forward_pre_hook(functools.partial(follow, others[name]))
        others[name].bias_correction = False
    return others


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["spec"]["name"])
def test_iterations_are_those_of_the_released_scripts(case, tmp_path, device, official_files, monkeypatch):
    spec, expected = case["spec"], case["bias_corrected"]
    run = trainer(spec, tmp_path, device, official_files, monkeypatch)
    others = beside(run.model)
    rates, step = [], run.optimizer.step

    def recorded(*arguments, **options):
        encoder, _, decoder, _ = (group["lr"] for group in run.optimizer.param_groups)
        rates[-1].append([encoder, decoder])
        return step(*arguments, **options)

    run.optimizer.step = recorded
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    for index, losses in zip(range(spec["steps"]), expected["losses"], strict=True):
        rates.append([])
        ours = run.step().values
        assert losses and losses.keys() <= ours.keys()
        for name, value in losses.items():
            assert ours[name] == pytest.approx(value, rel=TOLERANCE), f"iteration {index}: {name}"
    after = run.model.state_dict()
    assert list(itertools.chain(*rates)) == [
        pytest.approx(pair, rel=TOLERANCE) for pair in itertools.chain(*expected["lrs_encoder_decoder"])
    ]
    for name, change in expected["change"].items():
        check_tensor(name, after[name] - before[name], change)
    for name, statistics in expected["statistics"].items():
        check_tensor(name, after[name], statistics)
    for name, statistics in case["one_device"]["statistics"].items():
        module, _, statistic = name.rpartition(".")
        check_tensor(name, getattr(others[module], statistic), statistics)
