"""`pal-fast info`: versions, backends and, for each backend that cannot run, the reason."""

from __future__ import annotations

import argparse

NAME = "info"
HELP = "print versions and backends, and why any backend cannot run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Takes no arguments."""


def run(args: argparse.Namespace) -> int:
    import platform

    import numpy
    import torch

    from pal_fast import __version__, _extension, backends

    status = backends()
    print(f"pal_fast  {__version__}")
    print(f"extension {_extension.find() or 'not built'}")
    if status["cpu"].available:
        cuda = _extension.build_info().get("cuda", "")
        print(f"          CUDA kernels: {cuda or 'none (built without nvcc; see README, Install)'}")
    print(f"torch     {torch.__version__} (CUDA {torch.version.cuda or 'none'})")
    print(f"numpy     {numpy.__version__}")
    print(f"python    {platform.python_version()} on {platform.platform()}")
    print("backends")
    for backend in status.values():
        print(f"  {backend}")
    return 0
