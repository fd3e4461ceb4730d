"""Views of layers' outputs as (B, C, H, W): images, channels-last images (Swin), tokens (ViT).

Nothing is copied here. A view of tokens after a prefix is not dense, however, so `calls` copies it for the kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pal_fast import _checks
from pal_fast.capture.channel_axis import NO_SIGNS, ChannelSigns

LAYOUTS = ("auto", "NCHW", "NHWC", "tokens")

#: The most class and register tokens accepted as a prefix of the grid's tokens.
MOST_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class Layout:
    """How one layer's output becomes (B, C, H, W)."""

    kind: str  # "NCHW", "NHWC" or "tokens"
    prefix: int = 0  # tokens before those of the grid
    grid: tuple[int, int] = (0, 0)  # (H, W) of the tokens' grid

    def view(self, tensor: Tensor) -> Tensor:
        """(B, C, H, W): `tensor` itself, or a view of it with the channels last in memory."""
        if self.kind == "NCHW":
            return tensor
        if self.kind == "NHWC":
            return tensor.permute(0, 3, 1, 2)
        tokens = tensor if self.prefix == 0 else tensor[:, self.prefix :]
        return tokens.unflatten(1, self.grid).permute(0, 3, 1, 2)

    def __str__(self) -> str:
        if self.kind != "tokens":
            return self.kind
        height, width = self.grid
        return f"tokens, {self.prefix} + {height} x {width}"


NCHW = Layout("NCHW")


def find_layout(
    wanted: str,
    name: str,
    shape: tuple[int, ...],
    image_size: tuple[int, int] | None,
    signs: ChannelSigns = NO_SIGNS,
    *,
    turned: bool = False,
) -> Layout:
    """The layout of an output of `shape`, from the image's aspect ratio and the layer's modules if `wanted` is "auto".

    A 4-dimensional output is NHWC only if its dimensions 1 and 2 have the image's aspect ratio and the modules' `signs`
    have the channels last. Any other shape is NCHW regardless of the modules, and the output of convolutions is NCHW
    regardless of the shape.
    Of N tokens the last H * W are the grid: the largest grid of the image's aspect ratio that leaves at most 16 tokens.
    For "auto" its cells must be whole patches: squares of whole pixels that fill the image, if its size is known;
    otherwise a network that drops tokens at random would be assigned a grid that it does not have. "tokens" trusts the
    user that there is a grid, even if the patches do not fill the image.

    Args:
        turned: whether the strides show that the channels were permuted last, which no convolution's output is.

    Raises: ValueError for a shape that is none of these, and if shape and modules leave the layout undecided.
    """
    if len(shape) == 3 and wanted == "auto" and signs.are_second_of_three(shape[1]):
        raise ValueError(
            f"the output of layer {name!r}, {tuple(shape)}, has its channels second, so it is not (B, N, C) tokens: "
            "name a layer that returns (B, C, H, W); if it does hold tokens, pass layout='tokens'"
        )
    if len(shape) == 3 and wanted in ("auto", "tokens"):
        prefix, grid = _token_grid(name, shape, image_size, whole_patches=wanted == "auto")
        return Layout("tokens", prefix, grid)
    if len(shape) == 4 and wanted == "auto":
        return _of_four_dimensions(name, shape, image_size, signs, turned)
    if len(shape) == 4 and wanted in ("NCHW", "NHWC"):
        return Layout(wanted)
    _checks.choice("layout", wanted, LAYOUTS)
    shapes = {"tokens": "(B, N, C)", "NCHW": "(B, C, H, W)", "NHWC": "(B, H, W, C)"}
    known = shapes.get(wanted, "(B, C, H, W), (B, H, W, C) or (B, N, C)")
    way_out = (
        "; for video or volumes, (B, C, T, H, W), take the gradient yourself and call pal_fast.pal_loss on output, "
        "gradient and heatmap with T folded into H: (B, C, T * H, W) and (B, T * H, W)"
    )
    raise ValueError(
        f"the output of layer {name!r} must have shape {known} for layout={wanted!r}, got {shape}"
        f"{way_out if len(shape) == 5 else ''}"
    )


def layout_of(
    wanted: str, name: str, output: Tensor, image_size: tuple[int, int] | None, signs: ChannelSigns
) -> Layout:
    """`find_layout` of an output, whose strides are also considered."""
    # The strides of a (B, C, H, W) tensor whose channels were permuted last.
    turned = output.ndim == 4 and not output.is_contiguous() and output.permute(0, 3, 1, 2).is_contiguous()
    return find_layout(wanted, name, tuple(output.shape), image_size, signs, turned=turned)


def _of_four_dimensions(
    name: str, shape: tuple[int, ...], image_size: tuple[int, int] | None, signs: ChannelSigns, turned: bool
) -> Layout:
    if not _has_aspect(shape[1], shape[2], image_size):
        return NCHW
    last = signs.are_last(shape[1], shape[3])
    as_many = shape[1] == shape[3]  # the modules' channel counts match either dimension
    if as_many and last is False and (turned or not _has_aspect(shape[2], shape[3], image_size)):
        last = None
    if last is None:
        raise ValueError(
            f"the output of layer {name!r}, {tuple(shape)}, may be (B, C, H, W) or (B, H, W, C): its shape and the "
            "modules in and around it do not decide; pass layout='NCHW' or layout='NHWC'"
        )
    return Layout("NHWC") if last else NCHW


def _has_aspect(height: int, width: int, image_size: tuple[int, int] | None) -> bool:
    """Whether a single stride reduces the image to (height, width), both rounded down or both rounded up.

    An image of unknown size counts as square.
    """
    if image_size is None:
        return height == width
    (image_height, image_width), least = image_size, 0.5
    down = max(image_height / (height + 1), image_width / (width + 1)) < min(image_height / height, image_width / width)
    up = max(image_height / height, image_width / width) < min(
        image_height / max(height - 1, least), image_width / max(width - 1, least)
    )
    return down or up


def _are_whole_patches(height: int, width: int, image_size: tuple[int, int] | None) -> bool:
    """Whether squares of whole pixels fill the image; true if its size is unknown."""
    if image_size is None:
        return True
    image_height, image_width = image_size
    patch, rest = divmod(image_height, height)
    return rest == 0 and image_width == patch * width


def _token_grid(
    name: str, shape: tuple[int, ...], image_size: tuple[int, int] | None, *, whole_patches: bool
) -> tuple[int, tuple[int, int]]:
    tokens = shape[1]
    aspect = 1.0 if image_size is None else image_size[0] / image_size[1]
    for prefix in range(min(MOST_PREFIX_TOKENS, tokens - 1) + 1):
        count = tokens - prefix
        height = round(math.sqrt(count * aspect))
        if height and count % height == 0:
            width = count // height
            if whole_patches and not _are_whole_patches(height, width, image_size):
                continue
            if _has_aspect(height, width, image_size):
                return prefix, (height, width)
    image = "the image's aspect ratio 1" if image_size is None else f"an image of {image_size[0]} x {image_size[1]}"
    way_out = (
        "; tokens dropped at random (patch_drop_rate) leave no grid. Name a layer that returns (B, C, H, W), or "
        "pass layout='tokens' if the patches do not fill the image"
        if whole_patches
        else "; name a layer that returns (B, C, H, W)"
    )
    raise ValueError(
        f"layer {name!r} returns {tokens} tokens, shape {tuple(shape)}, which do not form a grid of "
        f"{'whole patches of ' if whole_patches else ''}{image} with up to {MOST_PREFIX_TOKENS} class or register "
        f"tokens before it{way_out}"
    )
