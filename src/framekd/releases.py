"""The authors' released checkpoints: names, addresses, sizes, and where fetched files are kept.

This is the only list of them: the configuration's defaults, `framekd models` and `--model NAME` all use it.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from framekd.errors import UserError

BASE = "https://github.com/fschmid56/PretrainedSED/releases/download/v0.0.1/"
LICENCE = "MIT"
"""Licence in the authors' repository, https://github.com/fschmid56/PretrainedSED (© 2024 Florian Schmid)."""

_ENCODERS = {  # model → (name in the files, parameters of the encoder, channels of its output)
    "ATST-F": ("ATST-F", 85_419_264, 768),
    "BEATs": ("BEATs", 90_311_792, 768),
    "fPaSST": ("fpasst", 88_421_632, 768),
    "M2D": ("M2D", 85_492_994, 3840),
    "ASiT": ("ASIT", 85_482_240, 768),
}
MODELS = tuple(_ENCODERS)
"""The five architectures of the paper, in the order of its tables."""
STEPS = {"strong": 3, "weak": 2, "ssl": 1}
"""Variant of a checkpoint → the step of the paper after which it was saved."""
_SUFFIXES = {"strong": "strong_1", "weak": "weak", "ssl": "ssl"}
_OUTPUTS = {"strong": 2 * 447, "weak": 527, "ssl": 0}


@dataclass(frozen=True)
class Release:
    """A released checkpoint.

    Attributes:
        model: architecture.
        variant: "strong" (Step 3, 447 classes of frames), "weak" (Step 2, 527 classes of clips) or "ssl" (Step 1, the
            encoder alone).
    """

    model: str
    variant: str

    @property
    def name(self) -> str:
        """What `--model` takes."""
        return self.model if self.variant == "strong" else f"{self.model}:{self.variant}"

    @property
    def step(self) -> int:
        """The step of the paper after which the checkpoint was saved."""
        return STEPS[self.variant]

    @property
    def classes(self) -> str:
        """What the heads predict, in words."""
        return {"strong": "447 of frames", "weak": "527 of clips", "ssl": "none"}[self.variant]

    @property
    def bytes(self) -> int:
        """Size of the weights: 32-bit floats of the encoder and the heads. The file has some kilobytes more."""
        _, parameters, width = _ENCODERS[self.model]
        return 4 * (parameters + _OUTPUTS[self.variant] * (width + 1))

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{_ENCODERS[self.model][0]}_{_SUFFIXES[self.variant]}.pt"

    @property
    def published(self) -> str:
        """Address in the authors' release."""
        return BASE + self.file

    @property
    def url(self) -> str:
        """Address that the file is fetched from: see :func:`mirrored`."""
        return mirrored(self.published)

    @property
    def path(self) -> Path:
        """Where the file is kept."""
        return cache_folder() / "models" / self.file


RELEASES = tuple(Release(model, variant) for model in MODELS for variant in STEPS)


def mirrored(url: str) -> str:
    """`url`; with $FRAMEKD_PUBLISHED (a mirror, or file:///folder), that stands in place of the release's address."""
    base = os.environ.get("FRAMEKD_PUBLISHED")
    return f"{base.rstrip('/')}/{url.removeprefix(BASE)}" if base and url.startswith(BASE) else url


def cache_folder() -> Path:
    """Folder of fetched models: $FRAMEKD_CACHE, else the user's cache folder of the platform."""
    if given := os.environ.get("FRAMEKD_CACHE"):
        return Path(given)
    from platformdirs import user_cache_path

    return user_cache_path("framekd", appauthor=False)


def named(name: str) -> Release | None:
    """The release called `name` (upper and lower case are alike); "NAME:strong" is NAME. None if there is none."""
    wanted = name.casefold().removesuffix(":strong")
    return next((release for release in RELEASES if release.name.casefold() == wanted), None)


def unknown(name: str, *, found: str = "") -> UserError:
    """The error for a name that is neither a release nor a folder with a checkpoint; `found` says what is there."""
    names = {release.name.casefold(): release.name for release in RELEASES}
    near = difflib.get_close_matches(name.casefold(), names, n=1)
    hint = f"did you mean {names[near[0]]}?" if near else f"published models are {', '.join(MODELS)} (framekd models)."
    what = found or "neither a published model nor a folder with a checkpoint"
    return UserError(f"{name}: {what}; {hint}")
