"""A StarVLA run on disk: its config (old and new key names), its statistics, its weights.

    RUN/config.yaml               keys that were read while training;  config.full.yaml  all keys
    RUN/dataset_statistics.json   {tag: {"action": {"mean": [...], "q01": [...], "mask": [...]}, "state": {...}}}
    RUN/checkpoints/steps_N_pytorch_model.pt  or  steps_N_model.safetensors;  or in RUN/final_model/

Weights are read without running code from the file (`weights_only=True`); a pickle that holds code is refused.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # only to recognise torch's refusal
from typing import Any

from torch import Tensor

from vla_agents.config import load_yaml
from vla_agents.errors import CheckpointError, ConfigError

FRAMEWORKS = {"qwen_fast": "QwenFast", "qwen_oft": "QwenOFT", "qwen_pi": "QwenPI", "qwen_gr00t": "QwenGR00T"}
"""Our name -> StarVLA's."""
_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_MISSING = object()
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StarVLARun:
    """What a run folder holds.

    Args:
        folder: With config.yaml and dataset_statistics.json.
        weights: The chosen weights file.
        config: The whole config, nested.
        statistics: Embodiment tag -> statistics; empty where the file is missing.
    """

    folder: Path
    weights: Path
    config: dict[str, Any]
    statistics: dict[str, Any]

    def get(self, *names: str, default: Any = _MISSING) -> Any:
        """The value of the first of these dotted keys that is there and not null (newest name first)."""
        for name in names:
            value: Any = self.config
            for key in name.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                return value
        if default is _MISSING:
            raise CheckpointError(
                self.folder / "config.yaml", f"no key {' or '.join(names)}", "is it StarVLA's own config?"
            )
        return default

    @property
    def framework(self) -> str:
        """Our name of the framework the config names; empty where it names none."""
        name = str(self.get("framework.name", "framework.framework_py", "framework_py", default=""))
        return normal_name(name)

    @property
    def horizon(self) -> int:
        """H: `action_horizon`, formerly `future_action_window_size + 1`."""
        head = "framework.action_model."
        if self.get(head + "past_action_window_size", default=0):
            raise CheckpointError(
                self.folder / "config.yaml",
                "past_action_window_size is not 0: past actions are predicted too",
                "such checkpoints are not supported",
            )
        new = self.get(head + "action_horizon", default=None)
        old = self.get(head + "future_action_window_size", default=None)
        if new is not None and old is not None and int(new) != int(old) + 1:
            log.warning(
                "%s: action_horizon %s contradicts future_action_window_size %s; the first counts, as in StarVLA",
                self.folder / "config.yaml", new, old,
            )  # fmt: skip
        if new is None and old is None:
            self.get(head + "action_horizon", head + "future_action_window_size")
        return int(new) if new is not None else int(old) + 1

    @property
    def data_mix(self) -> str:
        """Name of the data it was trained on, e.g. `"libero_goal"`."""
        return str(self.get("datasets.vla_data.data_mix", "datasets.vla_data.dataset_mix", default=""))

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the pictures before the VLM's own processor; StarVLA's data loader gives 224 x 224."""
        width, height = self.picture_size("obs_image_size") or self.picture_size("image_size") or (224, 224)
        return height, width

    def picture_size(self, key: str) -> tuple[int, int] | None:
        """(width, height), as Pillow's resize takes it, of a key of `datasets.vla_data`; None where it is not there."""
        size = self.get(f"datasets.vla_data.{key}", default=None)
        if size is None:
            return None
        width, height = (size, size) if isinstance(size, int) else size
        return int(width), int(height)

    @property
    def prompt(self) -> str:
        """Template of the user text."""
        return str(self.get("datasets.vla_data.CoT_prompt", default="{instruction}"))


def normal_name(name: str) -> str:
    """`"QwenGR00T"`, `"qwen-gr00t"`, `"starvla/QwenGR00T"` -> `"qwen_gr00t"`; what is none of the four stays as it is."""
    plain = re.sub(r"[^a-z0-9]", "", name.rsplit("/", 1)[-1].lower())
    return next((ours for ours in FRAMEWORKS if ours.replace("_", "") == plain), name)


def is_starvla(path: str | Path) -> bool:
    """Whether a path is a weights file, or a folder with StarVLA's config.yaml and no checkpoint of ours."""
    path = Path(path)
    if path.is_file():
        return path.suffix in _SUFFIXES
    return path.is_dir() and (path / "config.yaml").is_file() and not (path / "policy.yaml").is_file()


def read_run(path: str | Path) -> StarVLARun:
    """A run folder, or one of its weights files."""
    path = Path(path)
    if path.is_file():
        weights = path
        folder = next((p for p in path.resolve().parents[:3] if (p / "config.yaml").is_file()), None)
        if folder is None:
            raise CheckpointError(
                path, "no config.yaml in the folder above it", "keep StarVLA's layout: RUN/checkpoints/FILE"
            )
    else:
        folder = path
        if not (folder / "config.yaml").is_file():
            raise CheckpointError(path, "no config.yaml here", "give a StarVLA run folder or a weights file")
        weights = _newest(folder)
    config: dict[str, Any] = {}
    for name in (
        "config.full.yaml",
        "config.yaml",
    ):  # the second holds what was really read: it has the last word
        if (folder / name).is_file():
            config = _merge(config, load_yaml(folder / name))
    return StarVLARun(folder, weights, config, _statistics(folder))


def _newest(folder: Path) -> Path:
    """Of the highest step; safetensors before pickles of the same step."""
    found = [p for p in folder.glob("checkpoints/*") if p.suffix in _SUFFIXES]
    found = found or [p for p in folder.glob("final_model/*") if p.suffix in _SUFFIXES]
    if not found:
        raise CheckpointError(
            folder, "no weights in checkpoints/ or final_model/", "copy steps_N_pytorch_model.pt there"
        )

    def order(file: Path) -> tuple[int, bool]:
        step = re.search(r"steps_(\d+)", file.name)
        return int(step[1]) if step else -1, file.suffix == ".safetensors"

    return max(found, key=order)


def _merge(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {key: _merge(base.get(key), over[key]) if key in over else base[key] for key in base | over}
    return over


def _statistics(folder: Path) -> dict[str, Any]:
    file = folder / "dataset_statistics.json"
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(file, f"not JSON ({error})", "copy the file again") from error
    if not isinstance(data, dict) or not all(isinstance(v, dict) and "action" in v for v in data.values()):
        raise CheckpointError(file, "not StarVLA's statistics ({tag: {'action': ...}})", "copy it again")
    return data


def read_weights(file: Path) -> dict[str, Tensor]:
    """StarVLA's state dict, on the CPU. A truncated file or a pickle with code is a `CheckpointError`."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(str(file))
        data = torch.load(str(file), map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise CheckpointError(
            file,
            f"it holds more than tensors, which a pickle runs as code: refused{_what_code(error)}",
            "convert it to .safetensors on a machine you can afford to lose, or ask its author to",
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise CheckpointError(
            file, f"damaged or incomplete ({_first_line(error)})", "copy the file again"
        ) from error
    if isinstance(data, Mapping) and isinstance(data.get("state_dict"), Mapping):
        data = data["state_dict"]
    if not isinstance(data, Mapping) or not all(isinstance(value, Tensor) for value in data.values()):
        raise CheckpointError(file, "not a state dict (names -> tensors)", "give StarVLA's own weights file")
    return {key.removeprefix("module."): value for key, value in data.items()}


def _what_code(error: Exception) -> str:
    """ " (it names posix.system)", where torch's refusal says so; its advice to allow everything is not passed on."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" (it names {found[1]})" if found else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200]


def guess_framework(weights: Mapping[str, Tensor]) -> str:
    """Our name of the framework that parameter names and shapes look like; empty for none."""
    head = {key for key in weights if key.startswith("action_model.")}
    if not head:
        return "qwen_fast" if any(key.startswith("qwen_vl_interface.") for key in weights) else ""
    if any(key.startswith(("action_model.model.fc1.", "action_model.model.hidden.")) for key in head):
        return "qwen_oft"
    last, decoder = (
        weights.get(f"action_model.{name}.weight") for name in ("model.proj_out_2", "action_decoder.layer1")
    )
    if last is None or decoder is None:
        return ""
    # GR00T's action MLP reads the last projection; PI's reads the blocks, and its projection (of 26) leads nowhere.
    return "qwen_gr00t" if last.shape[0] == decoder.shape[1] and last.shape[0] != 26 else "qwen_pi"


def require_framework(name: str) -> str:
    """The name, if it is one of the four."""
    if normal_name(name) not in FRAMEWORKS:
        raise ConfigError(f"{name!r} is no framework that can be loaded", f"known: {', '.join(FRAMEWORKS)}")
    return normal_name(name)
