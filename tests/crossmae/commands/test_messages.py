"""What the command line says of arguments that it refuses."""

import pytest

from crossmae.commands.cli import main


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("bench --batch 1.5", "bench: error: --batch must be an integer or null, got 1.5"),
        ("bench --prediction-ratios 0.5 a", "bench: error: --prediction_ratios must be a number, got a"),
        (
            "bench --formulations mine",
            "bench: error: --formulations must be one of ours, kernels, reference, release, got mine",
        ),
        ("pretrain --mask_ratio a", "pretrain: error: --mask_ratio must be a number or a list of 2 numbers, got a"),
        ("pretrain --data.mean [1,b]", "pretrain: error: --data.mean must be a list of numbers or null, got [1, 'b']"),
        ("pretrain --model_options x", "pretrain: error: --model_options must be settings by name, got x"),
        ("convert a", "convert: error: missing destination, --to"),
        ("reconstruct", "reconstruct: error: missing images, --checkpoint"),
    ],
)
def test_a_wrong_value_is_told_by_its_option(words, line, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    command = words.split()[0]
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"crossmae {line}; see crossmae {command} --help\n"


@pytest.mark.parametrize(
    ("words", "said"), [(["fly"], "there is no command 'fly', there are"), ([], "give a command:")]
)
def test_commands_are_named_where_one_is_missing(words, said, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert capsys.readouterr().err.startswith(f"crossmae: error: {said} audit, bench, check, convert, ")
