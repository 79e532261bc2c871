"""A workdir belongs to one config: a file in it says which, so that no other config writes there.

A folder without that file is not a workdir yet. What it holds is somebody else's, and is not written over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from evaluation.store.files import atomic_file, make_folder, read_file
from sde_lib.checks import refusal, require

# of an identity, which are not keys of a config: what is in a file that a key or flag names
NO_KEYS = ("checkpoint_sha256", "images", "images_sha256")


def claim(
    workdir: epath.PathLike,
    identity: Mapping[str, Any],
    *,
    file: str = "identity.json",
    holds: str = "samples",
    writes: Iterable[str] = (),
) -> None:
    """Marks a new workdir with an identity, or checks that it already has this one.

    Args:
        workdir: created if it does not exist.
        identity: dotted config key -> value in JSON's types; ``NO_KEYS`` may be among the keys.
        file: the file in the workdir that holds the identity. It is written atomically.
        holds: what the workdir holds, for messages.
        writes: names of the files and folders that will be written to the workdir. A folder that is not
            marked yet must not hold any of them.

    Raises:
        ValueError: for a workdir with another identity, naming every key that differs with both values; for
            a file that is not JSON; and for an unmarked folder with one of ``writes``.
        OSError: if the file cannot be read or written, with the path, the reason and the fix.
    """
    path = epath.Path(workdir) / file
    content = json.dumps(identity, indent=1, sort_keys=True).encode()
    if read_file(path) is None:
        taken = [name for name in writes if (path.parent / name).exists()]
        # asked again: another process may have marked the folder and written to it in the meantime
        require(
            not taken or read_file(path) is not None,
            "workdir",
            str(workdir),
            f"a folder that is new or was made for {holds} of this config",
            f"choose another workdir, or move {' and '.join(taken)} away, which would be written over",
        )
    if read_file(path) is None:
        make_folder(workdir)
        with atomic_file(path) as opened:
            opened.write(content)
    written = read_file(path) or b""  # also after writing: another process may have done so at the same time
    try:
        ours, theirs = json.loads(content), json.loads(written)
    except ValueError:
        fix = f"choose another workdir, since this one does not say whose {holds} it holds"
        raise ValueError(refusal(f"content of {path}", written[:40], "JSON", fix)) from None
    differing = [
        f"{key if key in NO_KEYS else f'config.{key}'} = {_shown(ours, key)} (there {_shown(theirs, key)})"
        for key in sorted(ours | theirs)
        if _shown(ours, key) != _shown(theirs, key)
    ]
    require(
        not differing,
        "workdir",
        str(workdir),
        f"a folder that is new or holds {holds} of this config",
        f"choose another workdir, or set back {', '.join(differing)}",
    )


def _shown(identity: Mapping[str, Any], key: str) -> str:
    return repr(identity[key]) if key in identity else "absent"
