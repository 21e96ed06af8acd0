"""What is drawn, read back from the pictures' pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from crossmae.figures import GAP, TITLE, draw_mixing_weights, draw_reconstructions, write_figure

NAN = float("nan")


def cells(path, rows, columns, height, width):
    """The pictures of a grid as ``(rows, columns, height, width, 3)``, uint8."""
    canvas = np.asarray(Image.open(path).convert("RGB"))
    assert canvas.shape == (TITLE + rows * (height + GAP), GAP + columns * (width + GAP), 3)
    return np.stack(
        [
            [
                canvas[TITLE + row * (height + GAP) :, GAP + column * (width + GAP) :][:height, :width]
                for column in range(columns)
            ]
            for row in range(rows)
        ]
    )


def test_pixels_in_colour_are_drawn_as_they_are(tmp_path):
    pixels = torch.randint(0, 256, (2, 3, 90, 170), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    other = pixels.flip(0)
    draw_reconstructions({"one": pixels / 255, "two": other / 255}, tmp_path / "grid.png")
    drawn = cells(tmp_path / "grid.png", 2, 2, 90, 170)
    assert (drawn[:, 0] == pixels.permute(0, 2, 3, 1).numpy()).all()
    assert (drawn[:, 1] == other.permute(0, 2, 3, 1).numpy()).all()


def test_small_pictures_are_enlarged_in_whole_pixels(tmp_path):
    pixels = torch.randint(0, 256, (1, 1, 16, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draw_reconstructions({"digits": pixels / 255}, tmp_path / "grid.png")
    drawn = cells(tmp_path / "grid.png", 1, 1, 80, 160)[0, 0]
    enlarged = pixels[0, 0].repeat_interleave(5, 0).repeat_interleave(5, 1).numpy()
    assert all((drawn[..., channel] == enlarged).all() for channel in range(3))


@pytest.mark.parametrize(("channels", "shown"), [(1, (0, 0, 0)), (2, (0, 0, 0)), (3, (0, 1, 2)), (5, (0, 1, 2))])
def test_which_channels_are_shown(channels, shown, tmp_path):
    levels = torch.tensor([10, 60, 110, 160, 210])[:channels]
    draw_reconstructions({"image": (levels / 255).view(1, -1, 1, 1).expand(1, -1, 160, 160)}, tmp_path / "grid.png")
    drawn = cells(tmp_path / "grid.png", 1, 1, 160, 160)[0, 0]
    assert (drawn == levels[list(shown)].numpy()).all()


def test_what_comes_nowhere_near_white_is_drawn_over_its_own_range(tmp_path):
    levels = torch.arange(160.0).expand(1, 1, 160, 160)  # of 12 bits
    draw_reconstructions({"image": levels * 25 / 65535, "half": levels * 25 / 2 / 65535}, tmp_path / "grid.png")
    whole, half = cells(tmp_path / "grid.png", 1, 2, 160, 160)[0]
    assert (whole[0, :, 0] == np.rint(np.arange(160) / 159 * 255)).all()
    assert half.max() == 128


def test_what_was_hidden_is_grey_and_titles_are_written(tmp_path):
    image = torch.full((1, 3, 160, 160), NAN)
    image[..., :80] = 1
    draw_reconstructions({"original": torch.ones(1, 3, 160, 160), "masked": image}, tmp_path / "grid.png")
    drawn = cells(tmp_path / "grid.png", 1, 2, 160, 160)[0, 1]
    assert (drawn[:, :80] == 255).all()
    assert (drawn[:, 80:] == 128).all()
    titles = np.asarray(Image.open(tmp_path / "grid.png"))[:TITLE]
    assert titles[:, :164].min() < 100
    assert titles[:, 168:].min() < 100


@pytest.mark.parametrize(
    ("original", "picture", "levels"),
    [
        ((0.2, 0.6), (-1.0, 0.4, 2.0), (0, 102, 255)),  # shares of full scale, out of which a prediction may fall
        ((0.0, 1.0000001), (0.0, 0.4, 1.0), (0, 102, 255)),  # rounding does not change the scale
        ((-2.0, 3.0), (-2.0, 0.0, 3.0), (0, 102, 255)),  # anything else is stretched
        ((0.0, 5.0), (1.0, 2.0, 4.0), (51, 102, 204)),
        ((7.0, 7.0), (7.0, 8.0, 6.0), (0, 255, 0)),
    ],
)
def test_brightness_is_that_of_the_first_picture(original, picture, levels, tmp_path):
    columns = {
        name: torch.tensor(values).repeat_interleave(-(-160 // len(values)))[:160].expand(1, 1, 160, 160)
        for name, values in (("original", original), ("picture", picture))
    }
    draw_reconstructions(columns, tmp_path / "grid.png")
    drawn = cells(tmp_path / "grid.png", 1, 2, 160, 160)[0, 1, 0, :, 0]
    assert tuple(drawn[[20, 80, 140]]) == levels


@pytest.mark.parametrize("shape", [(12, 13), (12, 33), (4, 5), (1, 1)])
def test_mixing_weights_by_sign_and_size(shape, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        "crossmae.figures.write_figure", lambda figure, path: figures.append(figure) or write_figure(figure, path)
    )
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    indices = [2 * place for place in range(shape[1])]
    draw_mixing_weights(weight, indices, tmp_path / "mixing.png")
    axis = figures[0].axes[0]
    heat = axis.images[0]
    colours = heat.to_rgba(heat.get_array(), bytes=True).astype(int)
    red, blue, largest = colours[..., 0], colours[..., 2], weight.detach().abs().max().item()
    share = (weight / largest).detach().numpy()
    assert ((red - blue)[share > 0.05] > 0).all()
    assert ((red - blue)[share < -0.05] < 0).all()
    assert (colours[np.abs(share) < 0.005][:, :3] > 240).all()
    assert [label.get_text() for label in axis.get_xticklabels()] == [str(index) for index in indices]
    assert [label.get_text() for label in axis.get_yticklabels()] == [str(block + 1) for block in range(shape[0])]
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("decoder block", "feature map (0: encoder's input)")
    # First row and column at the top left, where the picture has the colours that were asked for.
    picture = np.asarray(Image.open(tmp_path / "mixing.png").convert("RGB")).astype(int)
    for block, column in ((0, 0), (shape[0] - 1, 0), (0, shape[1] - 1)):
        across, up = figures[0].transFigure.inverted().transform(axis.transData.transform((column, block)))
        found = picture[round(picture.shape[0] * (1 - up)), round(picture.shape[1] * across)]
        assert np.abs(found - colours[block, column, :3]).max() <= 2


def test_weights_that_are_all_zero_are_white(tmp_path):
    draw_mixing_weights(torch.zeros(3, 4), range(4), tmp_path / "mixing.png")
    picture = np.asarray(Image.open(tmp_path / "mixing.png").convert("RGB"))
    assert picture[picture.shape[0] // 2, picture.shape[1] // 3].min() > 240
