"""`prepare_head`: replaces the layers above the attributed one by ones with cheap second derivatives."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from pal_fast.capture.hook import Hook
from pal_fast.capture.layer_names import find_layers, plain_name
from pal_fast.capture.model_run import in_mode
from pal_fast.nn import batch_norm_operators
from pal_fast.nn.attention_layers import MultiheadAttention, attends, attention_twin
from pal_fast.nn.batch_norm import BatchNorm1d, BatchNorm2d
from pal_fast.nn.conv import Conv2d
from pal_fast.nn.layer_norm import LayerNorm
from pal_fast.nn.smooth_activations import GELU, SiLU

#: Layer type -> its replacement. Exactly these types: a subclass may compute something else.
REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.Conv2d: Conv2d,
    nn.GELU: GELU,
    nn.LayerNorm: LayerNorm,
    nn.MultiheadAttention: MultiheadAttention,
    nn.SiLU: SiLU,
}


def _twin_of(module: nn.Module) -> type[nn.Module] | None:
    """The class that replaces the module's; None if there is none."""
    kind = type(module)
    match kind.__module__, kind.__name__:
        case "timm.layers.norm", "LayerNorm":  # The same results, unless in its fast mode.
            return None if getattr(module, "_fast_norm", True) else LayerNorm
        case "timm.layers.norm_act", "BatchNormAct2d":
            from pal_fast.nn.timm_layers import BatchNormAct2d

            return BatchNormAct2d
    return REPLACEMENTS.get(kind) or (attention_twin(kind) if attends(module) else None)


def _may_have_twin(module: nn.Module) -> bool:
    """Whether `_twin_of` may find one, without creating a class: most layers lie below the attributed one."""
    return attends(module) or _twin_of(module) is not None


class PreparedHead:
    """The handle that `prepare_head` returns: lists the replaced layers and can restore them.

    Leaving a `with prepare_head(...)` block also restores them.
    """

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module]) -> None:
        self._above: dict[str, nn.Module] = {}  # replaceable modules that ran after the layer
        self._replaced: dict[str, _Replaced] = {}
        self._handles: list[Any] = []
        self._passed = False
        self._began_above: dict[str, bool] = {}  # for each candidate's latest forward
        names = {module: plain_name(name) for name, module in model.named_modules()}
        for layer in layers.values():
            self._handles.append(layer.register_forward_hook(Hook(self._on_layer)))
        for module, name in names.items():
            if _may_have_twin(module):
                self._handles.append(module.register_forward_pre_hook(Hook(self._before_candidate(name))))
                self._handles.append(module.register_forward_hook(Hook(self._on_candidate(name))))
        self._handles.append(model.register_forward_pre_hook(Hook(self._before_model)))
        self._handles.append(model.register_forward_hook(Hook(self._after_model)))

    @property
    def replaced(self) -> tuple[str, ...]:
        """The dotted names of the replaced layers; empty until the model has run once."""
        return tuple(self._replaced)

    @property
    def ready(self) -> bool:
        """Whether the model has run, so that the layers above are known."""
        return not self._handles

    def restore(self) -> None:
        """Puts PyTorch's own layers back. Idempotent; parameters, buffers and hooks stay as they are."""
        self._stop_watching()
        for replaced in self._replaced.values():
            replaced.restore()
        self._above.clear()
        self._replaced.clear()

    def __enter__(self) -> PreparedHead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def __repr__(self) -> str:
        if not self.ready:
            return "PreparedHead(waiting for the model's first forward)"
        return f"PreparedHead({', '.join(self.replaced) or 'nothing to replace above the layer'})"

    def _stop_watching(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before_model(self, module: nn.Module, args: Any) -> None:
        self._passed = False

    def _on_layer(self, module: nn.Module, args: Any, output: Any) -> None:
        self._passed = True

    def _before_candidate(self, name: str) -> Any:
        def before_candidate(module: nn.Module, args: Any) -> None:
            self._began_above[name] = self._passed

        return before_candidate

    def _on_candidate(self, name: str) -> Any:
        def on_candidate(module: nn.Module, args: Any, output: Any) -> None:
            if self._began_above.get(name) and torch._C._current_graph_task_id() == -1:
                self._above.setdefault(name, module)

        return on_candidate

    def _after_model(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._passed:  # This forward did not reach the layer.
            return
        self._stop_watching()
        for name, module in self._above.items():
            if twin := _twin_of(module):
                self._replaced[name] = _Replaced(module, type(module), twin)
                module.__class__ = twin
            for tensor in (*module.parameters(), *module.buffers()):
                batch_norm_operators.namespace_on(tensor.device)  # Cached now, so that torch.compile need not trace it.
        self._above.clear()


@dataclass
class _Replaced:
    module: nn.Module
    original: type[nn.Module]
    twin: type[nn.Module]

    def restore(self) -> None:
        """Puts the original class back, also below a class that `torch.nn.utils.parametrize` or FSDP2 has derived."""
        kind = type(self.module)
        if kind is self.twin:
            self.module.__class__ = self.original
        elif self.twin in kind.__bases__:
            bases = tuple(self.original if base is self.twin else base for base in kind.__bases__)
            members = dict(vars(kind))
            self.module.__class__ = types.new_class(kind.__name__, bases, exec_body=lambda space: space.update(members))


def prepare_head(
    model: nn.Module, layer: nn.Module | str | Sequence[nn.Module | str], example: Any = None
) -> PreparedHead:
    """Replaces the layers above the attributed one, in place, by ones with a cheap second derivative.

    Every BatchNorm1d, BatchNorm2d, Conv2d, LayerNorm, MultiheadAttention, GELU and SiLU that runs after `layer` in a
    forward of the model (with several layers: after the first of them) becomes its counterpart in `pal_fast.nn`: the
    same object with the same parameters, buffers, hooks and state_dict, and the same results; only its class changes.
    The same holds for every layer whose own forward calls `scaled_dot_product_attention` (timm's, transformers', your
    own). Layers below `layer`, inside it or around it stay as they are, and so do subclasses of those seven, except
    timm's LayerNorm and BatchNormAct2d.

    A model exported by torch.export while prepared calls this package's operators: call `restore()` before exporting
    one that must run without the package.

    Args:
        model: the network, not yet compiled.
        layer: as for `PALLoss`.
        example: an input of the model, or a tuple of its positional inputs. The execution order is then found at once,
            in one forward in eval mode without gradients. None finds it in the model's next forward, which itself
            still runs with PyTorch's layers; compile the model after that.

    Returns: a handle whose `restore()` undoes the replacement.

    Raises: ValueError, TypeError for a `layer` that is not in the model; RuntimeError if `example` does not reach it.
    """
    layers = find_layers(model, layer)
    head = PreparedHead(model, layers)
    if example is not None:
        try:
            with torch.no_grad(), in_mode(model, training=False):
                model(*(example if isinstance(example, tuple) else (example,)))
            if not head.ready:
                raise RuntimeError(f"the forward of example did not run layer {', '.join(map(repr, layers))}")
        except BaseException:
            head.restore()
            raise
    return head
