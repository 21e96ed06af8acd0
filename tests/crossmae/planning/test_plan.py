"""``crossmae plan``: arithmetic on a step that is given, memory, refusals, and the words around it."""

import json
import re
from dataclasses import fields

import pytest
from uninterpreted import run

from crossmae.commands.cli import main
from crossmae.planning import cost
from crossmae.planning.fleet import Fleet
from crossmae.planning.hosts import HOSTS
from crossmae.planning.report import time
from crossmae.planning.step import STAGES, Kernel, Part
from crossmae.training.recipe import Recipe, RunOptions
from crossmae_kernels.audit.devices import DEVICES

GIB = 2**30
# Milliseconds of each stage for 64 images.
TIMES = {"encoder": 2, "decoder": 1, "loss": 0.5, "decoder backward": 3, "encoder backward": 4, "optimizer": 1}
KEPT = 20 * 2**20


@pytest.fixture(autouse=True)
def _a_step_that_is_given(monkeypatch):
    """In proportion to the images; what is kept too, and a model has 100 million parameters."""

    def predict_step(config, device, batch, *_, **__):
        scale = {stage: 1 if stage == "optimizer" else batch / 64 for stage in STAGES}
        return [part(stage, 1e3 * TIMES[stage] * scale[stage]) for stage in STAGES]

    monkeypatch.setattr(cost, "predict_step", predict_step)
    monkeypatch.setattr(cost, "memory_of_pretraining", lambda plan, limits: (10**8, KEPT * plan.micro_batch))


def part(stage, microseconds, method="machine code"):
    return Part(stage, "mlp", True, 10, 0, (Kernel("gemm_kernel", method, 20, microseconds, "DRAM", 0),))


def plan(capsys, *words):
    assert main(["plan", *words]) == 0
    return capsys.readouterr().out


def numbers(capsys, *words):
    return json.loads(plan(capsys, "--json", *words))


ONE = ("--gpus", "1", "--batch-size", "256", "--micro-batch", "64")


def test_times_of_step_epoch_and_run(capsys):
    """Four micro-batches of 10.5 ms and an optimizer of 1 ms; 3,906 steps in each of ten epochs of a million images."""
    found = numbers(capsys, *ONE, "--images", "1e6", "--epochs", "10")["crossmae_vit_base_patch16"]
    step = 4 * 0.0105 + 0.001
    assert found["steps"] == 39_060
    assert found["seconds"]["step"]["predicted"] == pytest.approx(step)
    assert found["seconds"]["epoch"]["predicted"] == pytest.approx(3_906 * step)
    assert found["seconds"]["run"]["predicted"] == pytest.approx(39_060 * step)
    assert found["gpu_hours"] == pytest.approx(39_060 * step / 3600)
    assert found["images_per_second"] == pytest.approx(256 / step)
    assert found["seconds"]["run"]["interval"] == pytest.approx([39_060 * step / 1.46, 39_060 * step * 1.46])


@pytest.mark.parametrize(("own", "other", "sign"), [("save", "recompute", 1), ("recompute", "save", -1)])
def test_what_the_other_choice_for_hidden_layers_adds(capsys, monkeypatch, own, other, sign):
    """Recomputing them takes 2 ms of a micro-batch's 10.5 more, of four, and spares half of 1.25 GiB kept."""

    def predict_step(config, *_, **__):
        again = 2 if config.hidden_layer == "recompute" else 0
        return [part(stage, 1e3 * (TIMES[stage] + again * (stage == "encoder backward"))) for stage in STAGES]

    def memory(plan, limits):
        return 10**8, KEPT * plan.micro_batch // (1 + (plan.config.hidden_layer == "recompute"))

    monkeypatch.setattr(cost, "predict_step", predict_step)
    monkeypatch.setattr(cost, "memory_of_pretraining", memory)
    words = (*ONE, "--model_options.hidden_layer", own)
    added = f"{own}; {other} {'+' if sign > 0 else '-'}8 ms, {-0.625 * sign:+.1f} GiB"
    assert re.search(rf"hidden layers, per step +{re.escape(added)}  ", plan(capsys, *words))
    found = numbers(capsys, *words)["crossmae_vit_base_patch16"]
    assert found["otherwise"] == {
        "hidden_layer": other,
        "seconds_of_a_micro_batch": pytest.approx(sum(found["seconds_of_a_micro_batch"].values()) + sign * 0.002),
        "kept": (64 * KEPT // 2) if own == "save" else 64 * KEPT,
    }


def test_many_gpus_share_the_batch_and_pay_for_what_is_sent(capsys):
    found = numbers(capsys, "--gpus", "64", "--batch-size", "4096")["crossmae_vit_base_patch16"]
    sent = found["exchange"]["ddp"]
    assert (found["hosts"], found["micro_batch"], found["micro_batches"]) == (8, 64, 1)
    assert 0 < sent["exposed"] < sent["total"]
    assert found["seconds"]["step"]["predicted"] == pytest.approx(0.0115 + sent["exposed"])
    assert found["gpu_hours"] == pytest.approx(64 * found["seconds"]["run"]["predicted"] / 3600)
    slow = numbers(capsys, "--gpus", "64", "--network", "1")["crossmae_vit_base_patch16"]["exchange"]
    assert slow["ddp"]["total"] > 5 * sent["total"]


def test_a_sharded_optimizer_works_on_its_share(capsys):
    words = ("--gpus", "8", "--batch-size", "512", "--strategy", "fsdp")
    found = numbers(capsys, *words)["crossmae_vit_base_patch16"]
    assert found["seconds_of_the_optimizer"] == pytest.approx(0.001 / 8)
    exposed = found["exchange"]["fsdp"]["exposed"]
    assert found["seconds"]["step"]["predicted"] == pytest.approx(0.0105 + 0.001 / 8 + exposed)


def test_memory(capsys):
    memory = numbers(capsys, "--gpus", "8", "--batch-size", "512")["crossmae_vit_base_patch16"]["memory"]
    assert memory["ddp"]["state"] == 16e8
    assert memory["ddp"]["kept"] == 64 * KEPT
    assert memory["ddp"]["total"] == pytest.approx(16e8 + 1.1 * 64 * KEPT + 1.5 * GIB)
    # The decoder, which is sharded as one, is whole: matrices of 12 blocks, and little around them.
    decoder = 12 * (10 * 512**2 + 2 * 768 * 512)
    whole = (memory["fsdp"]["state"] - 2e8) / 12
    assert 1.0 < whole / decoder < 1.05


def test_mfu_is_of_the_datasheet_s_rate(capsys):
    """ViT-B: 4.294 GMAC in the encoder, 2.069 in the decoder; an H100 has 989 TFLOP/s."""
    found = numbers(capsys, *ONE)["crossmae_vit_base_patch16"]
    flops = 6 * (50 * 768 * 12 * 768 * 12 + 2 * 50**2 * 768 * 12 + 49 * 768 * 768 + 2.0686e9)
    assert found["mfu"] == pytest.approx(flops * found["images_per_second"] / 989e12, rel=0.01)


def test_the_other_decoder_stands_beside_it(capsys):
    text = plan(capsys, "--recipe", "vit_base+gamma75", "--gpus", "8")
    assert re.search(r"crossmae_vit_base_patch16 +mae_vit_base_patch16", text)
    assert re.search(r"prediction ratio +0.75 of 0.75 masked +0.75 of 0.75 masked", text)
    options = {"decoder_depth": 3, "decoder_self_attention": True, "residual": "autocast"}
    other = cost.counterpart(Recipe(model_options=options, prediction_ratio=0.5))
    assert (other.model, other.model_options) == ("mae_vit_base_patch16", {"residual": "autocast"})
    assert cost.counterpart(other).model == "crossmae_vit_base_patch16"


def test_a_recipe_of_a_run_is_planned_without_what_leaves_its_cost_as_it_is(capsys, tmp_path):
    """cpu_trial says how often it saves; the file says all that a run may."""
    words = ["--recipe", "cpu_trial", "--gpus", "1"]
    assert main(["plan", *words]) == 1
    assert capsys.readouterr().err.endswith("give the number of those in digits with --images\n")
    found = numbers(capsys, *words, "--images", "1437")["crossmae_vit_tiny_patch4"]
    assert (found["steps"], found["batch_size"], found["images"]) == (600, 128, 1_437)
    assert found["seconds"]["run"]["predicted"] == pytest.approx(600 * (2 * 0.0105 + 0.001))
    run = {"out": "elsewhere", "resume": "never", "devices": 2, "dry_run": True, "strict": True, "log_every": 5,
           "save_every": 3, "keep_last": 1, "keep_every": 6, "pictures_every": 2, "probe_every": 2,
           "probe_images": 9, "strategy": "auto"}  # fmt: skip
    assert {*run} == {field.name for field in fields(RunOptions)}
    settings = {"batch_size": 512, "epochs": 3, "data": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    (tmp_path / "run.yaml").write_text(json.dumps(settings | run))
    (tmp_path / "plan.yaml").write_text(json.dumps(settings))
    costs = [numbers(capsys, "--recipe", str(tmp_path / name)) for name in ("run.yaml", "plan.yaml")]
    assert costs[0] == costs[1]
    (tmp_path / "fsdp.yaml").write_text("strategy: fsdp")
    assert numbers(capsys, "--recipe", str(tmp_path / "fsdp.yaml"))["mae_vit_base_patch16"]["strategy"] == "fsdp"
    (tmp_path / "wrong.yaml").write_text("save_ever: 3")
    with pytest.raises(SystemExit):
        main(["plan", "--recipe", str(tmp_path / "wrong.yaml")])
    assert "does not accept option 'save_ever'" in capsys.readouterr().err


def test_a_gpu_may_be_in_capitals(capsys):
    assert numbers(capsys, *ONE, "--device", "H100")["mae_vit_base_patch16"]["device"] == "h100"


def test_short_runs_and_long_ones_are_written_out(capsys):
    """A hundred steps of 43 ms; 4,000 epochs of 100 million images, 256 at a time."""
    assert re.search(r"GPU-hours +0\.00119 \(0\.000818 to 0\.00174\)", plan(capsys, *ONE, "--steps", "100"))
    text = plan(capsys, *ONE, "--images", "1e8", "--epochs", "4000")
    assert re.search(r"run +778 d \(533 to 1,135 d\)", text)
    assert re.search(r"GPU-hours +18,663 \(", text)
    assert [time(seconds) for seconds in (0.9996, 0.99949)] == ["1,000 ms", "999 ms"]


def test_what_is_taken_for_granted_is_said(capsys):
    text = plan(capsys, "--gpus", "64", "--device", "a100")
    for words in (
        "predicted, not measured", "intervals go from -32% to +46%", "machine code", "CUDA graph",
        "300 GB/s each way inside a host, 25 GB/s to other hosts for each GPU", "images are loaded in time", "79.2 GiB",
    ):  # fmt: skip
        assert words in text
    assert "eager Python needs" not in text


def test_waiting_for_python_is_said(capsys):
    """60 operators take it 0.6 ms; an image takes the GPU a sixth of that."""
    text = plan(capsys, "--gpus", "8", "--batch-size", "8")
    assert "eager Python needs about 0.6 ms to issue a micro-batch's operators, longer than the GPU's 0.164 ms" in text


def test_times_without_machine_code_are_said_to_be_at_best(capsys, monkeypatch):
    parts = [part(stage, 1e3 * TIMES[stage], "ceilings") for stage in STAGES]
    monkeypatch.setattr(cost, "predict_step", lambda *_, **__: parts)
    assert "no kernel could be predicted from machine code" in plan(capsys, *ONE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "fleet: gpus must be positive, got 0"),
        (["--device", "h1000"], "fleet: device must be one of a100, a100_40g, .*h200, .*, got 'h1000'"),
        (["--gpus", "12"], r"fleet: gpus must fill hosts of 8 \(gpus_per_host\), got 12"),
        (["--network", "0"], "fleet: network must be positive, in GB/s, got 0.0"),
        (["--images", "0.5"], "images must be a whole number, at least one, got 0.5"),
        (["--images", "1000"], "batch_size must be at most the number of images 1000, got 4096"),
        (["--gpus", "64", "--batch-size", "100"], "batch_size must be a multiple of the number of devices 64, got 100"),
        (["--model", "vit_b"], "there is no model 'vit_b'; .*"),
        (
            ["--precision", "float64"],
            "precision float64 cannot be predicted; choose bfloat16, float16 or float32",
        ),
        (["--strategy", "fsdp", "--precision", "float16"], "float16 cannot be sharded .*"),
        (
            ["--data.source", "pictures"],
            "a plan opens no images; give the number of those in pictures with --images",
        ),
        (
            ["--gpus", "1", "--batch-size", "4096"],
            "4,096 images at a time need 91.0 GiB of h100's 79.2; --micro-batch 2048 fits",
        ),
    ],
)
def test_nonsense_is_refused_in_one_line_before_work(capsys, monkeypatch, words, message):
    monkeypatch.setattr(cost, "predict_step", None)
    assert main(["plan", *words]) == 1
    printed = capsys.readouterr()
    assert re.fullmatch(f"crossmae plan: {message}\n", printed.err)
    assert printed.out == ""


def test_a_model_that_never_fits_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(cost, "memory_of_pretraining", lambda plan, limits: (10**10, KEPT * plan.micro_batch))
    assert main(["plan", "--gpus", "8"]) == 1
    assert re.search(r"need 161.5 GiB of h100's 79.2, and even a single image does not fit\n", capsys.readouterr().err)


def test_the_counterpart_takes_fewer_images_where_it_must(capsys, monkeypatch):
    """MAE's decoder is taken to keep eight times as much."""

    def memory(plan, limits):
        return 10**8, (8 if plan.config.decoder == "mae" else 1) * KEPT * plan.micro_batch

    monkeypatch.setattr(cost, "memory_of_pretraining", memory)
    found = numbers(capsys, "--gpus", "1", "--batch-size", "1024")
    assert [found[name]["micro_batch"] for name in found] == [1024, 256]


@pytest.mark.slow
def test_from_kernels_to_hours():
    """The command as it is typed, with a compiler: a minute or so."""
    words = ["--model", "crossmae_vit_tiny_patch4", "--images", "1e4", "--batch-size", "64", "--gpus", "2"]
    found = json.loads(run("-m", "crossmae", "plan", "--device", "l4", "--json", *words))
    assert found.keys() == {"crossmae_vit_tiny_patch4", "mae_vit_tiny_patch4"}
    for one in found.values():
        low, high = one["seconds"]["step"]["interval"]
        assert 1e-4 < low < high < 0.1
        assert 0 < one["memory"]["ddp"]["kept"] < 2**30


DRY_RUN = ["pretrain", "--dry-run", "--model", "crossmae_vit_tiny_patch4", "--batch-size", "128"]


def test_a_dry_run_on_a_cpu_says_where_times_are(capsys):
    assert main(DRY_RUN) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "Time: not predicted for this machine (cpu); `crossmae plan` predicts it for GPUs you need not have."


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NVIDIA H100 80GB HBM3", "2 x h100 on 1 host, ddp"),
        (
            "NVIDIA H100 NVL",
            "Time: not predicted for NVIDIA H100 NVL; `crossmae plan` predicts it for GPUs",
        ),
    ],
)
def test_a_dry_run_predicts_the_gpus_that_are_here(capsys, monkeypatch, name, words):
    monkeypatch.setattr("crossmae.planning.here.device_kind", lambda: "cuda")
    monkeypatch.setattr("crossmae.planning.here.processes", lambda options: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: name)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert main(DRY_RUN) == 0
    text = capsys.readouterr().out
    assert words in text
    assert ("GPU-hours" in text) == name.endswith("HBM3")


def test_a_dry_run_goes_on_where_nothing_is_predicted(capsys, monkeypatch):
    """float64 trains, and three GPUs of a host of two may be asked of a launcher."""
    monkeypatch.setattr("crossmae.planning.here.device_kind", lambda: "cuda")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("crossmae.planning.here.processes", lambda options: 2)
    assert main([*DRY_RUN, "--precision", "float64"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "Time: not predicted: precision float64 cannot be predicted; choose bfloat16, float16 or float32"
    monkeypatch.setattr("crossmae.planning.here.processes", lambda options: 3)
    assert main(DRY_RUN) == 0
    assert "Time: not predicted: fleet: gpus must fill hosts of 2" in capsys.readouterr().out


def test_a_dry_run_shows_how_far_its_prediction_is(capsys, monkeypatch):
    def predict_step(*_, progress=lambda done, of: None, **__):
        progress(1, 3)
        return [part(stage, 1e3) for stage in STAGES]

    monkeypatch.setattr(cost, "predict_step", predict_step)
    monkeypatch.setattr("crossmae.planning.here.device_kind", lambda: "cuda")
    monkeypatch.setattr("crossmae.planning.here.processes", lambda options: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert main(DRY_RUN) == 0
    assert "crossmae_vit_tiny_patch4: predicting 3 kernels" in capsys.readouterr().err


def test_every_gpu_that_is_predicted_has_a_host_and_no_other():
    assert HOSTS.keys() == DEVICES.keys()
    assert Fleet("l4").ring.link == 16


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "Example: crossmae plan --recipe vit_base+gamma25 --images 1.28e6 --epochs 800 --gpus 64 --device h100" in text
    )
    assert "name of the GPU" in text
