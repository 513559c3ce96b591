"""``sh run.sh predict``: pictures of any kind without labels; nothing is overwritten or skipped in silence."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import evaluate
from dataset.labels import CITYSCAPES
from dataset.messages import DataError
from utils.commands import predict
from utils.config.schema import ConfigError
from utils.inference import load
from utils.metrics import ConfusionMatrix
from utils.scoring.pictures import save_picture, with_legend
from utils.scoring.predictions import write_json
from utils.scoring.segment import Output, find_pictures

FOLDERS = ("colour", "label_ids", "overlay")


@pytest.fixture
def photos(city: Path, tmp_path: Path) -> Path:
    """Pictures of several formats and sizes in nested folders, with spaces and umlauts in their names."""
    first, second, third, *_ = (Image.open(path) for path in sorted((city / "gtav/images").glob("*.png")))
    folder = tmp_path / "my photos"
    (folder / "Köln süd/morning").mkdir(parents=True)
    first.convert("RGB").save(folder / "Köln süd/frame 10.jpg")
    second.convert("RGB").resize((80, 24)).save(folder / "Köln süd/frame 2.JPEG")
    third.convert("RGB").save(folder / "Köln süd/morning/frame.webp", lossless=True)
    third.convert("L").save(folder / "grey.tiff")
    (folder / ".hidden.jpg").write_bytes(b"no picture")
    return folder


def found(folder: Path, kind: str) -> dict[str, Image.Image]:
    return {str(path.relative_to(folder / kind)): Image.open(path) for path in sorted((folder / kind).rglob("*.png"))}


def test_a_folder_with_all_its_formats(command, source_run, photos, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = command(source_run.parent, "source_only", str(photos), "--save", str(out), "--confidence")
    for name in ("a.XML", "b.xml", "README"):
        (photos / "Köln süd" / name).touch()
    assert predict.main(arguments) == 0
    output = capsys.readouterr()
    assert f"4 pictures by {source_run}/" in output.out
    assert output.err.count(f"skipped below {photos}: 2 .xml, 1 without a suffix\n") == 1
    names = ["Köln süd/frame 10.png", "Köln süd/frame 2.png", "Köln süd/morning/frame.png", "grey.png"]
    for kind in (*FOLDERS, "confidence"):
        assert list(found(out, kind)) == names
    predictor = load(source_run)
    classes = predictor(photos / "Köln süd/frame 2.JPEG")
    name = "Köln süd/frame 2.png"
    ids = np.asarray(found(out, "label_ids")[name])
    assert ids.shape == (24, 80) and np.array_equal(ids, CITYSCAPES.export_ids[classes])
    assert np.array_equal(np.asarray(found(out, "colour")[name]), CITYSCAPES.palette[classes])
    highest = predictor.probabilities(photos / "Köln süd/frame 2.JPEG").max(0)
    assert abs(np.asarray(found(out, "confidence")[name]) / 255 - highest).max() <= 0.51 / 255
    picture = np.asarray(Image.open(photos / "Köln süd/frame 2.JPEG")).astype(int)
    blended = np.asarray(found(out, "overlay")[name]).astype(int)
    assert blended.shape == picture.shape  # of the picture's size
    assert abs(blended - (picture + CITYSCAPES.palette[classes]) / 2).max() <= 1


def test_legend_is_in_overlays_and_clip_where_it_is_asked_for(command, source_run, photos, tmp_path):
    pictures, overlays = [str(photos / "Köln süd/morning"), "--clip", str(tmp_path / "clip.gif")], {}
    for choice in ("none", "beside"):
        options = [*pictures, "--save", str(tmp_path / choice), "--legend", choice]
        assert predict.main(command(source_run.parent, "source_only", *options)) == 0
        overlays[choice] = found(tmp_path / choice, "overlay")["frame.png"]
        with Image.open(tmp_path / "clip.gif") as clip:
            assert clip.size == overlays[choice].size or max(clip.size) == 960  # clips are at most this wide
    plain, legend = overlays.values()
    assert (
        plain.size == found(tmp_path / "none", "colour")["frame.png"].size
        and legend.height == plain.height
        and legend.width > plain.width
    )
    assert np.array_equal(np.asarray(legend)[: plain.height, : plain.width], np.asarray(plain))


def test_another_input_size_than_the_runs_is_reported(command, source_run, photos, tmp_path, capsys):
    arguments = command(source_run.parent, "source_only", str(photos), "--save", str(tmp_path / "out"))
    predict.main(arguments)
    assert "test.input_size is" not in capsys.readouterr().err
    predict.main([*arguments, "test.input_size=[64,32]"])
    assert f"test.input_size is (64, 32) here and None in {source_run}" in capsys.readouterr().err


def test_evaluate_gives_the_same(command, source_run, photos, tmp_path):
    paths = [str(photos / "grey.tiff"), str(photos / "Köln süd")]
    weights = ["--weights", str(source_run)]
    assert predict.main(command(tmp_path, "any", *paths, *weights, "--save", str(tmp_path / "a"))) == 0
    more = [*weights, "--save", str(tmp_path / "b"), "tta.flip=true"]
    assert evaluate.main(command(tmp_path, "any", "--images", *paths, *more)) == 0
    one, other = (found(tmp_path / run, "label_ids") for run in "ab")
    assert list(one) == list(other) == ["Köln süd/frame 10.png", "Köln süd/frame 2.png", *list(one)[2:]]
    differ = [name for name in one if not np.array_equal(np.asarray(one[name]), np.asarray(other[name]))]
    assert differ  # keys of tta have an effect
    with pytest.raises(ConfigError, match="--images gives no scores"):
        evaluate.main(command(tmp_path, "any", "--images", *paths, *more, "--json", "x.json"))


def test_official_pair_of_files(command, source_run, photos, tmp_path):
    tensors = torch.load(source_run / "best.pth", weights_only=True)["model"]
    for part in ("encoder", "decoder"):
        own = {f"module.{key.partition('.')[2]}": value for key, value in tensors.items() if key.startswith(part)}
        torch.save(own, tmp_path / f"{part}.pth")
    pair = [str(tmp_path / "encoder.pth"), str(tmp_path / "decoder.pth")]
    for weights, out in ((pair, "a"), ([str(source_run)], "b")):
        options = ["--weights", *weights, "--save", str(tmp_path / out)]
        assert predict.main(command(tmp_path, "any", str(photos / "grey.tiff"), *options)) == 0
    a, b = (np.asarray(found(tmp_path / out, "label_ids")["grey.png"]) for out in "ab")
    assert np.array_equal(a, b) and len(np.unique(a)) > 1


def test_unreadable_picture_is_named_and_the_others_are_predicted(command, source_run, photos, tmp_path, capsys):
    (photos / "Köln süd/damaged.jpg").write_bytes((photos / "Köln süd/frame 10.jpg").read_bytes()[:400])
    out = tmp_path / "out"
    arguments = command(source_run.parent, "source_only", str(photos), "--save", str(out), "test.num_workers=1")
    assert predict.main(arguments) == 1
    written = capsys.readouterr()
    assert "4 pictures" in written.out and "damaged.jpg" in written.err and len(found(out, "colour")) == 4
    assert "train." not in written.err and "list" not in written.err  # advice for trainings only


def test_clip_has_the_frames_in_natural_order(command, source_run, photos, tmp_path):
    for clip in (tmp_path / "clip.webp", tmp_path / "clips/clip.gif"):
        options = ["--save", str(tmp_path / "out"), "--opacity", "1", "--clip", str(clip), "--fps", "4"]
        assert predict.main(command(source_run.parent, "source_only", str(photos / "Köln süd"), *options)) == 0
        with Image.open(clip) as animation:
            frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(animation)]
            assert len(frames) == 3 and animation.info["duration"] == 250
        first = Image.open(tmp_path / "out/overlay/frame 2.png")  # before frame 10
        difference = np.asarray(frames[0]).astype(int) - np.asarray(first).astype(int)
        assert frames[0].size == first.size and abs(difference).mean() < 12


@pytest.mark.slow
def test_two_processes_share_the_files(command, source_run, photos, tmp_path, fork_two):
    (photos / "damaged.jpg").write_bytes(b"no picture")
    arguments = command(source_run.parent, "source_only", str(photos), "--clip", str(tmp_path / "c.gif"))
    two = [*arguments, "--save", str(tmp_path / "two")]
    (first, output), (second, more) = (each.ended() for each in fork_two("utils/commands/predict.py", two, two))
    assert first == second == 1 and "4 pictures" in output and "damaged.jpg" in output + more
    with Image.open(tmp_path / "c.gif") as animation:
        assert animation.n_frames == 4
    assert predict.main([*arguments, "--save", str(tmp_path / "one")]) == 1
    one, two = (found(tmp_path / run, "label_ids") for run in ("one", "two"))
    assert len(one) == 4 and list(one) == list(two)
    assert all(np.array_equal(np.asarray(one[name]), np.asarray(two[name])) for name in one)


def test_which_files_are_found(photos, tmp_path):
    out = Output(photos / "results")
    shutil.copytree(photos / "Köln süd", photos / "results/other")
    for number in (1, 9):
        shutil.copy(photos / "grey.tiff", photos / f"Köln süd/frame {number}.tiff")
    names = [str(file.name) for file in find_pictures([photos], "", out)]
    frames = ["frame 1", "frame 2", "frame 9", "frame 10", "morning/frame"]
    assert names == [*(f"Köln süd/{name}" for name in frames), "grey"]  # no hidden files, no results
    lines = ["Köln süd/frame 10.jpg", "grey.tiff\tlabels/grey.png", str(photos / "Köln süd/frame 2.JPEG")]
    (photos / "list.txt").write_text("\n".join(lines))
    listed = find_pictures([photos / "list.txt"], tmp_path, out)
    assert [str(file.name) for file in listed] == ["Köln süd/frame 10", "grey", "Köln süd/frame 2"]
    (tmp_path / "link.jpg").symlink_to(photos / "Köln süd/frame 10.jpg")
    assert [str(file.name) for file in find_pictures([tmp_path / "link.jpg"], "", out)] == ["link"]


@pytest.mark.slow
@pytest.mark.parametrize("above", [False, True])
def test_own_results_are_no_pictures(command, source_run, photos, tmp_path, capsys, above):
    save, given = photos.parent if above else photos, tmp_path / "link"
    given.symlink_to(photos)
    options = ["--save", str(save), "--confidence", "--clip", str(photos / "clip.webp")]
    for pictures in (photos, given, photos):
        assert predict.main(command(source_run.parent, "source_only", str(pictures), *options)) == 0
        assert capsys.readouterr().out.startswith("4 pictures")
    for result in ("colour", "overlay/Köln süd", "colour/grey.png"):
        with pytest.raises(DataError, match="is a result of the same --save|results are skipped"):
            find_pictures([save / result], "", Output(save))


def test_each_folder_is_walked_once_however_it_is_linked(photos, tmp_path):
    (photos / "Aachen").symlink_to(photos / "Köln süd/morning")
    (photos / "Köln süd/back").symlink_to(photos)
    (tmp_path / "link").symlink_to(photos)
    expected = {"Köln süd/frame 2", "Köln süd/frame 10", "Köln süd/morning/frame", "grey"}
    out = Output(tmp_path / "out")
    assert {file.name for file in find_pictures([photos], "", out)} == expected
    files = find_pictures([photos, tmp_path / "link", photos / "Köln süd"], "", out)
    assert {file.name for file in files} == {f"{photos.name}/{name}" for name in expected} and len(files) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_no_half_picture_remains_on_a_full_disk(tmp_path):
    import resource

    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    paths = [tmp_path / name for name in ("a.png", "a.webp", "a.gif")]
    save_picture(paths[0], Image.new("RGB", (8, 8)))
    before, limits = paths[0].read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        for path in paths:
            with pytest.raises(OSError, match=f"File too large.*{path}"):
                save_picture(path, Image.fromarray(noise))
        with pytest.raises(OSError, match=f"File too large.*{tmp_path / 'a.json'}"):
            write_json(
                tmp_path / "a.json", dict.fromkeys(map(str, range(20)), ConfusionMatrix(19)), CITYSCAPES, None, 1
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == paths[:1] and paths[0].read_bytes() == before


def test_mistakes_are_reported_before_anything_runs(command, source_run, photos, tmp_path):
    def run(*arguments: str) -> None:
        predict.main(command(source_run.parent, "source_only", "--save", str(tmp_path / "out"), *arguments))

    shutil.copy(photos / "grey.tiff", photos / "grey.png")
    with pytest.raises(DataError, match=r"grey.png and .*grey.tiff would have the same name"):
        run(str(photos))
    (tmp_path / "video").mkdir()
    (tmp_path / "video/a.MP4").touch()
    with pytest.raises(DataError, match="no picture below .*a.MP4.*ffmpeg"):
        run(str(tmp_path / "video"))
    with pytest.raises(DataError, match="is a video: .*ffmpeg"):
        run(str(tmp_path / "video/a.MP4"))
    with pytest.raises(DataError, match="no picture, folder or list .*nothing.jpg"):
        run(str(tmp_path / "nothing.jpg"))
    for options, message in (
        (["--opacity", "50"], "--opacity must be from 0 to 1"),
        (["--clip", "a.mp4"], "--clip must end in .gif or .webp"),
        (["--fps", "0"], "--fps must be from 0.01 to 100"),
        (["--fps", "nan"], "--fps must be .*, got nan"),
        (["--fps", "0.001"], "--fps must be from 0.01 to 100, got 0.001"),
        (["tta.scales=[1e9]"], "'tta.scales' must be"),
        (["--weights", str(source_run), str(source_run / "last.pth")], "names 2 networks"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(str(photos / "Köln süd"), *options)
    with pytest.raises(ConfigError, match="no pictures"):
        run()
    assert not (tmp_path / "out").exists()


def test_legend_names_all_classes_and_colours_the_present_ones():
    picture = Image.new("RGB", (640, 100))
    sizes, inks = set(), []
    for number in (0, 10):
        sheet = with_legend(picture, np.full((100, 640), number, np.uint8), CITYSCAPES)
        sizes.add(sheet.size)
        legend = np.asarray(sheet)[:, 640:].reshape(-1, 3)
        inks.append([(legend == colour).all(1).sum() for colour in CITYSCAPES.palette])
    assert len(sizes) == 1 and sheet.height == 100
    filled = [[number for number, area in enumerate(areas) if area > 90] for areas in inks]
    assert filled == [[0], [10]] and min(map(min, inks)) > 20  # the others have an outline
