"""Forward and backward of the loss need little memory besides the inputs and their gradients."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: Reads the process's peak resident size, in bytes, since its reset, on a layer that dwarfs the libraries.
CODE = """
import itertools, torch, pal_fast

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

def step(f, g, points, channels):
    loss = pal_fast.pal_loss(f, g, landmarks=points, image_size=224, channels=channels, backend="cpu")
    return torch.autograd.grad(loss, (f, g))

f, g = (torch.randn(2, 16, 8, 8, requires_grad=True) for _ in range(2))
step(f, g, torch.rand(2, 68, 2) * 224, "mean")
formats = torch.contiguous_format, torch.channels_last
points = torch.rand(16, 68, 2) * 224
for channels, layout in itertools.product(("mean", "all", "each"), formats):
    f, g = (torch.randn(16, 1024, 28, 28).to(memory_format=layout).requires_grad_() for _ in range(2))
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    gradients = step(f, g, points, channels)
    beyond = status("VmHWM") - before - sum(gradient.nbytes for gradient in gradients)
    print(beyond / (f.nbytes + g.nbytes))
    del f, g, gradients
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc/self/clear_refs")
def test_peak_memory_beyond_inputs_and_gradients_is_below_a_twentieth_of_the_inputs():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shares = [float(line) for line in done.stdout.split()]
    assert len(shares) == 6
    assert max(shares) < 0.05, shares
