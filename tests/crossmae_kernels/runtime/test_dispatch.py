import runpy

import pytest

from crossmae_kernels.runtime import dispatch
from crossmae_kernels.runtime.dispatch import choose, default, default_implementation


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
def test_the_environment_sets_the_default(monkeypatch, value, answer):
    monkeypatch.delenv("CROSSMAE_KERNELS_IMPL", raising=False)
    if value:
        monkeypatch.setenv("CROSSMAE_KERNELS_IMPL", value)
    assert runpy.run_path(dispatch.__file__)["default"]() == answer


def test_a_wrong_environment_is_refused(monkeypatch):
    monkeypatch.setenv("CROSSMAE_KERNELS_IMPL", "fast")
    choose = runpy.run_path(dispatch.__file__)["choose"]
    assert choose("op", "reference", ()) == "reference"
    with pytest.raises(ValueError, match="CROSSMAE_KERNELS_IMPL must be one of auto, triton, reference, got 'fast'"):
        choose("op", "auto", ())
