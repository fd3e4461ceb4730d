"""PyTorch's flash attention on a GPU, differentiated twice by pal_fast.nn.attention, against float64."""

from __future__ import annotations

import pytest
import torch
from support.compare import relative_error
from support.networks import by_math, derivatives_of

from pal_fast.nn.attention import attention
from pal_fast.nn.flash_attention import serves

BOUNDS = {torch.bfloat16: 5e-2, torch.float16: 1e-2}


@pytest.mark.gpu(hardware=True)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("features", [8, 64])
@pytest.mark.parametrize("keys", [7, 64, 197])
def test_flash_attention_and_both_its_derivatives_agree_with_exact_attention(
    keys: int, features: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("PyTorch's flash attention needs compute capability 8.0")
    shapes = [(2, 3, count, features) for count in (9, keys, keys)]
    exact = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).double() for shape in shapes]
    tensors = [tensor.to("cuda", dtype) for tensor in exact]
    assert serves(*tensors), "it is not used, so this test would prove nothing"
    wanted = derivatives_of(by_math, exact)
    for index, (value, judge) in enumerate(zip(derivatives_of(attention, tensors), wanted, strict=True)):
        assert value.dtype == dtype
        assert relative_error(value, judge) <= BOUNDS[dtype], index
