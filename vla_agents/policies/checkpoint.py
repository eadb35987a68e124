"""Policies on disk. A checkpoint is a folder, and holds no pickle:

    model.safetensors   the weights
    policy.yaml         kind and configuration
    embodiment.json     what observations and actions mean
    stats.json          normalisation statistics and modes
    bodies.json         what lies between the policy and the bodies it was trained on, where anything does
    vlm/                config, tokenizer and pixel settings of the VLM (no weights)
    fast/               the action tokenizer (Qwen-FAST only)

It is written to a temporary folder and renamed, so a folder with the final name is complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_agents.bodies import check_bodies, load_bodies, save_bodies
from vla_agents.config import from_dict, load_yaml, save_yaml, to_dict
from vla_agents.embodiment import Embodiment
from vla_agents.errors import CheckpointError, ConfigError
from vla_agents.normalize import Normalizer, load_normalizers, save_normalizers
from vla_agents.policies.policy import Policy
from vla_agents.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from vla_agents.policies.policy_config import LoRAConfig

POLICIES = Registry(
    "policy",
    {
        "qwen_fast": "vla_agents.policies.qwen_fast:QwenFAST",
        "qwen_gr00t": "vla_agents.policies.qwen_gr00t:QwenGR00T",
        "qwen_oft": "vla_agents.policies.qwen_oft:QwenOFT",
        "qwen_pi": "vla_agents.policies.qwen_pi:QwenPI",
    },
)
FORMAT = 1
FILES = ("model.safetensors", "policy.yaml", "embodiment.json", "stats.json")


def make_policy(
    kind: str, config: Any, embodiment: Embodiment, normalizers: Mapping[str, Normalizer], *, seed: int = 0
) -> Policy:
    """A policy to train, its VLM with weights from `config.vlm`, its head initialised from `seed`."""
    import torch

    from vla_agents.policies.backbones import load_backbone
    from vla_agents.policies.learning import prepare_learning
    from vla_agents.policies.pretrained import resolve_vlm

    cls = POLICIES.get(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of what a backbone has beside its pretrained weights
        backbone = load_backbone(resolve_vlm(config.vlm), weights=True, **_options(config))
        torch.manual_seed(seed)
        if config.tasks:
            backbone.add_tokens(config.task_tokens)
        policy: Policy = cls(config, backbone, embodiment, normalizers)
        prepare_learning(policy)
    return policy


def _options(config: Any) -> dict[str, Any]:
    """What of a policy's configuration is for its backbone."""
    return {name: getattr(config, name) for name in ("dtype", "attention", "image_size")}


def save_policy(
    policy: Policy,
    folder: str | Path,
    *,
    extra: Mapping[str, Any] | None = None,
    attach: Mapping[str, Path] | None = None,
) -> Path:
    """Write a checkpoint; an older one of the same name is replaced only when the new one is complete.

    Args:
        policy: A registered policy.
        folder: Where.
        extra: Plain facts to keep in policy.yaml under `extra` (step, metrics, ...).
        attach: Folders to move in under these names, so that they appear together with the checkpoint.
    """
    kind = next((name for name in POLICIES if POLICIES.get(name) is type(policy)), None)
    if kind is None:
        raise CheckpointError(
            folder, f"{type(policy).__name__} is not a registered policy", "POLICIES.register it first"
        )

    def write(temporary: Path) -> None:
        config = {"format": FORMAT, "policy": kind, "config": policy.config, "extra": dict(extra or {})}
        save_yaml(config, temporary / "policy.yaml")
        policy.embodiment.save(temporary / "embodiment.json")
        save_normalizers(temporary / "stats.json", policy.normalizers)
        save_bodies(temporary, policy.bodies)
        policy.save_parts(temporary)

    return write_checkpoint(policy, folder, write, attach)


def write_checkpoint(
    model: nn.Module,
    folder: str | Path,
    write: Callable[[Path], None],
    attach: Mapping[str, Path] | None = None,
) -> Path:
    """`model.safetensors` and whatever `write` adds, in a folder that appears complete or not at all."""
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        save_model(model, str(temporary / "model.safetensors"))
        write(temporary)
        for name, source in (attach or {}).items():
            os.rename(source, temporary / name)
        _sync(temporary)
        replace_folder(temporary, folder)
    except (OSError, SafetensorError) as error:  # the latter on a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            folder, f"could not be written ({error})", "free some space; older checkpoints are intact"
        ) from error
    return folder


def load_policy(
    path: str | Path,
    *,
    device: str | None = None,
    merge_lora: bool = False,
    changes: Mapping[str, Any] | None = None,
    **starvla: Any,
) -> Policy:
    """A policy from a checkpoint folder, a run folder, a hub id, or a StarVLA run folder or weights file.

    Args:
        path: A checkpoint; or a run, of which `best` is taken, else `last`; or `"owner/name"` on the hub; or StarVLA's.
        device: Where to put it; by default a GPU where there is one.
        merge_lora: Add LoRA adapters, where there are any, to the weights: for acting. Else they stay, for learning on.
        changes: Configuration to use in place of the checkpoint's, of how the policy learns and computes (`CHANGEABLE`). If
            `lora` changes, the adapters there are are added to the weights first.
        starvla: For a StarVLA checkpoint, what its files do not say (see `vla_agents.policies.starvla.load.load_starvla`).

    Raises:
        CheckpointError: Naming the file and what is wrong with it.
    """
    import torch

    from vla_agents.policies.backbones import load_backbone, uninitialized
    from vla_agents.policies.learning import prepare_learning
    from vla_agents.policies.starvla.run import is_starvla

    if is_starvla(path):
        from vla_agents.policies.starvla.load import load_starvla

        if changes:
            raise ConfigError(
                f"{', '.join(changes)}: not for StarVLA checkpoints", "convert it: vla-agents convert"
            )
        return load_starvla(path, device=device, **starvla)
    if starvla:
        raise ConfigError(
            f"{', '.join(starvla)} is for StarVLA checkpoints, and {path} is none", "leave it out"
        )
    folder = find_checkpoint(path)
    kind, saved = _read_config(folder / "policy.yaml")
    config, cls = _changed(saved, changes or {}, merge_lora), POLICIES.get(kind)
    embodiment = Embodiment.load(folder / "embodiment.json")
    normalizers = load_normalizers(folder / "stats.json", embodiment)
    with uninitialized():
        backbone = load_backbone(folder / "vlm", weights=False, **_options(config))
        policy = cls(config, backbone, embodiment, normalizers, **cls.load_parts(folder))
    policy.bodies = load_bodies(folder)
    check_bodies(policy.bodies, embodiment, folder)
    if config.lora == saved.lora and (not saved.lora.rank or config.freeze == saved.freeze):
        prepare_learning(policy)
        _read_weights(policy, folder / "model.safetensors", kind)
    else:
        _read_weights(policy, folder / "model.safetensors", kind, saved.lora)
        prepare_learning(policy)
    return policy.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def _read_config(file: Path) -> tuple[str, Any]:
    """Kind and configuration of a policy.yaml."""
    record = load_yaml(file)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(file, f"format {(record or {}).get('format')!r}, this version reads {FORMAT}")
    cls = POLICIES.get(record["policy"])
    return record["policy"], from_dict(cls.config_class, record["config"], where=str(file))


def _changed(config: Any, changes: Mapping[str, Any], merge_lora: bool) -> Any:
    """A configuration with other settings of how to learn and compute."""
    from vla_agents.policies.policy_config import CHANGEABLE, LoRAConfig

    fixed = [name for name in changes if name not in CHANGEABLE]
    if fixed:
        raise ConfigError(
            f"{', '.join(fixed)} cannot be changed: the weights are made for it",
            f"what can be: {', '.join(CHANGEABLE)}",
        )
    changed = dict(changes) | ({"lora": LoRAConfig()} if merge_lora else {})
    return from_dict(type(config), to_dict(config) | to_dict(changed), where="changes")


def _read_weights(policy: Policy, file: Path, kind: str, merge: LoRAConfig | None = None) -> None:
    """A checkpoint's weights into a policy, adapters merged where `merge` is theirs."""
    from vla_agents.policies.lora import merge_weights
    from vla_agents.policies.starvla.run import guess_framework
    from vla_agents.policies.starvla.weights import starvla_names
    from vla_agents.policies.weights import put_weights, read_safetensors

    weights = read_safetensors(file)
    if merge is not None and merge.rank:
        weights = merge_weights(weights, merge)
    misfit = put_weights(policy, weights)
    if misfit:
        looks = guess_framework(starvla_names(weights)) or "none of our policies"
        raise CheckpointError(
            file,
            f"the weights do not fit a {kind} of this configuration; they look like {looks}\n{misfit.report()}",
            "copy the whole checkpoint again: policy.yaml, vlm/ and model.safetensors belong together",
        )


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder behind a path or hub id; `CheckpointError` says what is missing."""
    folder = Path(path)
    if not folder.exists():
        folder = _from_hub(path)
    for candidate in (folder, folder / "best", folder / "last"):
        if (candidate / "policy.yaml").is_file():
            for name in FILES:
                if not (candidate / name).is_file():
                    raise CheckpointError(
                        candidate, f"the file {name} is missing", "copy the whole folder again"
                    )
            return candidate
    raise CheckpointError(
        path,
        "no checkpoint here (no policy.yaml, neither in best/ nor in last/)",
        "give the folder that `vla-agents train` wrote",
    )


def _from_hub(path: str | Path) -> Path:
    text = str(path)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise CheckpointError(
            path, "no such folder", "give a checkpoint folder, a run folder, or a hub id owner/name"
        )
    try:
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(text, allow_patterns=["*.safetensors", "*.json", "*.yaml", "*.jinja", "vlm/*"])
        )
    except (OSError, ValueError) as error:  # the hub's errors derive from these
        raise CheckpointError(path, f"no such folder, and not to be had from the hub ({error})") from error


def replace_folder(temporary: Path, final: Path) -> None:
    """Put a complete folder in the place of an older one.

    Between the two renames the older one lies beside it as `.NAME.PID.old`; whoever needs a name that is complete at every
    instant gives each checkpoint a folder of its own and moves a link (as the trainer does).
    """
    old = final.with_name(f".{final.name}.{os.getpid()}.old")
    if final.exists():
        os.rename(final, old)
    try:
        os.rename(temporary, final)
    except OSError:
        if old.exists():
            os.rename(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Force the files to the disk before the folder gets its name."""
    for file in (*folder.rglob("*"), folder):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
