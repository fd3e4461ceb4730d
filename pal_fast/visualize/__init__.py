"""Pictures of faces, landmarks, heatmaps and attributions.

    figure = pal_fast.visualize.attribution_grid(
        images, {"landmark heatmap": heatmaps, "where the network looks": maps}, landmarks=landmarks
    )
    pal_fast.visualize.save(figure, "attributions.png")

Images are (3, H, W) or (1, H, W) tensors, or (H, W, 3) or (H, W) arrays: floats in [0, 1] or uint8. Undo the
normalisation of a network's input first, with `unnormalise`. Maps are (h, w) of any size and are stretched over the
whole image, so that cell (i, j) lies where `landmark_heatmap` places it. Figures are made without pyplot:
nothing is registered, shown or left open. Needs matplotlib.
"""

from __future__ import annotations

from pal_fast.visualize.figures import attribution_grid, draw_landmarks, panels, save
from pal_fast.visualize.pictures import colour_map, overlay, picture, unnormalise

__all__ = [
    "attribution_grid",
    "colour_map",
    "draw_landmarks",
    "overlay",
    "panels",
    "picture",
    "save",
    "unnormalise",
]
