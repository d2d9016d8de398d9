"""What a person sees: hot is red, cold is blue, boxes lie where they should."""

import numpy as np
import pytest
from PIL import Image

from pela_vl.report.overlays import CHOSEN, TRUE, blend, draw_boxes, grid, grounding_overlay, heat_colours, labelled


def test_the_hottest_place_is_red_and_the_coldest_blue():
    heat = np.zeros((4, 6))
    heat[2, 5] = 3.0
    colours = heat_colours(heat).astype(int)
    assert tuple(colours[2, 5]) == (255, 0, 0)
    assert (colours[0, 0, 2] > 100) and (colours[0, 0, 0] == 0)
    assert (heat_colours(np.full((2, 2), 7.0)) == colours[0, 0]).all()


def test_boxes_are_drawn_inside_their_pixels():
    image = np.asarray(draw_boxes(Image.new("RGB", (20, 10)), [((2, 3, 5, 4), TRUE), ((10, 0, 4, 10), CHOSEN)]))
    rows, columns = (image == TRUE).all(-1).nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 6, 2, 6)
    rows, columns = (image == CHOSEN).all(-1).nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 9, 10, 13)


def test_panels_are_labelled_and_laid_out_in_reading_order():
    panel = labelled(Image.new("RGB", (40, 20)), "a long text " * 20, least_side=100)
    assert panel.size == (200, 122)
    sheet = grid([Image.new("RGB", (4, 3), (k, 0, 0)) for k in range(1, 6)], columns=2)
    assert sheet.size == (8, 9) and sheet.getpixel((5, 4))[0] == 4 and sheet.getpixel((5, 7)) == (255, 255, 255)


def test_an_overlay_needs_no_chosen_box_but_a_heat_map_that_fits():
    image, heat = Image.new("RGB", (30, 20)), np.zeros((20, 30))
    with_box, without = (grounding_overlay(image, heat, "text", (1, 1, 5, 5), box) for box in ((9, 9, 5, 5), None))
    assert (np.asarray(with_box) == CHOSEN).all(-1).any() and not (np.asarray(without) == CHOSEN).all(-1).any()
    with pytest.raises(ValueError, match="does not fit"):
        blend(image, heat.T)
