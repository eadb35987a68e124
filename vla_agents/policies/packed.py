"""Linear layers for few rows on a CPU: their weights are kept once more, in the order in which the kernel reads them.

A flow head multiplies a few dozen tokens with large matrices, again at every denoising step. At that shape a good part of
the time goes into bringing the weights into the kernel's order (41 rows, 768 x 3072, one thread: 3.7 ms, packed 2.7 ms). So
where nothing learns, on a CPU and in float32, oneDNN's order is made once and kept. `torch.compile` does the same by
itself ("freezing"), so compiled graphs see plain layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_ROWS = 96
"""With more rows the time is in the arithmetic."""
_MOST_WEIGHTS = 1 << 24  # a larger matrix is not kept twice: policies of billions of parameters would not fit


class PackedLinear(nn.Linear):
    """`nn.Linear` with the same parameters. A change of the weight in place is noticed; one through `.data` is not."""

    _packed: tuple[Any, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) -> (…, outputs)."""
        packed = self._packed_weight() if self._suits(x) else None
        if packed is None:
            return F.linear(x, self.weight, self.bias)
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, self.bias, "none", [], "")
        return made

    def _suits(self, x: Tensor) -> bool:
        weight = self.weight
        return (
            not torch.compiler.is_compiling()
            and not self.training
            and not torch.is_grad_enabled()
            and x.device.type == "cpu"
            and x.dtype == weight.dtype == torch.float32
            and 0 < x.numel() <= MOST_ROWS * x.shape[-1]
            and weight.numel() < _MOST_WEIGHTS
            and not weight.is_inference()  # whose changes cannot be seen
            and torch.backends.mkldnn.is_available()
        )

    def _packed_weight(self) -> Tensor:
        key = (self.weight._version, self.weight.data_ptr())
        if self._packed is None or self._packed[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._packed = (key, torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), MOST_ROWS))
        return self._packed[1]

    def train(self, mode: bool = True) -> PackedLinear:
        """As `nn.Module.train`; forgets the copy."""
        self._packed = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        self._packed = None
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles do without: the packed weight is made anew."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}
