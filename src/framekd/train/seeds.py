"""Where randomness comes from: every generator is a hash of the run's seed, a purpose and the step.

    value = first 63 bits of BLAKE2b("seed/purpose/step/…")

Generators are made anew for each step instead of being carried along: a run that continues at step 7,000 needs none of
the 7,000 before, and no state of a generator is ever saved. Decisions (who mixes with whom, how far a clip is shifted)
come from generators on the host, so that they do not depend on the device.
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
