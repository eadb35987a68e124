"""The messages of our own protocol, `vla-agents.v1`: what each must hold, and errors as answers.

    server -> hello    protocol, server, embodiment, horizon, execute, continues, revision, max_bytes, shared_memory
    client -> hello    protocol, client, embodiment (may be left out)
    server -> ready    session
    client -> plan     id, observations [{images, state, instruction}], and where needed slots, seeds, prefixes, committed
    server -> chunks   id, chunks (n, H, D), revision, timing {queue_ms, infer_ms, batch}
    client -> reset    id, slots (may be left out: all)
    client -> ping     id
    client -> share    id, size
    server -> done     id
    server -> shared   id, path, size, nonce, doorbell
    server -> error    id, code, message, remedy, differences

`docs/serving.md` is the specification. An answer to a fault names what was wrong with the message; paths, tracebacks and
what the policy said go to the server's log only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_agents.embodiment import Embodiment
from vla_agents.errors import (
    AuthorizationError,
    EmbodimentMismatchError,
    FrameError,
    ObservationError,
    RemotePolicyError,
    ServerBusyError,
    ServingError,
    VlaAgentsError,
    suggest,
)
from vla_agents.observations import Observation, check_observation

if TYPE_CHECKING:
    from vla_agents.serving.planning import Planned

SUBPROTOCOL = "vla-agents.v1"
PROTOCOL = 1
MAX_OBSERVATIONS = 64  # per request
MAX_ID = 128  # characters

# code -> what the client raises
CODES: dict[str, type[VlaAgentsError]] = {
    "bad_message": FrameError,
    "observation": ObservationError,
    "embodiment": EmbodimentMismatchError,
    "busy": ServerBusyError,
    "draining": ServerBusyError,
    "unauthorized": AuthorizationError,
    "failed": RemotePolicyError,
}


class DrainingError(ServerBusyError):
    """The server is about to stop and takes no new requests."""


def code_of(error: BaseException) -> str:
    """What an error is called on the wire; everything that is not about the message itself has `failed`."""
    if isinstance(error, DrainingError):
        return "draining"
    for code in ("bad_message", "observation", "embodiment", "busy"):
        if isinstance(error, CODES[code]):
            return code
    return "failed"


def error_message(error: BaseException, request_id: str | int | None) -> dict[str, Any]:
    """The answer to a fault."""
    code = code_of(error)
    answer: dict[str, Any] = {"type": "error", "id": request_id, "code": code}
    if code == "failed" or not isinstance(error, VlaAgentsError):
        text = f"the policy failed at request {request_id!r}"
        return answer | {"message": text, "remedy": "the server's log tells why"}
    if isinstance(error, EmbodimentMismatchError):
        return answer | {"message": str(error), "remedy": "", "differences": error.differences}
    return answer | {"message": error.problem, "remedy": error.remedy}


def chunks_message(request: str | int | None, planned: Planned) -> dict[str, Any]:
    """The answer to a `plan`."""
    timing = {
        "queue_ms": planned.queue_s * 1000,
        "infer_ms": planned.infer_s * 1000,
        "batch": planned.batch,
    }
    return {
        "type": "chunks",
        "id": request,
        "chunks": planned.chunks,
        "revision": planned.revision,
        "timing": timing,
    }


def raise_error(answer: Mapping[str, Any]) -> None:
    """The error that an `error` message stands for."""
    code, text = str(answer.get("code")), str(answer.get("message"))
    if code == "embodiment":
        raise EmbodimentMismatchError(
            "the served policy", "this client", [str(line) for line in answer.get("differences") or [text]]
        )
    raise CODES.get(code, ServingError)(text, str(answer.get("remedy") or ""))


# ---- reading requests -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class PlanMessage:
    """A `plan`, checked against the embodiment."""

    observations: list[Observation]
    slots: list[int]
    seeds: list[int | None]
    prefixes: list[np.ndarray] | None
    committed: int


def fields(message: Any, required: Sequence[str] = (), optional: Sequence[str] = ()) -> dict[str, Any]:
    """The message, if it is a map with these keys and no others."""
    if not isinstance(message, dict):
        raise FrameError(f"a message that is a {type(message).__name__}", "send a map with a key 'type'")
    for key in message:
        if key not in required and key not in optional:
            known = [*required, *optional]
            raise FrameError(
                f"unknown key {key[:40]!r}{suggest(key[:40], known)}", f"known: {', '.join(known)}"
            )
    missing = [key for key in required if key not in message]
    if missing:
        raise FrameError(f"a message without {', '.join(missing)}")
    return message


def request_id(message: Any) -> str | int | None:
    """The id of a request, which its answer carries; None where there is none that could be sent back."""
    found = message.get("id") if isinstance(message, dict) else None
    if isinstance(found, str) and len(found) <= MAX_ID:
        return found
    return found if type(found) is int and abs(found) < 2**53 else None


def read_plan(message: dict[str, Any], embodiment: Embodiment, horizon: int, continues: bool) -> PlanMessage:
    """A `plan` message.

    Raises:
        FrameError: It is not one.
        ObservationError: An observation does not fit the embodiment.
    """
    fields(message, ("type", "observations"), ("id", "slots", "seeds", "prefixes", "committed"))
    given = message["observations"]
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_OBSERVATIONS:
        raise FrameError(f"observations must be a list of 1 to {MAX_OBSERVATIONS} maps")
    count = len(given)
    observations = [
        read_observation(obs, embodiment, None if count == 1 else index) for index, obs in enumerate(given)
    ]
    slots = _numbers(message, "slots", count, range(count), 0, 2**16)
    seeds = _numbers(message, "seeds", count, [None] * count, 0, 2**63, none=True)
    prefixes, committed = _read_prefixes(message, count, embodiment.action_dim, horizon, continues)
    return PlanMessage(observations, slots, seeds, prefixes, committed)


def read_observation(obs: Any, embodiment: Embodiment, slot: int | None = None) -> Observation:
    """A single observation that fits; its state as float32 of its own.

    Raises:
        FrameError: It is no map of this kind.
        ObservationError: It does not fit.
    """
    fields(obs, ("instruction",), ("images", "state"))
    images = obs.get("images", {})
    if not isinstance(images, dict):
        raise FrameError("images must be a map from camera to array")
    found: Observation = {"images": images, "instruction": obs["instruction"]}
    if obs.get("state") is not None:
        found["state"] = as_vector(obs["state"], "state")
    check_observation(found, embodiment, slot=slot)
    return found


def as_vector(value: Any, name: str) -> np.ndarray:
    """An array or list of numbers as float32 of its own (nobody else can change it any more)."""
    if isinstance(value, np.ndarray) and value.dtype == np.float32:
        return value.copy()
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as that
            return np.array(value, np.float32)
    except (TypeError, ValueError):
        raise FrameError(f"{name} is no vector of numbers") from None


def _numbers(
    message: dict[str, Any],
    key: str,
    count: int,
    default: Sequence[Any],
    low: int,
    high: int,
    *,
    none: bool = False,
) -> list[Any]:
    found = message.get(key)
    if found is None:
        return list(default)
    good = isinstance(found, list) and len(found) == count
    if not good or not all((none and n is None) or (type(n) is int and low <= n < high) for n in found):
        raise FrameError(f"{key} must be a list of {count} whole numbers from {low} on")
    return found


def _read_prefixes(
    message: dict[str, Any], count: int, width: int, horizon: int, continues: bool
) -> tuple[list[np.ndarray] | None, int]:
    given, committed = message.get("prefixes"), message.get("committed", 0)
    if given is None:
        return None, 0
    if not continues:
        raise FrameError("this policy cannot continue a chunk", "plan without prefixes")
    prefixes = as_vector(given, "prefixes")
    if prefixes.ndim != 3 or prefixes.shape[::2] != (count, width) or not 1 <= prefixes.shape[1] <= horizon:
        raise FrameError(f"prefixes of shape {prefixes.shape}, expected ({count}, 1..{horizon}, {width})")
    if not np.isfinite(prefixes).all():
        raise FrameError("prefixes that are not finite")
    if type(committed) is not int or not 0 <= committed <= prefixes.shape[1]:
        raise FrameError("committed must be a whole number, at most the length of the prefixes")
    return list(prefixes), committed


def read_embodiment(data: Any) -> Embodiment:
    """The embodiment of a `hello`.

    Raises:
        FrameError: It is none.
    """
    if not isinstance(data, dict):
        raise FrameError("embodiment must be a map")
    _check_sizes(data)
    try:
        return Embodiment.from_dict(data, where="embodiment")
    except VlaAgentsError as error:
        raise FrameError(error.problem, error.remedy) from error
    except (TypeError, ValueError, KeyError, OverflowError):
        raise FrameError("embodiment is none", "send Embodiment.to_dict()") from None


def _check_sizes(data: dict[str, Any]) -> None:
    """Refuse sizes that would make an embodiment's own checks expensive."""
    for key, names in (("action", ("size",)), ("state", ("size",)), ("cameras", ("height", "width"))):
        entries = data.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise FrameError(f"{key} of the embodiment must be a list of maps")
        for entry in entries:
            for name in names:
                if type(entry.get(name)) is not int or not 1 <= entry[name] <= 2**16:
                    raise FrameError(
                        f"{name} in {key} of the embodiment must be a whole number from 1 to {2**16}"
                    )
