"""Counts programs that JAX compiles."""

import contextlib
from collections.abc import Iterator

import jax

_events: list[str] = []
jax.monitoring.register_event_duration_secs_listener(lambda event, duration_secs, **_: _events.append(event))


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """A list that at the end holds an entry for every program compiled (or fetched from the disk) inside."""
    begin = len(_events)
    compiled: list[str] = []
    yield compiled
    compiled += [event for event in _events[begin:] if event == "/jax/core/compile/backend_compile_duration"]
