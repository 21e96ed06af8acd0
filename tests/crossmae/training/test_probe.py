"""Features and what they tell."""

from dataclasses import replace

import pytest
import torch
from pretraining import into, small

import crossmae
from crossmae.training.evaluation import baseline_accuracies, evaluation_loader, labelled
from crossmae.training.probe import LabelledFeatures, encoder_features, knn_accuracy, linear_accuracy
from crossmae.training.run import open_dataset, pretrain


def test_probes_tell_signal_from_noise():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    noise = torch.randn(300, 8, generator=generator)
    signal = noise + 6 * torch.nn.functional.one_hot(labels, 8)

    def parts(values):
        return LabelledFeatures(values[:200], labels[:200]), LabelledFeatures(values[200:], labels[200:])

    for accuracy in (knn_accuracy, linear_accuracy):
        assert accuracy(*parts(signal)) > 0.97
        assert accuracy(*parts(noise)) < 0.55


@pytest.mark.parametrize("class_tokens", [1, 3])
def test_features_do_not_depend_on_the_batch_and_leave_the_model_alone(class_tokens):
    recipe, images = open_dataset(small())
    model = crossmae.MaskedAutoencoder(replace(recipe.config(), class_tokens=class_tokens)).train()
    part = labelled(images, 14).training
    whole, parts = (encoder_features(model, evaluation_loader(part, size, 0)) for size in (14, 3))
    torch.testing.assert_close(whole.values, parts.values)
    assert torch.equal(whole.labels, parts.labels)
    assert whole.values.shape == (14, 96)
    assert not whole.values.requires_grad
    assert model.training
    raw = torch.stack([part[i].image for i in range(14)])
    expected = model.eval().encode(raw)[:, class_tokens:].mean(dim=1)
    torch.testing.assert_close(whole.values, expected)
    assert len(set(map(tuple, whole.values.tolist()))) == 14
    of_class = encoder_features(model, evaluation_loader(part, 14, 0), "class")
    torch.testing.assert_close(of_class.values, model.encode(raw)[:, :class_tokens].mean(dim=1))


def test_a_class_token_that_is_not_there_is_refused():
    model = crossmae.create_model("crossmae_vit_tiny_patch4", encoder_depth=1, class_tokens=0)
    with pytest.raises(ValueError, match="pooling must be 'average' or 'tokens' for a model without class token"):
        encoder_features(model, [], "class")


def test_baselines():
    recipe, images = open_dataset(small())
    levels = baseline_accuracies(images, recipe.config(), seed=0)
    assert 0.9 < levels["raw pixels"]["knn"] < 1
    assert 0.9 < levels["raw pixels"]["linear"] < 1
    assert 0.5 < levels["untrained encoder"]["knn"] < levels["raw pixels"]["knn"]
    again, same, other = (baseline_accuracies(images, recipe.config(), seed, probe_images=150) for seed in (0, 0, 1))
    assert again == same
    assert again != other


def test_images_without_labels_have_no_baselines(tmp_path):
    from PIL import Image

    for shade in range(3):
        Image.new("L", (40, 40), 80 * shade).save(tmp_path / f"{shade}.png")
    recipe, images = open_dataset(small(data=type(small().data)(source=str(tmp_path), workers=0), batch_size=2))
    with pytest.raises(ValueError, match="no labels"):
        baseline_accuracies(images, recipe.config(), seed=0)


def test_held_out_images_that_cannot_be_read_are_named(tmp_path):
    from PIL import Image

    for part, count in (("train", 8), ("val", 5)):
        for number in range(count):
            file = tmp_path / "images" / part / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (40, 40), 30 * number).save(file)
    torn = tmp_path / "images" / "val" / "b" / "3.png"
    torn.write_bytes(torn.read_bytes()[:60])
    recipe = small(steps=1, batch_size=4, data=type(small().data)(source=str(tmp_path / "images"), workers=0))
    pretrain(recipe, into(tmp_path / "run"))
    assert str(torn) in (tmp_path / "run" / "unreadable.txt").read_text()
