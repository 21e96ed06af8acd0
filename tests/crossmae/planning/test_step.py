"""Parts of a predicted step, where they are known otherwise: products, parameters, launches."""

import json

import pytest
from uninterpreted import run

from crossmae.flops import decoder_macs, executed_decoder_macs
from crossmae.model.config import named_config

# Kernels are taken to last a microsecond each, but for one that cannot be predicted.
PROGRAM = """
import json

from crossmae.model import create_model
from crossmae.model.config import named_config
from crossmae.planning import step
from crossmae_kernels.audit.devices import DEVICES

asked = []


def report(case):
    asked.append(case.launch)
    known = {"microseconds": 1.0, "limiter": "latency", "moved": 1}
    return {"kernel": case.launch.name, **({} if case.launch.name == "mixing_forward_kernel" else known)}


step.reports = lambda cases, processes: map(report, cases)


def predicted(name, formulation, **overrides):
    parts = step.predict_step(named_config(name, **overrides), DEVICES["h100"], 16, formulation=formulation)
    return [
        {
            "stage": part.stage, "operation": part.operation, "flops": part.flops, "bytes": part.bytes,
            "microseconds": part.microseconds, "low": part.low, "high": part.high,
            "kernels": {kernel.name: [kernel.method, kernel.calls] for kernel in part.kernels},
        }
        for part in parts
    ]


found = {
    f"{decoder} {formulation}": predicted(f"{decoder}_vit_tiny_patch4", formulation)
    for decoder in ("crossmae", "mae") for formulation in ("ours", "reference")
}
for depth in (2, 3):
    found[f"depth {depth}"] = predicted("crossmae_vit_tiny_patch4", "ours", decoder_depth=depth)
asked.clear()
raw = {"pixel_mean": (0.5,) * 3, "pixel_std": (0.5,) * 3}
predicted("crossmae_vit_tiny_patch4", "ours", **raw)
found["types of images"] = [launch.signature["images"] for launch in asked if "images" in launch.signature]
found["asked twice"] = len(asked) - len({repr(launch) for launch in asked})
found["parameters"] = sum(p.numel() for p in create_model("crossmae_vit_tiny_patch4").parameters())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    file = tmp_path_factory.mktemp("step") / "program.py"
    file.write_text(PROGRAM)
    return json.loads(run(file))


def of(parts, stage):
    return [part for part in parts if part["stage"] == stage]


def flops(parts, stage):
    return sum(part["flops"] for part in of(parts, stage))


def test_stages_multiply_what_closed_forms_say(found):
    """Twice as much backward as forward, less what needs no gradient: the images, and positions as queries."""
    crossmae, mae = (named_config(f"{name}_vit_tiny_patch4") for name in ("crossmae", "mae"))
    assert flops(found["crossmae ours"], "decoder") == 2 * executed_decoder_macs(crossmae, 16)
    assert flops(found["mae ours"], "decoder") == 16 * 2 * decoder_macs(mae)
    for decoder in ("crossmae", "mae"):
        ours, reference = found[f"{decoder} ours"], found[f"{decoder} reference"]
        assert flops(ours, "encoder") == flops(reference, "encoder")
        assert flops(ours, "decoder") == flops(reference, "decoder")
        assert flops(ours, "decoder backward") == pytest.approx(2 * flops(ours, "decoder"), rel=0.01)


def test_the_optimizer_reads_four_numbers_of_each_parameter_and_writes_three(found):
    (part,) = of(found["crossmae ours"], "optimizer")
    assert part["bytes"] == 7 * 4 * found["parameters"]


def test_stages_come_in_order_and_intervals_hold_their_times(found):
    for name in ("crossmae ours", "mae reference"):
        stages = list(dict.fromkeys(part["stage"] for part in found[name]))
        assert stages == ["encoder", "decoder", "loss", "decoder backward", "encoder backward", "optimizer"]
        for part in found[name]:
            assert part["low"] * 1.46 == pytest.approx(part["microseconds"])
            assert part["high"] / 1.46 == pytest.approx(part["microseconds"])


def test_a_block_of_the_decoder_launches_what_it_launches_in_the_interpreter(found):
    """As ``model/test_kernels.py`` counts it there, in other forms of the operations."""

    def launched(name):
        counts = {}
        for part in of(found[name], "decoder"):
            for kernel, (method, calls) in part["kernels"].items():
                if method == "machine code":
                    counts[kernel] = counts.get(kernel, 0) + calls
        return counts

    two, three = launched("depth 2"), launched("depth 3")
    assert three["short_forward_kernel"] - two["short_forward_kernel"] == 1
    assert three["short_forward_kernel"] == 3


def test_the_reference_launches_no_kernel_of_ours(found):
    for part in found["crossmae reference"]:
        assert {method for method, _ in part["kernels"].values()} == {"ceilings"}


def test_what_cannot_be_predicted_counts_by_its_definition(found):
    (mixing,) = (part for part in found["crossmae ours"] if part["operation"] == "mix_feature_maps")
    assert mixing["kernels"] == {"mix_feature_maps": ["ceilings", 1]}
    assert mixing["microseconds"] > 3


def test_images_of_a_model_that_normalises_them_are_read_as_bytes(found):
    assert found["types of images"] == ["*u8"] * 2  # patches are gathered, and compared


def test_no_launch_is_predicted_twice(found):
    assert found["asked twice"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch must be positive, got 0"),
        ({"dtype": "float64"}, "dtype must be one of torch.bfloat16, torch.float16, torch.float32, got torch.float64"),
        ({"decoder": None}, "the model is only an encoder"),
    ],
)
def test_nonsense_is_refused(change, message):
    import dataclasses

    import torch

    from crossmae.planning.step import predict_step
    from crossmae_kernels.audit.devices import DEVICES

    config = named_config("crossmae_vit_tiny_patch4")
    if "decoder" in change:
        config = dataclasses.replace(config, decoder=None)
    dtype = getattr(torch, change.get("dtype", "bfloat16"))
    with pytest.raises(ValueError, match=message):
        predict_step(config, DEVICES["h100"], change.get("batch", 8), dtype)
