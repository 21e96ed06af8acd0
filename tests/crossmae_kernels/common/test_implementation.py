import os
import subprocess
import sys

import pytest

from crossmae_kernels.common.implementation import choose, default, default_implementation


def test_auto_takes_the_kernel_where_it_can_serve_and_is_worth_it():
    assert choose("op", "auto", ()) == "triton"
    assert choose("op", "auto", ("no GPU",)) == "reference"
    assert choose("op", "auto", (), worthwhile=False) == "reference"


def test_explicit_choices_never_fall_back():
    assert choose("op", "reference", ()) == "reference"
    assert choose("op", "triton", (), worthwhile=False) == "triton"
    with pytest.raises(RuntimeError, match=r"op: .* cannot serve this call: no GPU; no luck"):
        choose("op", "triton", ("no GPU", "no luck"))
    with pytest.raises(ValueError, match="op: impl must be one of auto, triton, reference, got 'fast'"):
        choose("op", "fast", ())


def test_the_default_answers_auto_only_and_is_restored():
    before = default()
    with default_implementation("reference"):
        assert choose("op", "auto", ()) == "reference"
        assert choose("op", "triton", ()) == "triton"
        with default_implementation("triton"):
            assert choose("op", "auto", (), worthwhile=False) == "triton"
            with pytest.raises(RuntimeError, match="cannot serve"):
                choose("op", "auto", ("no GPU",))
        assert default() == "reference"
    assert default() == before
    with pytest.raises(ValueError, match="got 'fast'"), default_implementation("fast"):
        pass


@pytest.mark.parametrize(("value", "answer"), [("reference", "reference"), (None, "auto")])
def test_the_environment_sets_the_default(value, answer):
    environment = {name: v for name, v in os.environ.items() if name != "CROSSMAE_KERNELS_IMPL"}
    if value:
        environment["CROSSMAE_KERNELS_IMPL"] = value
    code = "from crossmae_kernels.common.implementation import default; print(default())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == answer


def test_a_wrong_environment_is_refused():
    environment = {**os.environ, "CROSSMAE_KERNELS_IMPL": "fast"}
    code = "import crossmae_kernels"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "CROSSMAE_KERNELS_IMPL must be one of auto, triton, reference, got 'fast'" in done.stderr
