"""Recordings of what devices do: that they hold it, and that no time in them is counted twice."""

import gzip
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from evaluation.runs import profile
from evaluation.runs.profile import latest, longest_operations, recorded


def test_a_recording_holds_what_the_device_ran_and_opens(tmp_path):
    @jax.jit
    def squared(x):
        return jax.lax.fori_loop(0, 20, lambda _, x: jnp.tanh(x @ x), x)

    x = jnp.ones((256, 256)) / 256
    jax.block_until_ready(squared(x))
    with recorded(tmp_path):
        jax.block_until_ready(squared(x))

    operations = longest_operations(tmp_path, count=100)
    # the matrix product, in what the compiler made of it; which one is the longest is the machine's affair
    assert any(it.name.startswith(("dot", "ynn")) for it in operations)
    assert [it.seconds for it in operations] == sorted((it.seconds for it in operations), reverse=True)
    assert sum(it.share for it in operations) == pytest.approx(1)
    assert longest_operations(tmp_path, count=1) == operations[:1]
    perfetto = json.loads(gzip.decompress((latest(tmp_path) / "perfetto_trace.json.gz").read_bytes()))
    assert operations[0].name in {event.get("name") for event in perfetto["traceEvents"]}


def test_time_inside_another_event_counts_once():
    def event(name, start, duration):
        return SimpleNamespace(name=name, start_ns=start * 1e9, duration_ns=duration * 1e9)

    events = [
        event("body", 1, 2),
        event("loop", 0, 10),
        event("kernel", 1, 1),  # in the body, which starts with it
        event("body", 5, 5),  # ends with the loop
        event("kernel", 10, 4),  # begins where the loop ended
    ]
    # the loop's own: 10 - 2 - 5
    assert profile._seconds(reversed(events)) == [
        ("loop", 3),
        ("body", 1),
        ("kernel", 1),
        ("body", 5),
        ("kernel", 4),
    ]
