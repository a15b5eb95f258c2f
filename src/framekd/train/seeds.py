"""Random generators, each seeded by a hash of the run's seed, a purpose and the step.

    value = first 63 bits of BLAKE2b("seed/purpose/step/…")

Every step makes its generators anew, so that a run continues at any step without a saved generator state. Decisions
(which clips are mixed, how far a clip is shifted) come from generators on the host: they do not depend on the device.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, *path: int | str) -> int:
    """A seed in 0..2**63-1 for one purpose: the same for the same path, unrelated for another."""
    text = "/".join(map(str, (seed, *path)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, *path: int | str) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.Generator(np.random.PCG64(derive(seed, *path)))


def torch_generator(seed: int, *path: int | str) -> torch.Generator:
    """A torch generator on the host for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *path))
