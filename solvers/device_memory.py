"""Turns an out-of-memory error of the devices into one that names a batch size that fits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from sde_lib.checks import refusal

GIB = 2.0**30

Devices = Sequence[Any]  # as jax.devices() gives them


@contextlib.contextmanager
def out_of_memory_explained(
    batch_size: int, devices: Devices, program: Callable[[int], Any]
) -> Iterator[None]:
    """Turns an out-of-memory error raised inside into a ValueError that names a smaller batch size.

    Args:
        batch_size: the batch size used inside, of all devices together.
        devices: the devices that share it.
        program: compiles the program run inside for another batch size, to a ``jax.stages.Compiled``.

    Raises:
        ValueError: if a device runs out of memory inside.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        allowed = f"small enough for the memory of {len(devices)} x {devices[0].device_kind}"
        fix = _advice(batch_size, devices, program)
        raise ValueError(refusal("batch_size", batch_size, allowed, fix)) from error


def _advice(batch_size: int, devices: Devices, program: Callable[[int], Any]) -> str:
    limit = _limit(devices)
    smaller = _half(batch_size, len(devices))
    while smaller:
        if limit is None:
            return f"set it to {smaller}, and halve it again if that does not fit either (it was not tried)"
        try:
            needed = _needed(program(smaller))
        except jax.errors.JaxRuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        else:
            if needed <= limit:
                return (
                    f"set it to {smaller}, which according to the compiler needs {needed / GIB:.2f} of the "
                    f"{limit / GIB:.2f} GiB on each device"
                )
        smaller = _half(smaller, len(devices))
    return "use a smaller network or devices with more memory, since one sample on each does not fit either"


def _is_out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)


def _half(batch_size: int, num_devices: int) -> int:
    """About half of the batch size, in equal shares; 0 if each device has only one sample."""
    return batch_size // num_devices // 2 * num_devices


def _limit(devices: Devices) -> int | None:
    """Bytes that programs may use on each device; None if a device does not report it (CPUs do not)."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    known = [limit for limit in limits if limit is not None]
    return min(known) if len(known) == len(limits) else None


def _needed(program: Any) -> int:
    """Bytes on each device; the results of one call stay there while the next call runs."""
    sizes = program.memory_analysis()
    handed_out = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + 2 * handed_out
