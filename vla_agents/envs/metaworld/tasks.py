"""Meta-World's fifty tasks: their names, and what to tell a policy.

The benchmark has no language, only names; these sentences say what each environment rewards.
"""

from __future__ import annotations

from typing import Any

from vla_agents.errors import ConfigError, MissingDependencyError, UnknownNameError

INSTRUCTIONS: dict[str, str] = {
    "assembly": "pick up the nut and put it over the peg",
    "basketball": "drop the basketball through the hoop",
    "bin-picking": "move the puck from the one bin into the other",
    "box-close": "put the lid on the box",
    "button-press": "press the button",
    "button-press-topdown": "press the button from above",
    "button-press-topdown-wall": "reach over the wall and press the button from above",
    "button-press-wall": "reach around the wall and press the button",
    "coffee-button": "press the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "lift the nut off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-open": "open the door",
    "door-unlock": "unlock the door",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-close": "turn the faucet clockwise",
    "faucet-open": "turn the faucet counter-clockwise",
    "hammer": "hammer the nail into the wall",
    "hand-insert": "put the gripper into the hole",
    "handle-press": "press the handle down",
    "handle-press-side": "press the handle down from the side",
    "handle-pull": "pull the handle up",
    "handle-pull-side": "pull the handle up from the side",
    "lever-pull": "pull the lever",
    "peg-insert-side": "insert the peg into the side of the box",
    "peg-unplug-side": "pull the peg out of the side of the box",
    "pick-out-of-hole": "take the puck out of the hole",
    "pick-place": "carry the puck to the goal",
    "pick-place-wall": "carry the puck over the wall to the goal",
    "plate-slide": "slide the plate into the cabinet",
    "plate-slide-back": "slide the plate back out of the cabinet",
    "plate-slide-back-side": "slide the plate out of the cabinet sideways",
    "plate-slide-side": "slide the plate into the cabinet sideways",
    "push": "push the puck to the goal",
    "push-back": "push the block back to the goal",
    "push-wall": "push the puck around the wall to the goal",
    "reach": "reach the goal",
    "reach-wall": "reach around the wall to the goal",
    "shelf-place": "put the block on the shelf",
    "soccer": "push the ball into the goal",
    "stick-pull": "pull the thermos with the stick",
    "stick-push": "push the thermos with the stick",
    "sweep": "sweep the block off the table",
    "sweep-into": "sweep the block into the hole",
    "window-close": "close the window",
    "window-open": "open the window",
}
MT10 = (
    "reach", "push", "pick-place", "door-open", "drawer-open", "drawer-close", "button-press-topdown", "peg-insert-side",
    "window-open", "window-close",
)  # fmt: skip
GROUPS: dict[str, tuple[str, ...]] = {"mt10": MT10, "mt50": tuple(INSTRUCTIONS)}


def select_tasks(wanted: Any) -> tuple[str, ...]:
    """The tasks that `wanted` names: a name, with or without the version `-v3`; `"mt10"`, `"mt50"`; or several names."""
    if isinstance(wanted, str) and wanted in GROUPS:
        return GROUPS[wanted]
    names = (wanted,) if isinstance(wanted, str) else wanted
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"task is {wanted!r}", f"give a name, several names, or one of {', '.join(GROUPS)}")
    plain = tuple(name.removesuffix("-v3") for name in names)
    for name in plain:
        if name not in INSTRUCTIONS:
            raise UnknownNameError("Meta-World task", name, (*INSTRUCTIONS, *GROUPS))
    return plain


def require_metaworld() -> None:
    """Raise `MissingDependencyError` unless the package is installed."""
    from importlib.util import find_spec

    if find_spec("metaworld") is None:
        raise MissingDependencyError("metaworld", "metaworld", "vla_agents/MetaWorld-v0")
