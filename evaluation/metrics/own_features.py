"""Features by a function of one's own, named MODULE:FUNCTION.

The function gets a batch of uint8 images [b, h, w, c], as a JAX array that is split over the devices. It
returns float features [b, d], or a pair (features [b, d], logits [b, k]), with which there is an Inception
Score too. It may compute with whatever it likes, on the devices or on the host.

Its identity is the SHA-256 of the module's source file and of the files that its attribute ``weights`` names.
Stored statistics and features of other files are refused, as those of other Inception weights are. What the
module imports from further files is not looked at: a file that may change can be named in ``weights``.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from sde_lib.checks import refusal, require

FORM = "MODULE:FUNCTION"
PREPROCESSING = "by the function itself"
WHAT = "a function of uint8 images (b, h, w, c) to float features (b, d), or to (features, logits (b, k))"

# The same image among other images may differ by rounding, in bfloat16 too, relative to the largest value
TOLERANCE = 0.02


@functools.cache  # Python imports a module once: its identity is that of the files as they were then
def load(name: str) -> tuple[Callable[[Array], Any], str]:
    """The function and its identity.

    Args:
        name: MODULE:FUNCTION, of a module that is installed or lies in the current folder.

    Returns:
        function: as it is in the module.
        sha256: of its files.

    Raises:
        ValueError: for a module that cannot be imported, an absent function, or one that another module
            defines.
        FileNotFoundError: for absent weights.
    """
    module_name, _, function_name = name.partition(":")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.append(folder)  # at the end: it hides nothing that is installed
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever its author's code raises
        allowed = f"{FORM}, of a module that is installed or lies in {folder}"
        fix = f"it cannot be imported ({type(error).__name__}: {error}); correct the name or the module"
        raise ValueError(refusal("features", name, allowed, fix)) from error
    source = getattr(module, "__file__", None) or ""
    fix = "write it in a file of your own"
    require(source, "features", name, "a function whose module is a file", fix)
    function: Any = getattr(module, function_name, None)
    near = difflib.get_close_matches(function_name, vars(module), n=1)
    fix = f"did you mean {near[0]!r}?" if near else "define it there"
    require(function is not None, "features", name, f"{FORM}, of a function in {source}", fix)
    require(callable(function), "features", name, WHAT, f"it is a {type(function).__name__}: name a function")
    defined_in = getattr(function, "__module__", None)
    fix = f"name that module, whose file is part of the identity: {defined_in}:{function_name}"
    allowed = f"a function that {module_name} defines itself"
    require(defined_in == module_name, "features", name, allowed, fix)
    weights = getattr(function, "weights", [])
    paths = [weights] if isinstance(weights, str | Path) else weights
    listed = isinstance(paths, list | tuple) and all(isinstance(path, str | Path) for path in paths)
    require(listed, f"{name}.weights", weights, "the path of a file, or a list of paths", "correct it")
    return function, _sha256(name, [source, *paths])


def _sha256(name: str, paths: list[str | Path]) -> str:
    """The SHA-256 of the SHA-256s of files, in their order."""
    whole = hashlib.sha256()
    for path in map(Path, paths):
        if not path.is_file():
            fix = f"correct {name}.weights, which names a file or a list of files"
            raise FileNotFoundError(refusal("features", str(path), "a file with weights", fix))
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """A function of one's own, whose results are checked in every batch.

    Attributes:
        name: MODULE:FUNCTION, for messages.
        function: uint8 images [b, h, w, c] -> features [b, d] or (features [b, d], logits [b, k]).
    """

    name: str
    function: Callable[[Array], Any]

    def __call__(self, images: UInt8[Array, "b h w c"]) -> tuple[np.ndarray, np.ndarray]:
        """Features [b, d] and logits [b, k] on the host; k is 0 where the function gives none.

        Raises:
            ValueError: for anything that is not such features or that is not finite, and for an error in the
                function.
        """
        try:
            found = self.function(images)
        except Exception as error:
            fix = f"it raised {type(error).__name__} for a batch of shape {images.shape}: {error}"
            raise ValueError(refusal("features", self.name, WHAT, fix)) from error
        if isinstance(found, tuple | list) and len(found) == 2:
            features, logits = found
            return self._checked("features", features, images), self._checked("logits", logits, images)
        return self._checked("features", found, images), np.empty((len(images), 0), np.float32)

    def _checked(self, what: str, values: Any, images: Array) -> np.ndarray:
        """In float32 on the host, or refused."""
        count = len(images)
        if is_array := isinstance(values, np.ndarray | Array):
            given = f"{values.dtype} of shape {values.shape}"
        else:
            given = type(values).__name__
        is_float = is_array and jnp.issubdtype(values.dtype, jnp.floating)
        fits = is_float and values.ndim == 2 and len(values) == count and values.shape[1] > 0
        fix = f"for {count} images its {what} are {given}; make them an array of floats of shape ({count}, n)"
        require(fits, "features", self.name, WHAT, fix)
        with np.errstate(over="ignore"):  # to infinity, which is refused
            found = np.asarray(values, np.float32)
        fix = f"some of its {what} are NaN or infinite in float32; check its weights"
        require(bool(np.isfinite(found).all()), "features", self.name, WHAT, fix)
        return found


def sizes(
    forward: Checked, shape: tuple[int, int, int, int], *, put: Callable[[np.ndarray], Array]
) -> tuple[int, int]:
    """Tries a function, and returns how many features d and logits k it gives.

    The function gets a batch of noise, and again one half of it behind black images. Features of an image
    that depend on the other images, or on chance, would make figures that nobody can make again.

    Args:
        forward: the function.
        shape: (b, h, w, c) of the batches that it will get.
        put: puts a batch on the devices.

    Raises:
        ValueError: as ``Checked``, and for an image whose features are not the same in both batches.
    """
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    half = len(noise) // 2
    again = np.concatenate([np.zeros_like(noise[half:]), noise[:half]])
    first, second = forward(put(noise)), forward(put(again))
    for what, before, after in zip(("features", "logits"), first, second, strict=True):
        fix = "evaluate the network without dropout and with the stored means of its normalisations"
        same = before.shape == after.shape
        if same and before.size:
            difference = np.abs(before[:half] - after[-half:]).max()
            same = difference <= TOLERANCE * np.abs(before[:half]).max()
        allowed = f"a function whose {what} of an image do not depend on the other images or on chance"
        require(same, "features", forward.name, allowed, fix)
    return first[0].shape[1], first[1].shape[1]
