"""TensorBoard gets exactly the values of log.jsonl."""

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

import train_pycda
import train_source_only
from dataset.labels import CITYSCAPES
from utils.run_folder import log
from utils.run_folder.log import DRAWN_BARS, PICTURE_WIDTH, RunLog, plain_json, read_scalars
from utils.scoring.pictures import TITLE_HEIGHT


def values(folder: Path) -> Iterator[tuple[int, Summary.Value]]:
    """(step, value) of all events of a run; files in the order of their names."""
    for path in sorted((folder / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):  # a record: length, its checksum, the event, its checksum
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            yield from ((event.step, value) for value in event.summary.value)
            at += 12 + length + 4


@pytest.fixture(scope="module")
def run(command, source_run, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("board")
    train_pycda.main(command(runs, "pycda", f"model.weights={source_run}", "curriculum.conf_threshold=0.1"))
    return runs / "pycda"


def test_an_error_is_in_the_log_and_not_on_the_console_too(tmp_path, capsys):
    with pytest.raises(ValueError), RunLog(tmp_path) as log:
        log.text("begun")
        raise ValueError("wrong")
    assert "ValueError: wrong" in (tmp_path / "log.txt").read_text()
    assert "begun" in (output := capsys.readouterr().out) and "wrong" not in output


def test_histograms_hold_the_class_shares_and_scalars_the_rest(run):
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    written = {(step, value.tag): value for step, value in values(run)}
    for record in records:
        step = record.pop("step")
        for name, number in record.items():
            layer, _, class_name = name.rpartition("/")
            if "/share/" in name:
                histogram, c = written[step, layer].histo, CITYSCAPES.names.index(class_name)
                assert histogram.bucket[c] == pytest.approx(number, abs=1e-9) and histogram.bucket_limit[c] == c + 1
            else:
                assert written[step, name].simple_value == pytest.approx(number, nan_ok=True)
    histograms = {tag: value.histo for (_, tag), value in written.items() if value.HasField("histo")}
    layers = ("pixel", "square_4", "square_8", "prediction")
    assert histograms.keys() == {f"target/share/{layer}" for layer in layers}
    assert all(len(h.bucket) == h.max == DRAWN_BARS and h.num == pytest.approx(1) for h in histograms.values())
    assert not any("/share/" in tag for (_, tag), value in written.items() if value.HasField("simple_value"))


def test_panels_of_the_held_out_images_at_each_validation(run):
    listed = (run / "lists/held_out.txt").read_text().split()
    names = [Path(line).name.removesuffix("_leftImg8bit.png") for line in listed]
    panels = [(step, value.tag, value.image) for step, value in values(run) if value.HasField("image")]
    # One validation, three images.
    assert [(step, tag) for step, tag, _ in panels] == [(2, f"panels/{name}") for name in names]
    picture = Image.open(io.BytesIO(panels[0][2].encoded_image_string))
    assert picture.size == (panels[0][2].width, panels[0][2].height) == (3 * 96 + 8, 64 + TITLE_HEIGHT)


def test_configuration_is_written_once_as_text(run):
    written = {value.tag: (step, value) for step, value in values(run) if value.tag.endswith("text_summary")}
    texts = {tag: (step, value.tensor.string_val[0].decode()) for tag, (step, value) in written.items()}
    step, config = texts["config/text_summary"]
    assert step == 0 and yaml.safe_load(config.strip("`")) == yaml.safe_load((run / "config.yaml").read_text())
    assert "10 to 11: sky" in texts["classes of the share histograms/text_summary"][1]
    assert [value.tag for _, value in values(run)].count("config/text_summary") == 1


def test_no_panel_without_validation(command, tmp_path):
    train_source_only.main(command(tmp_path, "run", "train.num_steps=1", "val.held_out=0"))
    assert not any(value.HasField("image") for _, value in values(tmp_path / "run"))


def test_run_that_starts_anew_leaves_nothing_of_the_earlier_one(command, tmp_path):
    train_source_only.main(command(tmp_path, "run", "train.num_steps=1"))
    train_source_only.main(command(tmp_path, "run", "train.num_steps=1", "val.held_out=0", "resume=off"))
    tags = [value.tag for _, value in values(tmp_path / "run")]
    assert tags.count("config/text_summary") == 1 and "source/total" in tags
    assert not any(tag.startswith("panels/") for tag in tags)


def test_large_pictures_are_shrunk_and_empty_layers_drawn_as_such(tmp_path):
    with RunLog(tmp_path) as out:
        out.picture(1, "wide", Image.new("RGB", (4 * PICTURE_WIDTH, 400)))
        out.record(1, {"target/share/pixel": {"road/lane": 0.0, "sky": 0.0}})
    picture, shares = (value for _, value in values(tmp_path))
    assert (picture.image.width, picture.image.height) == (PICTURE_WIDTH, 100)
    assert shares.tag == "target/share/pixel" and max(shares.histo.bucket) < 1e-9


def test_values_that_are_no_numbers_are_null_and_left_out_of_the_curves(tmp_path):
    with RunLog(tmp_path) as out:
        out.record(1, {"val/miou": float("nan"), "val/miou_13": float("inf"), "source/total": 0.5})
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    record = json.loads(line, parse_constant=refuse)
    assert record["val/miou"] is None and record["val/miou_13"] is None
    assert list(read_scalars(tmp_path / "log.jsonl")) == [(1, {"source/total": 0.5})]
    assert json.loads(plain_json([{"iou": (1.0, float("nan"))}])) == [{"iou": [1.0, None]}]


def test_damaged_lines_are_left_out_with_a_word(tmp_path):
    lines = [b'{"step": 1, "a": 1.0}', b"\x00\x00\xff", b'{"step": 2, "a": 2.', b'{"a": 3.0}', b'{"step": 3, "a": NaN}']
    (tmp_path / "log.jsonl").write_bytes(b"\n".join([*lines, b'{"step": 4, "a": 4.0}', b'{"step": 5']))
    told: list[str] = []
    assert list(read_scalars(tmp_path / "log.jsonl", told.append)) == [(1, {"a": 1.0}), (3, {}), (4, {"a": 4.0})]
    assert told == [f"{tmp_path}/log.jsonl: skipped 4 damaged line(s), number 2, 3, 4, 7"]
    with RunLog(tmp_path) as out:
        out.restart(3)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "a": 1.0}\n{"step": 3, "a": null}\n'
    assert "skipped 4 damaged line(s)" in (tmp_path / "log.txt").read_text()


def test_a_kill_while_records_are_forgotten_leaves_them_whole(tmp_path, monkeypatch):
    class Killed(str):
        def encode(self, *arguments: str, **options: str) -> bytes:
            raise KeyboardInterrupt

    monkeypatch.setattr(log, "kept_records", lambda *arguments: Killed("all but the last"))
    with RunLog(tmp_path) as run_log:
        for step in (1, 2, 3):
            run_log.record(step, {"source/total": 0.5})
        before = (tmp_path / "log.jsonl").read_bytes()
        with pytest.raises(KeyboardInterrupt):
            run_log.restart(2)
        assert (tmp_path / "log.jsonl").read_bytes() == before and before.count(b"\n") == 3


def test_scores_of_a_validation_that_is_repeated_are_forgotten(tmp_path):
    with RunLog(tmp_path) as out:
        for step in (1, 2):
            out.record(step, {"source/total": 0.5})
            out.record(step, {"val/miou": 50.0})
        out.restart(2, validated=False)
    kept = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(record["step"], "val/miou" in record) for record in kept] == [(1, False), (1, True), (2, False)]
