"""Damaged labels, images, resume states and released weights."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dataset.reading import read_image, read_label, stored_size
from models.batchnorm import BatchNorm2d
from models.encoder import Encoder
from models.heads import FCN
from models.segmentor import Segmentor
from models.weights import load_checkpoint_weights, load_encoder_decoder, read_checkpoint, read_file
from tests.data import png
from tests.fuzz.mutations import (
    damaged_bytes,
    damaged_file,
    damaged_state,
    hypothesis,
    limited,
    odd_tensors,
    reads,
    saved,
    st,
)
from utils.config.schema import Config
from utils.engine.trainer import Trainer
from utils.run_folder.checkpoint import class_table_of, find_state, model_state
from utils.run_folder.log import RunLog
from utils.run_folder.manifest import RunData
from utils.run_folder.summary import read_summary
from utils.scoring.predictor import config_of

pytestmark = pytest.mark.slow

SIZE = (12, 10)
METHOD = "train_source_only"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def picture(mode: str, form: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 24, (SIZE[1], SIZE[0], 3), np.uint8)
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if form in ("JPEG", "WEBP") else {}
    Image.fromarray(values).convert(mode).save(stream, form, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def pictures(place) -> dict[str, bytes]:
    forms = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP"}
    found = {f"image.{suffix}": picture("RGB", form) for suffix, form in forms.items()}
    found |= {"palette.png": picture("P", "PNG"), "grey.png": picture("L", "PNG")}
    ids = np.random.default_rng(0).integers(0, 23, (*SIZE, 3)).astype(np.uint16)
    return found | {"synthia.png": png.colour16(place / "synthia.png", ids, png.FILTERS).read_bytes()}


@limited(300)
@hypothesis.given(data=st.data())
def test_image_and_label(place, pictures, data):
    name = data.draw(st.sampled_from(sorted(pictures)) | st.sampled_from(["grey.png", "palette.png", "synthia.png"]))
    path = place / name
    path.write_bytes(data.draw(damaged_bytes(pictures[name])))
    reads(lambda: read_image(path), path)
    reads(lambda: read_label(path, "cityscapes"), path)
    reads(lambda: read_label(path, "synthia"), path)
    reads(lambda: stored_size(path, verify=True), path)


class TinyEncoder(Encoder):
    channels, strides, classifier = (4, 8), (4, 8), ("fc.weight",)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, 4, padding=1, bias=False), BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 8, 3, 2, padding=1, bias=False), BatchNorm2d(8)

    def forward(self, x: Tensor, recompute: bool = False) -> tuple[Tensor, ...]:
        first = self.bn1(self.conv1(x))
        return first, self.bn2(self.conv2(first))


def network() -> Segmentor:
    torch.manual_seed(0)
    return Segmentor(TinyEncoder(), FCN(TinyEncoder.channels, 19, False), use_aux=False)


def run_config(place: Path, **keys: str) -> Config:
    config = Config(snapshot_dir=str(place), exp_name="run", **keys)
    config.follow_target()
    return config


def data_of(config: Config) -> RunData:
    return RunData(config, {"source": [], "target": [], "held_out": []})


def trainer_of(config: Config, log: RunLog) -> Trainer:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    origin = {"method": METHOD, "data": data_of(config).digests}
    return Trainer(config, model, optimizer, [], None, torch.device("cpu"), log, origin=origin)


def step(trainer: Trainer) -> dict:
    """One step, and the state after it."""
    trainer.set_learning_rate(trainer.state.step)
    trainer.model(torch.ones(2, 3, 16, 16))["logits"].mean().backward()
    trainer.optimizer.step()
    trainer.state.step += 1
    return trainer.state_dict()


@pytest.fixture(scope="module")
def state(place) -> dict:
    with RunLog(place, enabled=False) as log:
        return step(trainer_of(run_config(place), log))


def goes_on(config: Config) -> None:
    """Resume a run from the file of the configuration, do a step and save."""
    with RunLog(Path(config.snapshot_dir), enabled=False) as log:
        trainer = trainer_of(config, log)
        found = find_state(data_of(config), METHOD, lambda text: None)
        assert found is not None
        trainer.load_state(found)
        saved(step(trainer))


@limited(150)
@hypothesis.given(data=st.data())
def test_resume_state(place, state, data):
    """Unexpected values in a whole file, and damaged files."""
    path = place / "state.pth"
    whole = damaged_state(state).map(saved)
    path.write_bytes(data.draw(whole | whole | damaged_file(state)))
    config = run_config(place, resume=str(path), resume_force=data.draw(st.booleans()))
    reads(lambda: goes_on(config), path, "the checkpoint")


def describes_itself(path: Path) -> None:
    """Use a checkpoint without the configuration of its training."""
    content = read_file(path)
    if "config" in content:
        class_table_of(content, config_of(content, str(path)), str(path))


@limited(100)
@hypothesis.given(data=st.data())
def test_weights_of_a_run(place, state, data):
    path = place / "weights.pth"
    content = model_state(run_config(place), network())
    path.write_bytes(data.draw(damaged_state(content).map(saved) | damaged_file(content)))

    reads(lambda: load_checkpoint_weights(network(), read_checkpoint(path), path), path)
    reads(lambda: read_summary(path), path)
    reads(lambda: describes_itself(path), path)


@limited(150)
@hypothesis.given(data=st.data())
def test_released_encoder_and_decoder(place, data):
    path, model = place / "encoder.pth", network()
    part = data.draw(st.sampled_from(["encoder", "decoder"]))
    tensors = {f"module.{name}": tensor for name, tensor in getattr(model, part).state_dict().items()}
    norms = [name.removesuffix("running_mean") for name in tensors if name.endswith("running_mean")]
    tensors |= {f"{name}_running_iter": torch.tensor(1.5) for name in norms}
    tensors |= {f"{name}_tmp_running_{what}": torch.ones(8) for name in norms for what in ("mean", "var")}
    whole = damaged_state(tensors).map(saved)
    path.write_bytes(data.draw(whole | whole | damaged_file(tensors) | odd_tensors().map(saved)))
    reads(lambda: load_encoder_decoder(model, **{f"weights_{part}": str(path)}), path)
