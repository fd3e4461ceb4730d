"""The trained network alone, as a `torch.export` program or as ONNX, checked against the original."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pal_fast.files import write_bytes
from pal_fast.training.trained import Saved, load_network

FORMATS = ("torch", "onnx")

#: The key under which a program stores what its user must know: classes, size, normalisation.
DESCRIPTION = "description.json"

#: Bound on the difference between exported and original logits, relative to the largest: rounding, no more.
TOLERANCE = 1e-4


def export(path: str | Path, output: str | Path, *, format: str = "torch") -> dict[str, Any]:
    """Writes the network of a run for use without pal_fast: images (B, 3, S, S) in, logits (B, classes) out.

    The batch size is dynamic. The file carries the class names and the normalisation of images; it contains nothing of
    the loss and needs no landmarks.

    Args:
        path: see `load_network`.
        output: the file; ".pt2" and ".onnx" are usual.
        format: "torch" (`torch.export`, read with `torch.export.load`) or "onnx" (needs onnx and onnxscript).

    Returns: the description, with the largest relative difference of logits that was observed as "difference".

    Raises: ValueError, OSError naming the argument; ImportError without onnx; RuntimeError if the network cannot be
        exported, or its exported form gives other logits.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {format!r}")
    output = Path(output)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"output: there is no folder {output.parent}")
    saved = load_network(path)
    description = describe(saved)
    images = torch.rand(2, 3, description["size"], description["size"])
    content = (
        _to_torch(saved.network, images, description) if format == "torch" else _to_onnx(saved, images, description)
    )
    # Other images than those it was traced with, and another batch size.
    probe = torch.randn(3, *images.shape[1:])
    with torch.no_grad():
        wanted: Tensor = saved.network(probe)
    found = _run_torch(content, probe) if format == "torch" else _run_onnx(content, probe)
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    if not difference <= TOLERANCE:  # rejects NaN, too
        raise RuntimeError(
            f"the exported network's logits differ by {difference:.1e} of the largest; nothing is written"
        )
    write_bytes(output, lambda file: file.write(content))
    return description | {"difference": difference}


def describe(saved: Saved) -> dict[str, Any]:
    """What a user of the exported network must know."""
    from pal_fast.data import IMAGENET_MEAN, IMAGENET_STD

    return {
        "model": saved.config.model,
        "classes": list(saved.classes),
        "size": saved.config.size,
        "channels": "RGB in [0, 1], then (value - mean) / std",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }


def _to_torch(network: nn.Module, images: Tensor, description: dict[str, Any]) -> bytes:
    program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    memory = io.BytesIO()
    torch.export.save(program, memory, extra_files={DESCRIPTION: json.dumps(description)})
    return memory.getvalue()


def _run_torch(content: bytes, images: Tensor) -> Tensor:
    program: Any = torch.export.load(io.BytesIO(content))
    with torch.no_grad():
        logits: Tensor = program.module()(images)
    return logits


def _to_onnx(saved: Saved, images: Tensor, description: dict[str, Any]) -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("format='onnx' needs onnx and onnxscript: pip install 'pal_fast[onnx]'") from error
    program = torch.onnx.export(
        saved.network,
        (images,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    for key, value in description.items():
        proto.metadata_props.add(key=f"pal_fast.{key}", value=json.dumps(value))
    onnx.checker.check_model(proto)
    content: bytes = proto.SerializeToString()
    return content


def _run_onnx(content: bytes, images: Tensor) -> Tensor:
    """By onnxruntime if installed, else by ONNX's own reference evaluator, which is slow."""
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        (logits,) = ReferenceEvaluator(content).run(None, {"images": images.numpy()})
    else:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"images": images.numpy()})
    answer: Tensor = torch.from_numpy(logits)
    return answer
