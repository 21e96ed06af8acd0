"""Detection runs: what they leave, go on from, judge and refuse."""

import json
import math
import re

import pytest
import torch
from detecting import EVALUATION, few_shapes, into, small, state, train
from PIL import Image
from safetensors.torch import load_file

import crossmae
from crossmae.commands.cli import main
from crossmae.detection.checkpoint import load_detector
from crossmae.detection.dataset import ObjectImages
from crossmae.detection.detector import Detector, HeadConfig
from crossmae.detection.plan import DetectionPlan, parameter_groups
from crossmae.detection.recipe import DetectionData, DetectionRecipe
from crossmae.detection.run import encoder_of, prepare
from crossmae.detection.shapes import shapes
from crossmae.model import MaskedAutoencoder, create_model
from crossmae.training.monitor import LOG, read_log


@pytest.fixture(autouse=True)
def _few_shapes(monkeypatch):
    few_shapes(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        few_shapes(monkeypatch)
        folder = tmp_path_factory.mktemp("finished")
        train(small(), into(folder))
    return folder


def test_a_run_leaves_a_detector_curves_and_pictures(finished):
    log = read_log(finished / LOG)
    assert [entry["step"] for entry in log if "loss" in entry] == [0, 1, 2, 3]
    [judged] = [entry for entry in log if "box AP" in entry]
    assert judged["step"] == 4
    assert {"box AP", "box AP50", "mask AP", "mask AP75"} < set(judged)
    [picture] = (finished / "pictures").glob("*.png")
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 3 * 320  # image, truth, found
        assert drawn.size[1] > EVALUATION * 320
    assert crossmae.load(finished).config.image_size == (64, 64)


def test_a_run_that_is_gone_on_with_is_the_same_bit_for_bit(finished, tmp_path):
    train(small(steps=2), into(tmp_path))
    train(small(), into(tmp_path))
    expected, found = state(finished), state(tmp_path)
    assert found.keys() == expected.keys()
    assert found.pop("losses") == expected.pop("losses")
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_the_detector_of_a_checkpoint_is_the_one_that_was_trained(finished, tmp_path, capsys):
    [judged] = [entry for entry in read_log(finished / LOG) if "box AP" in entry]
    assert main(["detect", "--evaluate", str(finished), "--out", str(tmp_path / "judged")]) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    assert {name: metrics[name] for name in judged if name != "step"} == {
        n: v for n, v in judged.items() if n != "step"
    }
    assert re.search(r"\| AP of triangle +\| +\d", printed)
    found = json.loads((tmp_path / "judged" / "detections.json").read_text())
    assert {one["category_id"] for one in found} <= {1, 3, 7}
    assert all(one["segmentation"]["size"] == [64, 64] for one in found)
    assert (tmp_path / "judged" / "detections.png").read_bytes().startswith(b"\x89PNG")
    newest = finished / "checkpoints" / "step-00000004"
    again = load_detector(newest)
    for name, tensor in {**load_file(newest / "head.safetensors")}.items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not again.training


def test_detections_lie_in_the_image_as_it_is_whatever_its_size(finished):
    detector = load_detector(finished).train()
    for height, width in ((64, 64), (30, 90), (200, 40)):
        [found] = detector.detect([torch.randint(0, 256, (3, height, width), dtype=torch.uint8)])
        assert found["masks"].shape[2:] == (height, width)
        boxes = found["boxes"]
        assert len(boxes) > 0
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        assert set(found["labels"].tolist()) <= {1, 2, 3}
    assert detector.training


def test_padding_is_the_mean_and_images_are_normalised():
    _, config = encoder_of(small())
    detector = Detector(MaskedAutoencoder(config), HeadConfig(((1, "a"),), width=8)).train()
    batch, _ = detector.rcnn.transform([torch.ones(3, 20, 30), torch.zeros(3, 64, 64)])
    assert batch.tensors.shape == (2, 3, 64, 64)
    mean, std = torch.tensor(config.pixel_mean)[:, None, None], torch.tensor(config.pixel_std)[:, None, None]
    torch.testing.assert_close(batch.tensors[0, :, :20, :30], ((1 - mean) / std).expand(-1, 20, 30))
    assert batch.tensors[0, :, 20:].abs().max() == batch.tensors[0, :, :, 30:].abs().max() == 0
    torch.testing.assert_close(batch.tensors[1], (-mean / std).expand(-1, 64, 64))


@pytest.fixture
def pretrained(tmp_path):
    torch.manual_seed(3)
    model = create_model(
        "crossmae_vit_tiny_patch4", 64, **small().model_options, pixel_mean=(0.1, 0.2, 0.3), pixel_std=(1, 2, 3)
    )
    crossmae.save(model, tmp_path / "encoder.safetensors")
    return model


def test_a_pretrained_encoder_is_where_a_run_starts(pretrained, tmp_path):
    recipe = small(checkpoint=str(tmp_path / "encoder.safetensors"), model=None, model_options={}, steps=1)
    train(recipe, into(tmp_path / "run", keep_last=9))
    first = load_file(tmp_path / "run" / "checkpoints" / "step-00000000" / "model.safetensors")
    last = state(tmp_path / "run")
    theirs = pretrained.encoder.state_dict()
    theirs |= {"positions": theirs["positions"][:, 1:], "cls_token": torch.empty(1, 0, 32)}
    assert {f"encoder.{name}" for name in theirs} == set(first)
    for name, tensor in theirs.items():
        assert torch.equal(first[f"encoder.{name}"], tensor), name
    assert not torch.equal(last["encoder.patch_embed.weight"], first["encoder.patch_embed.weight"])
    config = load_detector(tmp_path / "run").model.config
    assert config.pixel_mean == (0.1, 0.2, 0.3)
    assert config.drop_path == 0.2


def test_a_checkpoint_of_another_encoder_is_refused_by_name(pretrained, tmp_path, capsys):
    words = ["detect", "--recipe", "shapes_trial", "--checkpoint", str(tmp_path / "encoder.safetensors"), "--dry-run"]
    assert main([*words, "--model_options", "{}"]) == 1
    message = capsys.readouterr().err
    assert "encoder.safetensors is no crossmae_vit_tiny_patch4: it has encoder_width 32 and not 96" in message
    assert message.count("\n") == 1


def test_what_cannot_be_is_refused_before_work_starts(tmp_path, finished):
    bad = {
        "checkpoint must be one that": {"checkpoint": None},
        "starting from scratch needs": {"model": None},
        "drop_path must lie in": {"drop_path": 1.0},
        "layer_decay must lie in": {"layer_decay": 0.0},
        "precision auto measures pretraining": {"precision": "auto"},
        "execution must be eager": {"execution": "compile"},
        "window must be positive, got 0": {"window": 0},
        "a multiple of two patches": {"image_size": 72},
        r"data\.train must name": {"data": DetectionData()},
        "there is no annotation file": {"data": DetectionData(train="no.json")},
        "batch_size must be at most": {"batch_size": 64},
    }
    for message, changes in bad.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            prepare(small(**changes), into(tmp_path / "new"))
    with pytest.raises(ValueError, match=r"no option fly; choose from .*box_batch_size_per_image"):
        prepare(small(detector_options={"fly": 3}), into(tmp_path / "new", dry_run=True))
    with pytest.raises(ValueError, match="fsdp"):
        prepare(small(), into(tmp_path / "new", strategy="fsdp"))
    with pytest.raises(FileNotFoundError, match="resume=nowhere is not a checkpoint of a run"):
        prepare(small(), into(tmp_path / "new", resume="nowhere", dry_run=True))
    with pytest.raises(ValueError, match="scale must be a range"):
        DetectionData(scale=(0.0, 1.0))
    with pytest.raises(ValueError, match=f"{finished} holds a run with other settings: width 8, here 16"):
        prepare(small(width=16), into(finished))
    with pytest.raises(FileNotFoundError, match="holds no detector"):
        load_detector(tmp_path)
    assert not (tmp_path / "new").exists()


def test_categories_that_the_detector_lacks_are_refused(finished, tmp_path, capsys):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
        "annotations": [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 4, 4], "segmentation": [[0, 0, 4, 0, 4, 4]]}],
        "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "cube"}],
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    words = [
        "detect",
        "--evaluate",
        str(finished),
        "--data.evaluation",
        str(tmp_path / "val.json"),
        "--out",
        str(tmp_path),
    ]
    assert main(words) == 1
    assert (
        "categories that the detector lacks: cube (2); it has disc (1), square (3), triangle (7)"
        in capsys.readouterr().err
    )


def test_layers_learn_slower_the_earlier_they_are():
    recipe = small(layer_decay=0.5, weight_decay=0.1)
    _, config = encoder_of(recipe)
    detector = Detector(MaskedAutoencoder(config), HeadConfig(((1, "a"),), width=8))
    plan = DetectionPlan(recipe, config, images=32, devices=1)
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(detector, plan)
        for parameter in group["params"]
    }
    assert set(found) == set(names.values()) - {"model.encoder.cls_token"}
    assert found["model.encoder.patch_embed.weight"] == (0.5**6, 0.1)
    assert found["model.encoder.patch_embed.bias"] == (0.5**6, 0.0)
    assert found["model.encoder.blocks.0.attn.qkv.weight"] == (0.5**5, 0.1)
    assert found["model.encoder.blocks.4.norm2.weight"] == (0.5, 0.0)
    assert found["rcnn.backbone.pyramid.scales.1.weight"] == (1.0, 0.1)
    assert found["rcnn.roi_heads.box_predictor.cls_score.weight"] == (1.0, 0.1)


def test_the_learning_rate_is_vitdets():
    """Its release: 1e-4 for 64 images, 250 of 184,375 steps of warm-up, a tenth from step 163,889 on, then 177,546."""
    recipe = DetectionRecipe(model="crossmae_vit_base_patch16", steps=184_375)
    plan = DetectionPlan(recipe, encoder_of(recipe)[1], images=118_000, devices=1)
    assert plan.warmup_steps == 250
    expected = {0: 1e-4 / 250, 249: 1e-4, 250: 1e-4, 163_888: 1e-4, 163_889: 1e-5, 177_545: 1e-5, 177_546: 1e-6}
    for step, rate in expected.items():
        assert math.isclose(plan.learning_rate(step), rate), step


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (
            "vitdet_base",
            ["64 x 64 of 16 px", "14 x 14", "2, 5, 8, 11", "183,200 = 100 epochs", "0.0001 at its peak", "0.7;"],
        ),
        ("vitdet_large", ["5, 11, 17, 23", "0.8;"]),
        ("vitdet_huge", ["64 x 64 of 16 px", "7, 15, 23, 31", "75 epochs", "0.9;"]),
        ("shapes_trial", ["32 images", "to evaluate on: 4 images", "ids 1 to 7"]),
    ],
)
def test_a_dry_run_tells_the_plan(recipe, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["detect", "--recipe", recipe, "--dry-run", *(["--steps", "4"] if recipe == "shapes_trial" else [])]) == 0
    )
    text = capsys.readouterr().out
    for words in told:
        assert words in text
    assert not list(tmp_path.iterdir())


def test_targets_of_a_sample_are_what_the_network_is_asked_for():
    """Its losses fall when it is shown one image again and again: boxes, labels and masks fit each other."""
    annotations, read = shapes("train", 1)
    sample = ObjectImages(annotations, read)[0]
    _, config = encoder_of(small(drop_path=0.0))
    torch.manual_seed(0)
    detector = Detector(
        MaskedAutoencoder(config), HeadConfig(annotations.categories, width=16, options=small().detector_options)
    ).train()
    optimizer = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(25):
        loss = detector([sample.image], [sample.target])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)
