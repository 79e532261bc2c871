"""When a batch does not fit into the devices' memory: an error that names one that does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

GIB = 2.0**30

Devices = Sequence[Any]  # as jax.devices() gives them


@contextlib.contextmanager
def out_of_memory_explained(
    batch_size: int, devices: Devices, program: Callable[[int], Any]
) -> Iterator[None]:
    """Turns a device's running out of memory, inside, into a ValueError with a smaller batch size.

    Args:
        batch_size: that of all devices together which is tried inside.
        devices: that share it.
        program: compiles what is run inside for another batch size, to a ``jax.stages.Compiled``.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        kind = devices[0].device_kind
        raise ValueError(
            f"batch_size = {batch_size}: allowed is what fits into the memory of {len(devices)} x {kind}; "
            + _advice(batch_size, devices, program)
        ) from error


def _advice(batch_size: int, devices: Devices, program: Callable[[int], Any]) -> str:
    limit = _limit(devices)
    smaller = _half(batch_size, len(devices))
    while smaller:
        if limit is None:
            return f"set it to {smaller}, and halve that again if it does not fit (it has not been tried)"
        try:
            needed = _needed(program(smaller))
        except jax.errors.JaxRuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        else:
            if needed <= limit:
                return (
                    f"set it to {smaller}, which by the compiler's count needs {needed / GIB:.2f} of the "
                    f"{limit / GIB:.2f} GiB on each device"
                )
        smaller = _half(smaller, len(devices))
    return "one sample on each does not fit either: take a smaller network, or devices with more memory"


def _is_out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)


def _half(batch_size: int, num_devices: int) -> int:
    """Half of it that the devices can share; 0 where they have one sample each."""
    return batch_size // num_devices // 2 * num_devices


def _limit(devices: Devices) -> int | None:
    """Bytes that programs may use on each device; None where a device does not tell (CPUs do not)."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    known = [limit for limit in limits if limit is not None]
    return min(known) if len(known) == len(limits) else None


def _needed(program: Any) -> int:
    """Bytes on each device; what a call hands out stays there while the next one runs."""
    sizes = program.memory_analysis()
    handed_out = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + 2 * handed_out
