"""What changes in a torch schedule as it steps, as JSON; what follows from its arguments is left out."""

from collections.abc import Mapping
from typing import Any

PLAIN_TYPES = (str, int, float, bool, type(None))


def plain_state(state: Any) -> Any:
    """Return the entries of a schedule's state that JSON holds: numbers, words, and lists and dicts of them.

    The others (functions, counters of milestones) do not change as the schedule steps.
    """
    if isinstance(state, Mapping):
        return {k: plain_state(v) for k, v in state.items() if isinstance(k, str) and _is_plain(v)}
    return [plain_state(v) for v in state] if isinstance(state, list | tuple) else state


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) for k in value)
    return all(_is_plain(v) for v in value) if isinstance(value, list | tuple) else isinstance(value, PLAIN_TYPES)


def changed(state: Any, start: Any) -> Any:
    """Return the entries of `state` that are others than in `start`; both are results of `plain_state`."""
    if isinstance(state, dict) and isinstance(start, dict):
        return {k: changed(v, start.get(k)) for k, v in state.items() if k not in start or v != start[k]}
    if not isinstance(state, list) or not isinstance(start, list) or len(state) != len(start):
        return state
    inside = all(isinstance(v, dict) for v in (*state, *start))  # the schedules inside a SequentialLR
    return [changed(v, s) for v, s in zip(state, start, strict=True)] if inside else state


def overlaid(state: Any, other: Any) -> Any:
    """Return `state` with the entries of `other` in place of its own, also inside lists and dicts."""
    if isinstance(state, Mapping) and isinstance(other, Mapping):
        return {**state, **{k: overlaid(state[k], v) for k, v in other.items() if k in state}}
    if isinstance(state, list | tuple) and isinstance(other, list | tuple) and len(state) == len(other):
        return type(state)(overlaid(a, b) for a, b in zip(state, other, strict=True))
    return other
