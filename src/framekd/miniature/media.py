"""Media files as the world has them: opus in webm, AAC in m4a, mp3; 44.1 and 48 kHz; stereo; some of them damaged."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
from jaxtyping import Float

from framekd.audio import ffmpeg_path
from framekd.miniature.recordings import SAMPLE_RATE

# extension: (sample rate, encoder arguments). Fast settings: twenty seconds take a fifth of a second.
CODECS: dict[str, tuple[int, tuple[str, ...]]] = {
    "webm": (48_000, ("-c:a", "libopus", "-b:a", "64k", "-compression_level", "2")),
    "m4a": (44_100, ("-c:a", "aac", "-b:a", "96k", "-aac_coder", "fast")),
    "mp3": (44_100, ("-c:a", "libmp3lame", "-b:a", "96k", "-compression_level", "9")),
}
EXTENSIONS = tuple(CODECS)
DAMAGES = ("garbage", "headless", "cut")


def write_media(path: Path, samples: Float[np.ndarray, " samples"], *, balance: float = 0.0) -> None:
    """Encode mono audio at 16 kHz as stereo in the format that the extension of `path` names.

    The left channel is ``1 + balance`` and the right ``1 - balance`` times the signal: their mean is the signal.
    The bytes depend on the arguments and the ffmpeg alone. RuntimeError with ffmpeg's last line if it fails.
    """
    rate, codec = CODECS[path.suffix[1:]]
    data = np.clip(np.rint(samples * 32767), -32768, 32767).astype("<i2").tobytes()
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", "-threads", "1"]
    command += ["-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1", "-i", "pipe:0"]
    command += ["-af", f"aresample={rate},pan=stereo|c0={1 + balance:.4f}*c0|c1={1 - balance:.4f}*c0"]
    command += [*codec, "-threads", "1", "-fflags", "+bitexact", "-flags:a", "+bitexact", "-map_metadata", "-1"]
    done = subprocess.run([*command, f"file:{part}"], input=data, capture_output=True)
    if done.returncode:
        part.unlink(missing_ok=True)
        told = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise RuntimeError(f"{path}: ffmpeg could not encode it ({told[-1]})")
    part.replace(path)


def damage(path: Path, kind: str, rng: np.random.Generator) -> None:
    """Spoil a media file so that its clip cannot be had from it.

    ``garbage``: noise under the right name; ``headless``: the first half (with the headers) is gone; ``cut``: an upload
    that broke off after the first tenth.
    """
    data = path.read_bytes()
    if kind == "garbage":
        data = rng.bytes(len(data) // 2)
    elif kind == "headless":
        # mp3 has no header to lose: what is left is no longer in the order of its frames.
        data = bytes(np.frombuffer(data[len(data) // 2 :], np.uint8)[::-1])
    elif kind == "cut":
        data = data[: max(64, len(data) // 10)]
    else:
        raise ValueError(f"no damage called {kind!r}; there are {', '.join(DAMAGES)}")
    path.write_bytes(data)
