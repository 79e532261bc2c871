"""Samples on disk.

- ``samples``: the sample store, with numbered shards of grey levels.
- ``claims``, ``processes``: how processes share the shards, and know which of them live.
- ``workdir``: the identity of a workdir, so that no other config writes there.
- ``files``, ``archives``: files that are whole or not there, on disks and object stores.
"""
