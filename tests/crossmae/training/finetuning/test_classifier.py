"""The classifier against timm's, and which learning rate goes to which parameter."""

import pytest
import torch
from finetuning import tuned
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay

import crossmae
from crossmae.training.finetuning.classifier import Classifier, encoder_alone, parameter_groups, starting_point

DEPTH, CLASSES = 3, 5
NAMES = {
    "model.encoder.patch_embed.weight": "patch_embed.proj.weight",
    "model.encoder.patch_embed.bias": "patch_embed.proj.bias",
    "norm.": "fc_norm.",
    "model.encoder.": "",
}


def name_in_timm(name):
    start = next((start for start in NAMES if name.startswith(start)), "")
    return NAMES.get(start, "") + name[len(start) :]


def twins(family):
    """A classifier with random weights everywhere, and timm's with the same."""
    options = {"encoder_depth": DEPTH, "encoder_width": 24, "encoder_heads": 3, "decoder_depth": 1}
    model = crossmae.create_model(f"{family}_vit_tiny_patch4", **options)
    torch.nn.init.normal_(model.encoder.positions)  # as a checkpoint's may be
    if family == "mae":
        torch.nn.init.normal_(model.encoder.norm.weight)  # which must have no say
    ours = Classifier(encoder_alone(model), "abcde").double()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = VisionTransformer(32, 4, embed_dim=24, depth=DEPTH, num_heads=3, num_classes=CLASSES, global_pool="avg")
    for block in theirs.blocks:
        block.norm1.eps = block.norm2.eps = 1e-6
    theirs.fc_norm.eps = 1e-6
    state = {name_in_timm(name): tensor for name, tensor in ours.state_dict().items()}
    state["pos_embed"] = state.pop("positions")
    theirs.double().load_state_dict(state)
    return ours, theirs


@pytest.mark.parametrize("family", ["crossmae", "mae"])
def test_logits_and_gradients_are_those_of_timms(family):
    ours, theirs = twins(family)
    class_position = ours.model.encoder.positions[:, 0]
    assert bool(class_position.any()) == (family == "mae")  # CrossMAE's class token has none
    images, targets = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.rand(4, CLASSES, dtype=torch.float64)
    targets /= targets.sum(dim=1, keepdim=True)
    expected = theirs(images)
    torch.testing.assert_close(ours(images), expected)
    loss = ours(images, targets)
    of_timm = -(targets * expected.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(loss, of_timm)
    loss.backward()
    of_timm.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name_in_timm(name)], msg=name)


def test_an_encoder_alone_is_a_crossmaes_encoder():
    model = crossmae.create_model("crossmae_vit_tiny_patch4", encoder_depth=2).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(encoder_alone(model).eval().encode(images), model.encode(images))


OTHERS = {"class_tokens": 3, "no_embed_class": False, "pos_embed": "learn", "last_mix_norm": False}


@pytest.mark.parametrize("others", [OTHERS, {**OTHERS, "final_norm": True}, {**OTHERS, "no_embed_class": None}])
def test_class_tokens_positions_and_norms_of_other_models(others):
    model = crossmae.create_model("crossmae_vit_tiny_patch4", encoder_depth=2, **others).eval()
    classifier, images = Classifier(encoder_alone(model), "abc").eval(), torch.randn(2, 3, 32, 32)
    tokens = classifier.model.encode(images)
    assert torch.equal(model.encoder.norm(tokens), model.encode(images))
    assert torch.equal(classifier(images), classifier.head(classifier.norm(tokens[:, 3:].mean(dim=1))))
    (group,) = [
        group
        for group in parameter_groups(classifier, 0.05, 0.5)
        if any(p is classifier.model.encoder.positions for p in group["params"])
    ]
    assert (group["lr_scale"], group["weight_decay"]) == (0.5**3, 0.0)


def test_layers_learn_the_slower_the_deeper_they_lie_and_as_in_timm():
    ours, theirs = twins("crossmae")
    scales, decays = {}, {}
    names = {id(p): name for name, p in ours.named_parameters()}
    for group in parameter_groups(ours, 0.05, 0.65):
        for p in group["params"]:
            scales[names[id(p)]], decays[names[id(p)]] = group["lr_scale"], group["weight_decay"]
    assert scales.keys() == set(names.values())
    for name, scale in scales.items():
        # MAE's formula: layer 0 is the embedding, block i is layer i + 1, norm and head are the last.
        layer = 0 if "patch_embed" in name or "cls_token" in name else DEPTH + 1
        if ".blocks." in name:
            layer = int(name.split(".blocks.")[1].split(".")[0]) + 1
        assert scale == 0.65 ** (DEPTH + 1 - layer), name
        assert decays[name] == (0.0 if name.endswith("bias") or "norm" in name or "cls_token" in name else 0.05), name
    names = {id(p): name for name, p in theirs.named_parameters()}
    groups = param_groups_layer_decay(theirs, 0.05, no_weight_decay_list=["cls_token", "pos_embed"], layer_decay=0.65)
    of_timm = {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert {name_in_timm(name): (scale, decays[name]) for name, scale in scales.items()} == {
        name: found for name, found in of_timm.items() if name != "pos_embed"
    }


def test_a_checkpoint_of_another_width_is_refused(tmp_path):
    crossmae.save(crossmae.create_model("mae_vit_tiny_patch4", encoder_width=24, encoder_depth=2), tmp_path / "m")
    recipe = {"checkpoint": str(tmp_path / "m"), "model_options": {}}
    with pytest.raises(ValueError, match=r"m is no .*: it has encoder_width 24 and not 96, encoder_depth 2 and not 4;"):
        starting_point(tuned(**recipe))
    assert starting_point(tuned(**recipe, model=None)).config.encoder_width == 24
    with pytest.raises(ValueError, match="no checkpoint given"):
        starting_point(tuned(checkpoint=None))


def test_another_resolution_interpolates_positions(tmp_path):
    model = crossmae.create_model("crossmae_vit_tiny_patch4", encoder_depth=1)
    crossmae.save(model, tmp_path / "m.safetensors")
    larger = starting_point(
        tuned(checkpoint=str(tmp_path / "m.safetensors"), model=None, model_options={}, image_size=64)
    )
    assert larger.config.image_size == (64, 64)
    expected = crossmae.load(tmp_path / "m.safetensors", image_size=64).encoder.positions
    assert torch.equal(larger.encoder.positions, expected)
    assert Classifier(larger, "ab")(torch.randn(2, 3, 64, 64)).shape == (2, 2)
