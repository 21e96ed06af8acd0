"""Diagrams say the numbers of the configuration, and show the patches that are decoded."""

import numpy as np
import pytest
import torch

from crossmae import diagrams
from crossmae.figures import write_figure
from crossmae.flops import decoder_macs
from crossmae.model.config import named_config

OURS, MAE = (named_config(f"{family}_vit_base_patch16") for family in ("crossmae", "mae"))


@pytest.fixture
def figures(monkeypatch):
    """Figures that are drawn, written to disk as always."""
    drawn = []
    monkeypatch.setattr(
        diagrams, "write_figure", lambda figure, path: drawn.append(figure) or write_figure(figure, path)
    )
    return drawn


def words_of(figure):
    return "\n".join(text.get_text() for axis in figure.axes for text in [*axis.texts, axis.title])


def test_what_is_decoded_and_what_it_costs(figures, tmp_path):
    image = torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0)) * 0.8
    diagrams.draw_decoders(image, OURS, MAE, tmp_path / "decoders.png")
    assert (tmp_path / "decoders.png").read_bytes().startswith(b"\x89PNG")
    *panels, bars = figures[0].axes
    whole, seen, all_of_mae, ours = (np.asarray(axis.images[0].get_array()) for axis in panels)
    shown = [(picture != np.float32(0.93)).any(-1).sum() / 256 for picture in (whole, seen, all_of_mae, ours)]
    assert shown == [196, 49, 196, 49]
    assert not ((seen != np.float32(0.93)) & (ours != np.float32(0.93))).any()  # what is predicted was not seen
    assert [len(axis.patches) for axis in panels] == [0, 49, 196, 49]
    costs = [decoder_macs(MAE), *(decoder_macs(OURS, ratio) for ratio in (0.75, 0.5, 0.25))]
    assert [bar.get_width() * 1e9 for bar in bars.patches] == pytest.approx(costs)
    text = words_of(figures[0])
    assert "2.60 times fewer" in text
    assert "49 patches, from the 49 seen" in text


def test_shapes_of_the_decoder(figures, tmp_path):
    config = named_config("crossmae_vit_large_patch16", decoder_depth=4, decoder_width=256)
    diagrams.draw_architecture(config, tmp_path / "architecture.png", prediction_ratio=0.5)
    assert (tmp_path / "architecture.png").read_bytes().startswith(b"\x89PNG")
    text = words_of(figures[0])
    shapes = [
        "25 feature maps\nof 50 x 1024",
        "4 x 25 learned weights",
        "98 queries of 256",
        "98 patches\nof 768 values",
    ]
    shapes += ["50 x 1024 → 50 x 256 each", "256 → 1024 → 256", "256 → 768", "98 patches\nof 768 values"]
    for part in [*shapes, "one of 4 decoder blocks"]:
        assert part in text
    with pytest.raises(ValueError, match="the diagram needs a CrossMAE decoder"):
        diagrams.draw_architecture(MAE, tmp_path / "unwritten.png")
