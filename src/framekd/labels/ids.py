"""Names of clips and classes: what is one, and what is refused."""

from __future__ import annotations

import re

_YTID = re.compile(r"[A-Za-z0-9_-]{11}")
_CLIP = re.compile(r"([A-Za-z0-9_-]{11})_(0|[1-9][0-9]{0,8})")
_MID = re.compile(r"/[a-z]{1,2}/[A-Za-z0-9_]{1,24}")


def valid_ytid(text: str) -> bool:
    """Whether `text` is a YouTube id: eleven letters, digits, underscores or hyphens."""
    return _YTID.fullmatch(text) is not None


def clip_id(ytid: str, start_ms: int) -> str:
    """The name of the clip of video `ytid` that begins `start_ms` milliseconds into it."""
    if not valid_ytid(ytid) or start_ms < 0:
        raise ValueError(f"not a clip: video {ytid[:40]!r} at {start_ms} ms")
    return f"{ytid}_{start_ms}"


def parse_clip_id(text: str) -> tuple[str, int]:
    """`text` as (YouTube id, start in milliseconds); ValueError in one sentence for anything else."""
    match = _CLIP.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text[:40]!r} is not a segment id; expected the 11 characters of a YouTube id, an underscore "
            "and the start in milliseconds"
        )
    return match[1], int(match[2])


def valid_mid(text: str) -> bool:
    """Whether `text` is the id of a class, such as '/m/09x0r'."""
    return _MID.fullmatch(text) is not None
