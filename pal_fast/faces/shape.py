"""The positions of the 68 landmarks of a drawn face: mean face, identity, action units and pose.

The face's own frame has its origin between the eyes and the mouth, x to the right of the picture, y down, and
half of the width of the face as its unit. Every change of shape is a displacement of some landmarks, given for
the left half of the picture and the midline; the right half is its mirror image. The numbering is that of
300-W: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, mouth 48-67.

Action units follow the Facial Action Coding System (Ekman, Friesen: Facial Action Coding System, 1978).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from pal_fast.landmarks.schemes import MIRROR

Displacement = dict[int, tuple[float, float]]

LANDMARKS: Final = 68


MEAN_FACE: Final[Displacement] = {
    **{0: (-1.00, -0.22), 1: (-0.985, 0.02), 2: (-0.95, 0.25), 3: (-0.88, 0.47), 4: (-0.76, 0.68)},
    **{5: (-0.60, 0.86), 6: (-0.41, 1.00), 7: (-0.205, 1.09), 8: (0.0, 1.12)},
    **{17: (-0.79, -0.46), 18: (-0.67, -0.54), 19: (-0.51, -0.565), 20: (-0.345, -0.54), 21: (-0.195, -0.49)},
    **{27: (0.0, -0.24), 28: (0.0, -0.07), 29: (0.0, 0.10), 30: (0.0, 0.26)},
    **{31: (-0.20, 0.36), 32: (-0.105, 0.40), 33: (0.0, 0.425)},
    **{36: (-0.61, -0.215), 37: (-0.50, -0.295), 38: (-0.375, -0.295), 39: (-0.255, -0.195)},
    **{40: (-0.375, -0.15), 41: (-0.50, -0.155)},
    **{48: (-0.36, 0.68), 49: (-0.235, 0.625), 50: (-0.09, 0.595), 51: (0.0, 0.615)},
    **{57: (0.0, 0.80), 58: (-0.10, 0.795), 59: (-0.24, 0.755)},
    **{60: (-0.31, 0.682), 61: (-0.10, 0.674), 62: (0.0, 0.682), 66: (0.0, 0.690), 67: (-0.10, 0.684)},
}

#: How far each landmark lies in front of the plane of the face; yaw and pitch use this depth.
DEPTH: Final[dict[int, float]] = {
    **{0: -0.55, 1: -0.52, 2: -0.46, 3: -0.36, 4: -0.22, 5: -0.06, 6: 0.06, 7: 0.13, 8: 0.16},
    **{17: -0.05, 18: 0.08, 19: 0.16, 20: 0.21, 21: 0.24},
    **{27: 0.24, 28: 0.33, 29: 0.43, 30: 0.54, 31: 0.28, 32: 0.33, 33: 0.37},
    **{36: 0.00, 37: 0.08, 38: 0.10, 39: 0.10, 40: 0.10, 41: 0.08},
    **{48: 0.12, 49: 0.22, 50: 0.29, 51: 0.31, 57: 0.28, 58: 0.27, 59: 0.20},
    **{60: 0.13, 61: 0.25, 62: 0.27, 66: 0.26, 67: 0.24},
}

#: Displacements at full strength.
ACTION_UNITS: Final[dict[str, Displacement]] = {
    "AU1 inner brow raiser": {21: (0.0, -0.19), 20: (0.0, -0.14), 19: (0.0, -0.06)},
    "AU2 outer brow raiser": {17: (0.0, -0.10), 18: (0.0, -0.15), 19: (0.0, -0.12), 20: (0.0, -0.05)},
    "AU4 brow lowerer": {21: (0.075, 0.17), 20: (0.055, 0.13), 19: (0.02, 0.07), 18: (0.0, 0.02)},
    "AU5 upper lid raiser": {37: (0.0, -0.075), 38: (0.0, -0.075), 40: (0.0, 0.025), 41: (0.0, 0.025)},
    "AU6 cheek raiser": {40: (0.0, -0.055), 41: (0.0, -0.055), 37: (0.0, 0.015), 38: (0.0, 0.015)},
    "AU7 lid tightener": {37: (0.0, 0.04), 38: (0.0, 0.04), 40: (0.0, -0.035), 41: (0.0, -0.035)},
    "AU9 nose wrinkler": {
        **{30: (0.0, -0.04), 31: (-0.03, -0.08), 32: (0.0, -0.06), 33: (0.0, -0.035)},
        **{20: (0.03, 0.05), 21: (0.05, 0.09), 49: (0.0, -0.03), 50: (0.0, -0.05), 51: (0.0, -0.03)},
    },
    "AU10 upper lip raiser": {
        **{49: (-0.03, -0.08), 50: (-0.02, -0.10), 51: (0.0, -0.075), 61: (-0.05, -0.085), 62: (0.0, -0.085)},
        **{48: (0.0, -0.01), 60: (0.0, -0.02), 67: (-0.05, 0.0), 58: (-0.03, 0.0), 31: (-0.01, -0.03)},
    },
    "AU12 lip corner puller": {
        **{48: (-0.15, -0.16), 49: (-0.09, -0.06), 50: (-0.02, 0.0), 59: (-0.09, -0.03), 58: (-0.03, 0.02)},
        **{57: (0.0, 0.03), 60: (-0.145, -0.15), 61: (-0.06, 0.0), 62: (0.0, 0.015), 67: (-0.06, 0.02)},
        **{66: (0.0, 0.03), 3: (-0.02, -0.01), 4: (-0.02, -0.01)},
    },
    "AU15 lip corner depressor": {
        **{48: (0.01, 0.13), 49: (0.0, 0.05), 59: (0.0, 0.07), 58: (0.0, 0.015), 60: (0.02, 0.115)},
        **{61: (0.0, 0.01), 67: (0.0, 0.015)},
    },
    "AU17 chin raiser": {
        **{57: (0.0, -0.02), 58: (0.0, -0.02), 62: (0.0, -0.03), 66: (0.0, -0.03), 61: (0.0, -0.025)},
        **{67: (0.0, -0.025), 51: (0.0, -0.02), 50: (0.0, -0.02), 7: (0.0, -0.03), 8: (0.0, -0.035)},
    },
    "AU20 lip stretcher": {
        **{48: (-0.13, 0.05), 49: (-0.07, 0.02), 59: (-0.08, 0.03), 58: (-0.02, 0.0), 60: (-0.13, 0.05)},
        **{61: (-0.05, 0.0), 67: (-0.05, 0.0)},
    },
    "AU24 lip pressor": {
        **{48: (0.07, 0.0), 49: (0.05, 0.03), 50: (0.01, 0.045), 51: (0.0, 0.04), 57: (0.0, -0.06)},
        **{58: (0.01, -0.06), 59: (0.05, -0.04), 60: (0.06, 0.0)},
    },
    "AU25 lips part": {
        **{50: (0.0, -0.02), 51: (0.0, -0.02), 61: (0.0, -0.035), 62: (0.0, -0.035), 66: (0.0, 0.065)},
        **{67: (0.0, 0.06), 57: (0.0, 0.06), 58: (0.0, 0.055), 59: (0.0, 0.03)},
    },
    "AU26 jaw drop": {
        **{66: (0.0, 0.20), 67: (0.0, 0.19), 57: (0.0, 0.21), 58: (0.0, 0.20), 59: (0.02, 0.14)},
        **{48: (0.03, 0.07), 60: (0.035, 0.07), 3: (0.01, 0.03), 4: (0.02, 0.09), 5: (0.03, 0.15)},
        **{6: (0.02, 0.18), 7: (0.01, 0.20), 8: (0.0, 0.20)},
    },
    "AU27 mouth stretch": {
        **{48: (0.11, 0.0), 49: (0.06, -0.03), 59: (0.04, 0.02), 60: (0.09, 0.0), 61: (-0.02, -0.03)},
        **{62: (0.0, -0.05), 66: (0.0, 0.06), 57: (0.0, 0.06), 67: (-0.02, 0.02), 58: (-0.02, 0.03)},
    },
    "AU43 eyes half closed": {37: (0.0, 0.065), 38: (0.0, 0.055), 36: (0.0, 0.02)},
}

#: The units of each expression, with the strength of a typical display.
EXPRESSION_UNITS: Final[dict[str, dict[int, float]]] = {
    "neutral": {},
    "happiness": {6: 0.9, 12: 1.0, 25: 0.8, 26: 0.1},
    "sadness": {1: 0.95, 4: 0.25, 15: 0.95, 17: 0.5, 43: 0.65},
    "surprise": {1: 0.85, 2: 1.0, 5: 0.9, 25: 0.5, 26: 0.8, 27: 0.8},
    "fear": {1: 1.0, 2: 0.45, 4: 0.45, 5: 1.0, 20: 0.95, 25: 0.7, 26: 0.15},
    "anger": {4: 1.15, 5: 0.25, 7: 0.5, 17: 0.3, 24: 0.95},
    "disgust": {4: 0.35, 7: 0.75, 9: 1.0, 10: 1.0, 15: 0.35, 25: 0.35},
}

#: Displacements at one standard deviation of the modes of identity, which tell one person from another.
IDENTITY: Final[dict[str, Displacement]] = {
    "wide jaw": {3: (-0.03, 0.01), 4: (-0.055, 0.02), 5: (-0.06, 0.02), 6: (-0.045, 0.01), 7: (-0.02, 0.0)},
    "long chin": {5: (0.0, 0.02), 6: (0.0, 0.045), 7: (0.0, 0.06), 8: (0.0, 0.065)},
    "eyes apart": {k: (-0.025, 0.0) for k in (36, 37, 38, 39, 40, 41)},
    "large eyes": {
        **{36: (-0.015, 0.0), 37: (-0.005, -0.015), 38: (0.005, -0.015), 39: (0.015, 0.0)},
        **{40: (0.005, 0.012), 41: (-0.005, 0.012)},
    },
    "slanted eyes": {36: (0.0, -0.018), 37: (0.0, -0.01), 41: (0.0, -0.01), 39: (0.0, 0.01)},
    "high brows": {k: (0.0, -0.022) for k in (17, 18, 19, 20, 21)},
    "arched brows": {17: (0.0, 0.015), 18: (0.0, -0.008), 19: (0.0, -0.015), 20: (0.0, -0.008)},
    "wide nose": {31: (-0.03, 0.0), 32: (-0.015, 0.0)},
    "long nose": {29: (0.0, 0.01), 30: (0.0, 0.025), 31: (0.0, 0.025), 32: (0.0, 0.025), 33: (0.0, 0.025)},
    "wide mouth": {48: (-0.03, 0.0), 49: (-0.02, 0.0), 59: (-0.02, 0.0), 60: (-0.027, 0.0)},
    "full lips": {49: (0.0, -0.012), 50: (0.0, -0.02), 51: (0.0, -0.02), 57: (0.0, 0.02), 58: (0.0, 0.02)}
    | {59: (0.0, 0.012)},
}


def unit_numbers() -> list[int]:
    """The FACS number of each action unit, in the order of `ACTION_UNITS`."""
    return [int(name.split()[0].removeprefix("AU")) for name in ACTION_UNITS]


def _table(displacement: Displacement, side: int = 0) -> Tensor:
    """A displacement as (68, 2): of both halves, or of the left (-1) or right (+1) half alone.

    On one side alone, the midline moves half of its way, so that both sides together give the full displacement.
    """
    table = torch.zeros(LANDMARKS, 2)
    for index, (x, y) in displacement.items():
        other = MIRROR[68][index]
        share = 0.5 if side and other == index else 1.0
        if side <= 0:
            table[index] += torch.tensor([x, y]) * share
        if side >= 0 and (other != index or side):
            table[other] += torch.tensor([-x, y]) * share
    return table


def mean_face() -> Tensor:
    """The mean face, (68, 2), in the face's frame."""
    return _table(MEAN_FACE)


def depth() -> Tensor:
    """The depth of the mean face's landmarks, (68,); positive is towards the camera."""
    return _table({index: (0.0, z) for index, z in DEPTH.items()})[:, 1]


def action_unit_displacements() -> Tensor:
    """(2, U, 68, 2): each action unit on the left and on the right half of the picture."""
    return torch.stack([torch.stack([_table(unit, side) for unit in ACTION_UNITS.values()]) for side in (-1, 1)])


def identity_displacements() -> Tensor:
    """(I, 68, 2): each mode of identity, at one standard deviation."""
    return torch.stack([_table(mode) for mode in IDENTITY.values()])


def expression_units() -> Tensor:
    """(7, U): the strength of each action unit in a typical display of each expression."""
    numbers = unit_numbers()
    table = torch.zeros(len(EXPRESSION_UNITS), len(numbers))
    for row, units in enumerate(EXPRESSION_UNITS.values()):
        for number, strength in units.items():
            table[row, numbers.index(number)] = strength
    return table


def face_landmarks(units: Tensor, identity: Tensor) -> Tensor:
    """The landmarks of faces in the face's frame, before pose.

    Args: units (N, 2, U), strength of each action unit on the left and right half; identity (N, I).
    Returns: (N, 68, 2).
    """
    moved = torch.einsum("nsu,sukd->nkd", units, action_unit_displacements())
    person = torch.einsum("ni,ikd->nkd", identity, identity_displacements())
    return mean_face() + moved + person


def turn(points: Tensor, depth: Tensor, yaw: Tensor, pitch: Tensor) -> Tensor:
    """Rotates points about the vertical (yaw) and the horizontal axis (pitch) and projects them orthographically.

    Args: points (N, P, 2) and depth (P,) or (N, P) in the face's frame; yaw and pitch (N,) in radians.
    Returns: (N, P, 2).
    """
    yaw, pitch = yaw[:, None], pitch[:, None]
    x = points[..., 0] * torch.cos(yaw) + depth * torch.sin(yaw)
    towards = depth * torch.cos(yaw) - points[..., 0] * torch.sin(yaw)
    y = points[..., 1] * torch.cos(pitch) + towards * torch.sin(pitch)
    return torch.stack([x, y], -1)


def place(points: Tensor, centre: Tensor, scale: Tensor, roll: Tensor) -> Tensor:
    """Maps points from the face's frame to the picture.

    Args: points (N, P, 2); centre (N, 2) in pixels; scale (N,), pixels per unit; roll (N,) in radians.
    Returns: (N, P, 2) in pixels, integer = pixel centre.
    """
    cos, sin = (scale * torch.cos(roll))[:, None], (scale * torch.sin(roll))[:, None]
    x, y = points.unbind(-1)
    return torch.stack([x * cos - y * sin, x * sin + y * cos], -1) + centre[:, None]
