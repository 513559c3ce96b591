"""The authors' flat YAML under ``common:``: keys with an effect there have it here; the others are named once."""

import warnings
from pathlib import Path

import pytest

from utils.config.official import DEAD, DERIVED, ELSEWHERE, RENAMED, SCRIPTS
from utils.config.read import ConfigError, build_config

# One value per key, none of them our default.
OFFICIAL = """\
common:
  exp_name: theirs
  arch_encoder: resnet50_dilated8
  arch_decoder: ppm_bilinear_deepsup
  weights_encoder: ./encoder.pth
  weights_decoder: ''
  use_aux: True
  num_gpus: 4
  batch_size: 4
  iter_size: 2
  num_workers: 3
  data_dir: ./GTAV
  data_list: ./gtav.txt
  data_dir_target: ./Cityscapes
  data_list_target: ./cityscapes.txt
  set: train
  input_size: '1280,720'
  input_size_target: '1024,512'
  input_size_crop: '500,400'
  input_size_target_crop: '400,300'
  input_size_test: '512,256'
  data_dir_target_val: ./Cityscapes/gtFine/train
  data_list_target_val: ./held.txt
  label_path_list_val: ./held_labels.txt
  data_dir_target_test: ./Cityscapes/gtFine/val
  data_list_target_test: ./test.txt
  label_path_list_test: ./test_labels.txt
  fc_dim: 2048
  lr_pow: 0.8
  lr_encoder: 1e-4
  lr_decoder: 1e-3
  decrease_lr: -1
  beta1: 0.7
  weight_decay: 1e-3
  lambda_seg: 0.3
  lambda_trade_off: 0.7
  conf_threshold: 0.6
  merge_1x1: False
  box_size: [4, 8, 16]
  lambda_pseudo: 0.5
  lambda_balance: 0.25
  lambda_eq: 0.125
  scale_min: 0.5
  scale_max: 1.5
  rotate_min: -10
  rotate_max: 10
  num_steps: 900
  save_pred_every: 90
  print_freq: 9
  snapshot_dir: ./snapshots
  num_classes: 19
  ignore_label: 255
  com_size: '2048,1024'
  syncbn: True
  lambda_soft_pseudo: 1.0
  decrease_lr: 700
"""


def read(folder: Path, script: str, text: str = OFFICIAL, overrides: tuple[str, ...] = ()):
    path = folder / "official.yaml"
    path.write_text(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = build_config(path, overrides, script=script)
    return config, [str(w.message) for w in caught]


def test_keys_that_every_script_reads(tmp_path):
    for script in ("train_source_only", "train_adabn", "train_pycda", "train_pycda_spatial"):
        c, _ = read(tmp_path, script)
        assert (c.exp_name, c.snapshot_dir) == ("theirs", "./snapshots")
        assert (c.model.encoder, c.model.decoder, c.model.use_aux) == ("resnet50_dilated8", "ppm_bilinear", True)
        assert (c.model.weights_encoder, c.model.weights_decoder) == ("./encoder.pth", None)
        assert (c.source.dataset, c.source.data_dir, c.source.data_list) == ("gtav", "./GTAV", "./gtav.txt")
        assert (c.source.input_size, c.target.input_size) == ((1280, 720), (1024, 512))
        assert (c.val.label_dir, c.val.data_list) == ("./Cityscapes/gtFine/train", "./held.txt")
        assert (c.test.label_dir, c.test.data_list) == ("./Cityscapes/gtFine/val", "./test.txt")
        assert (c.val.label_list, c.test.label_list) == ("./held_labels.txt", "./test_labels.txt")
        assert c.val.data_dir is c.test.data_dir is None  # the images are below the target's folder
        assert (c.train.iter_size, c.train.lambda_source) == (2, 0.7)
        assert (c.test.input_size, c.val.every) == ((512, 256), 90)
        assert (c.train.batch_size, c.train.num_steps, c.train.lr_encoder, c.train.lambda_seg) == (4, 900, 1e-4, 0.3)


def test_values_that_a_released_script_fixes_in_code_are_fixed_here(tmp_path):
    source, _ = read(tmp_path, "train_source_only")
    assert source.source.scale == (0.5, 1.5) and source.source.rotate == (-10, 10) and not source.source.flip
    assert (source.train.momentum, source.train.weight_decay, source.train.lr_pow) == (0.7, 1e-3, 0.8)
    adabn, _ = read(tmp_path, "train_adabn")
    assert adabn.source.scale == adabn.target.scale == (0.5, 1.5) and adabn.source.rotate is None and adabn.target.flip
    pycda, _ = read(tmp_path, "train_pycda")
    assert pycda.source.scale is None and pycda.target.crop_size == (400, 300) and not pycda.target.flip
    assert pycda.train.momentum == 0.9  # not the script's default of 0; the file's beta1 has no effect
    assert pycda.curriculum.box_size == (4, 8, 16) and pycda.curriculum.lambda_eq == 0
    assert (pycda.curriculum.lambda_pseudo, pycda.curriculum.conf_threshold) == (0.5, 0.6)
    spatial, _ = read(tmp_path, "train_pycda_spatial")
    assert spatial.target.crop_size is None and spatial.source.crop_size is None
    assert spatial.curriculum.lambda_eq == 0.125
    assert (spatial.train.schedule, spatial.train.decrease_lr) == ("drop", 700)  # the second line wins
    assert read(tmp_path, "train_pycda_spatial", OFFICIAL.replace("700", "-1"))[0].train.decrease_lr == 900


def test_released_conversion_takes_batches_steps_and_scale_of_the_training(tmp_path):
    a = read(tmp_path, "test_adabn")[0].adabn
    assert (a.mode, a.images, a.domains, a.scale) == ("ema", "crops", "target", (0.5, 1.5))
    assert (a.batch_size, a.num_steps, a.score_every) == (4, 900, 1000)


def test_keys_without_effect_are_listed_in_one_warning(tmp_path):
    _, (message,) = read(tmp_path, "train_pycda")
    assert "unused in the released code too: lambda_soft_pseudo, syncbn" in message
    assert "not read by the released train_pycda: beta1, decrease_lr, lambda_eq, rotate_max" in message
    assert "com_size (" in message and "num_gpus (run.sh" in message
    assert "given twice, the last value is used: decrease_lr" in message


def test_missing_keys_of_a_file_are_listed_with_the_used_values(tmp_path):
    text = OFFICIAL.replace("  merge_1x1: False\n", "").replace("  lambda_eq: 0.125\n", "")
    assert len(read(tmp_path, "train_pycda", OFFICIAL)[1]) == 1
    *_, message = read(tmp_path, "train_pycda_spatial", text)[1]
    assert "the released train_pycda_spatial needs" in message and "reads the prior from local.npy" in message
    lines = [line.strip() for line in message.splitlines()]
    assert lines[1:3] == ["merge_1x1: curriculum.merge_1x1=false", "lambda_eq: curriculum.lambda_eq=0.0"]
    *_, message = read(tmp_path, "train_pycda_spatial", text, ("curriculum.merge_1x1=true", "curriculum.lambda_eq=1"))[
        1
    ]
    assert "merge_1x1" not in message and "lambda_eq" not in message
    found = read(tmp_path, "train_pycda_spatial", OFFICIAL, ("curriculum.spatial_prior=local.npy",))[1]
    assert len(found) == 1 and "local.npy" not in found[0]
    *_, message = read(tmp_path, "train_adabn", OFFICIAL.replace("  scale_min: 0.5\n  scale_max: 1.5\n", ""))[1]
    assert "scale_min and scale_max: source.scale=null" in message
    assert len(read(tmp_path, "evaluate", text)[1]) == 1


@pytest.mark.parametrize("script", ["train_source_only", "train_adabn"])
def test_empty_weights_where_the_released_code_starts_from_imagenet(tmp_path, script):
    text = OFFICIAL.replace("weights_encoder: ./encoder.pth", "weights_encoder: ''")
    message = "model.weights_encoder to the file resnet50-imagenet.pth.*model.weights=scratch"
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, script, text)
    for key in ("model.weights=scratch", "model.weights_encoder=other.pth"):
        read(tmp_path, script, text, (key,))
    for other in ("train_pycda", "test_adabn", "evaluate"):
        read(tmp_path, other, text)


def test_own_keys_and_the_command_line_override(tmp_path):
    text = OFFICIAL + "train: {momentum: 0.5}\ntarget: {flip: true}\n"
    config, _ = read(tmp_path, "train_pycda", text, ("train.num_steps=7",))
    assert (config.train.momentum, config.target.flip, config.train.num_steps) == (0.5, True, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("common: {learning_rate: 1}", "learning_rate. Write our own keys outside common"),
        ("common: {ignore_label: 0}", "common.ignore_label is 0"),
        ("common: {input_size: '1024'}", "'source.input_size'"),
        ("common: {seed: 1}", "no released script has the keys: seed"),
    ],
)
def test_a_mistake_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, "train_pycda", text)


@pytest.mark.parametrize(
    ("text", "script", "message"),
    [
        ("common: {scale_max: 1.5}", "train_source_only", "common.scale_min and common.scale_max are one range"),
        ("common: {rotate_min: -10}", "train_source_only", "common.rotate_min and common.rotate_max are one range"),
        ("common: {decrease_lr: -1}", "train_pycda_spatial", "needs common.num_steps in the same file"),
    ],
)
def test_half_of_what_belongs_together_is_named(tmp_path, text, script, message):
    """Nor can a base give the other half: each file is translated alone."""
    whole = "common: {scale_min: 0.5, scale_max: 2, rotate_min: -1, rotate_max: 1, num_steps: 9}"
    (tmp_path / "base.yaml").write_text(whole)
    for inherits in ("", "base: base.yaml\n"):
        with pytest.raises(ConfigError, match=f"official.yaml: .*{message}"):
            read(tmp_path, script, inherits + text)


def test_every_official_key_is_in_one_group_only():
    groups = [set(RENAMED), set(DERIVED), set(ELSEWHERE), DEAD]
    assert sum(map(len, groups)) == len(set.union(*groups))
    for fixed, unread in SCRIPTS.values():
        assert unread <= {*RENAMED, *DERIVED}
        assert not set(fixed) & {RENAMED.get(name) for name in set(RENAMED) - unread}
