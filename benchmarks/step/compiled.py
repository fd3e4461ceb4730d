"""Two ways to remove the interpreter from the step: torch.compile, and a CUDA graph of the whole step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pal_fast import compiled
from pal_fast.nn import prepare_head

from ..harness import UnavailableError
from .cases import Case, Naive, Prepared, twice_differentiable


class CompiledNaive(Naive):
    """The naive step's forward, gradient and formula in one compiled function: the compiler against the kernels."""

    watchable = False

    def __init__(self, case: Case, device: torch.device) -> None:
        super().__init__(case, device)
        if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
            raise UnavailableError(f"PyTorch {torch.__version__} cannot compile a gradient taken inside the step")
        self.compiled = torch.compile(self.formula, fullgraph=True)

    def losses(self) -> tuple[Tensor, Tensor | None]:
        with torch._dynamo.config.patch(trace_autograd_ops=True), twice_differentiable():
            return self.compiled()


class CompiledPrepared(CompiledNaive):
    """The same with `prepare_head`: BatchNorm's double backward as one operator, opaque to the compiler."""

    def __init__(self, case: Case, device: torch.device) -> None:
        super().__init__(case, device)
        prepare_head(self.model, case.layer, self.batch.images[:2])


class CompiledPAL(Prepared):
    """`PALLoss` and `prepare_head` in one compiled function."""

    watchable = False

    def __init__(self, case: Case, device: torch.device) -> None:
        super().__init__(case, device)
        if not compiled.can_compile_a_step():
            raise UnavailableError(f"PyTorch {torch.__version__} cannot compile a gradient taken inside the step")
        self.compiled = compiled.compile_step(super().losses)

    def losses(self) -> tuple[Tensor, Tensor | None]:
        logits, attribution_loss = self.compiled()
        return logits, attribution_loss


class Graphed(Prepared):
    """The prepared step, captured once and replayed: forward, loss and backward (docs/performance_step.md)."""

    replayed = True

    def __init__(self, case: Case, device: torch.device) -> None:
        if device.type != "cuda":
            raise UnavailableError("needs a CUDA device")
        super().__init__(case, device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                super().__call__()
        torch.cuda.current_stream(device).wait_stream(stream)
        self.model.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self._forward_and_backward()

    def _forward_and_backward(self) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=self.case.dtype == torch.bfloat16, cache_enabled=False):
            logits, attribution_loss = self.losses()
            assert attribution_loss is not None
            loss = F.cross_entropy(logits, self.batch.labels) + attribution_loss
        loss.backward()
        return loss.detach()

    def __call__(self) -> Tensor:
        if not hasattr(self, "graph"):
            return super().__call__()
        self.graph.replay()
        return self.loss
