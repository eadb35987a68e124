"""How large the policies are in the real sizes: parameters by part, bytes an act reads. On the meta device, without memory.

python benchmarks/sizes.py
"""

from __future__ import annotations

import torch
from inference_floor import parameters_by_part, weights_read
from inference_models import FRAMEWORKS, SIZES, make_backbone, make_policy
from rich.console import Console
from rich.table import Table

NAMES = {"3b": "Qwen2.5-VL-3B", "4b": "Qwen3-VL-4B"}


def main() -> int:
    """Print the table."""
    table = Table(title="millions of parameters; GB an act reads in bfloat16")
    for column in ("VLM", "framework", "vision", "language", "head", "all", "GB / act"):
        table.add_column(column, justify="left" if column in ("VLM", "framework") else "right")
    for size, name in NAMES.items():
        for framework in (
            name for name in FRAMEWORKS if name != "fast"
        ):  # which has no head, and words to be fitted
            backbone = make_backbone(SIZES[size], dtype=torch.bfloat16, device="meta")
            policy = make_policy(framework, backbone, head_dtype="bfloat16")
            parts = parameters_by_part(policy)
            cells = [f"{count / 1e6:.0f}" for count in (*parts.values(), sum(parts.values()))]
            table.add_row(name, framework, *cells, f"{weights_read(policy) / 1e9:.1f}")
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
