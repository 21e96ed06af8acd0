"""Files that are loaded in tests, and what loading them says."""

import warnings

import torch
from golden_cases import Case

import crossmae

HEADS = {"num_heads": 3, "decoder_num_heads": 2}
DECODER = ("mask_token", "decoder_", "wfm.", "dec_norms.")


def heard(path, *arguments, **options):
    """The model, and the messages of its ``CheckpointWarning``; others are errors."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("always", crossmae.CheckpointWarning)
        model = crossmae.load(path, *arguments, **options)
    return model.eval(), [str(warning.message) for warning in caught]


def saved(content, path):
    torch.save(content, path)
    return path


def encoder_of(weights):
    """The tensors of an encoder alone, by the releases' names."""
    return {name: tensor for name, tensor in weights.items() if not name.startswith(DECODER)}


def agrees_with_the_release(model, name):
    """Whether a loaded model predicts what the release stored."""
    case = Case(name)
    with torch.no_grad():
        out = model(case.images, **case.ratios, noise=case.noise, rounding="release")
    error = float((out.prediction - case.prediction).norm() / case.prediction.norm())
    return error < 1e-5 and abs(float(out.loss) - float(case.loss)) < 1e-5 * float(case.loss)
