"""Decoding anything to 16 kHz mono 16-bit audio, with ffmpeg: decode, resample, and only then cut.

A cut at the container's level (seeking, copying packets) may begin seconds early; here every sample before the cut is
decoded and counted, so the cut is exact to a sample of the output. Resampling is soxr's 28-bit linear-phase filter.

Channels: "mean" is ffmpeg's downmix at unity gain (nothing of a stereo scene is lost); "first" takes the first channel
alone, as the authors' loader does with its (mono) mp3 files.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from framekd.config import UserError

SAMPLE_RATE = 16_000
EXTENSIONS = (".wav", ".flac", ".mp3", ".opus", ".ogg", ".m4a", ".webm", ".mp4", ".aac", ".mka")
# Containers that hold one recording. Playlists (hls, concat, …) would make ffmpeg open other files or addresses.
_FORMATS = "wav,w64,flac,mp3,ogg,opus,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,aac,aiff,au,caf,asf,avi,flv,mpegts,mpeg,amr"
MAX_SECONDS = 6 * 3600.0


class DecodeError(UserError):
    """Audio that cannot be decoded, with the reason in one sentence."""


@lru_cache(maxsize=1)
def ffmpeg_path() -> str:
    """The ffmpeg program: $FRAMEKD_FFMPEG, the pinned one of imageio-ffmpeg, or the system's."""
    chosen = os.environ.get("FRAMEKD_FFMPEG")
    if chosen:
        return chosen
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        found = shutil.which("ffmpeg")
    if found is None:
        raise UserError("ffmpeg was not found; install imageio-ffmpeg (make env does) or put ffmpeg on PATH")
    return found


def problems() -> list[str]:
    """What is wrong with this machine's decoder, one sentence each; empty if nothing is."""
    try:
        program = ffmpeg_path()
        told = subprocess.run([program, "-hide_banner", "-buildconf"], capture_output=True, text=True, timeout=30)
    except UserError as error:
        return [str(error)]
    except (OSError, subprocess.SubprocessError) as error:
        return [f"ffmpeg does not run ({error}); install imageio-ffmpeg or put a working ffmpeg on PATH"]
    if "--enable-libsoxr" not in told.stdout:
        return [f"{program} has no soxr resampler; install imageio-ffmpeg, whose ffmpeg has one"]
    return []


def _filters(start: float, duration: float | None, sample_rate: int, channel: str) -> str:
    # first_pts=0 with async=1 puts sample 0 at time 0 also where a stream begins late, and fills gaps with silence.
    resample = f"aresample={sample_rate}:resampler=soxr:precision=28:first_pts=0:async=1:rematrix_maxval=1.0"
    chain = ["pan=mono|c0=c0", resample] if channel == "first" else [f"{resample}:ochl=mono"]
    if start > 0 or duration is not None:
        first = round(start * sample_rate)
        end = "" if duration is None else f":end_pts={first + round(duration * sample_rate)}"
        chain.append(f"atrim=start_pts={first}{end}")
    return ",".join(chain)


def decode_float(
    media: str | Path | bytes,
    start: float = 0.0,
    duration: float | None = None,
    *,
    sample_rate: int = SAMPLE_RATE,
    channel: Literal["mean", "first"] = "mean",
    timeout: float = 600.0,
) -> np.ndarray:
    """Decode a file (or its bytes) to mono float32 [samples] and cut ``start`` … ``start + duration`` seconds out.

    The result is shorter where the media end earlier, and empty where they end before `start`.
    Raises:
        DecodeError: no audio that can be decoded, or samples that are not numbers.
        FileNotFoundError: no such file.
    """
    if not 0 <= start <= MAX_SECONDS or (duration is not None and not 0 < duration <= MAX_SECONDS):
        raise ValueError(f"cannot cut {duration} s at {start} s")
    if isinstance(media, bytes):
        name, source, data = "the data", "pipe:0", media
    else:
        name, source, data = os.fspath(media), f"file:{os.fspath(media)}", None
        if not Path(media).is_file():
            raise FileNotFoundError(f"{name}: no such audio file")
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-threads", "1"]
    command += ["-protocol_whitelist", "file,pipe", "-format_whitelist", _FORMATS, "-i", source]
    command += ["-map", "0:a:0", "-af", _filters(start, duration, sample_rate, channel)]
    command += ["-threads", "1", "-f", "f32le", "pipe:1"]
    stdin = subprocess.DEVNULL if data is None else None
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, stdin=stdin, input=data)
    except subprocess.TimeoutExpired:
        raise DecodeError(f"{name}: decoding took more than {timeout:.0f} s") from None
    samples = np.frombuffer(done.stdout, "<f4", count=len(done.stdout) // 4)
    if len(samples) == 0 and done.returncode != 0:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        raise DecodeError(f"{name}: no audio that can be decoded ({told[-1].strip() if told else 'no message'})")
    if not np.isfinite(samples).all():
        raise DecodeError(f"{name}: its samples are not all numbers (NaN or infinity)")
    return samples


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Float samples (-1 … 1) as int16, rounded and clipped."""
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def decode(
    media: str | Path | bytes,
    start: float = 0.0,
    duration: float | None = None,
    *,
    sample_rate: int = SAMPLE_RATE,
    channel: Literal["mean", "first"] = "mean",
    timeout: float = 600.0,
) -> np.ndarray:
    """As :func:`decode_float`, as int16 [samples]: what the store holds."""
    return to_int16(decode_float(media, start, duration, sample_rate=sample_rate, channel=channel, timeout=timeout))


def fetch_span(
    url: str,
    span: tuple[float, float],
    target: str | Path,
    *,
    headers: dict[str, str] | None = None,
    proxy: str | None = None,
    timeout: float = 30.0,
) -> bool:
    """Fetch only the seconds ``span`` of a remote media file, decoded, into the WAV file `target`; False if it failed.

    ffmpeg seeks by range requests to the last point before the span, decodes from there and drops what comes before:
    the first sample of the file is the one at ``span[0]``, which copying packets would miss by seconds. A file that
    does not hold the whole span counts as failed.
    """
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-xerror", "-y", "-threads", "1"]
    command += ["-protocol_whitelist", "http,https,tcp,tls,crypto,httpproxy", "-format_whitelist", _FORMATS]
    command += ["-rw_timeout", str(round(timeout * 1e6))]
    if headers:
        command += ["-headers", "".join(f"{name}: {value}\r\n" for name, value in headers.items())]
    if proxy:
        command += ["-http_proxy", proxy]
    command += ["-ss", f"{span[0]:.3f}", "-i", url, "-map", "0:a:0", "-t", f"{span[1] - span[0]:.3f}"]
    command += ["-c:a", "pcm_f32le", "-f", "wav", f"file:{os.fspath(target)}"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20 * timeout)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode != 0 or not Path(target).is_file():
        return False
    import soundfile

    try:
        seconds = soundfile.info(target).duration
    except RuntimeError:
        return False
    # A host without range requests makes ffmpeg land behind the place it was sent to; then some of the span is missing.
    return abs(seconds - (span[1] - span[0])) < 0.01


def declared_seconds(path: str | Path) -> float | None:
    """The duration that a file's header states (not how much of it is there); None if it states none."""
    command = [ffmpeg_path(), "-hide_banner", "-protocol_whitelist", "file", "-format_whitelist", _FORMATS]
    done = subprocess.run(
        [*command, "-i", f"file:{os.fspath(path)}"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    found = re.search(rb"Duration: (\d+):(\d\d):(\d\d\.\d+)", done.stderr)
    return None if found is None else int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
