"""Decoding any audio file to 16 kHz mono 16-bit audio with ffmpeg: decode, resample, then cut.

A cut in the container (seeking, copying packets) may begin seconds early. Here every sample before the cut is decoded
and counted, so the cut is exact to one sample of the output. Resampling uses soxr's 28-bit linear-phase filter.

Channels: "mean" is ffmpeg's downmix at unity gain; "first" takes the first channel only, as the authors' loader does
with its (mono) mp3 files.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

import ffmpeg
import numpy as np

from framekd.config import UserError
from framekd.units import SAMPLE_RATE

EXTENSIONS = (".wav", ".flac", ".mp3", ".opus", ".ogg", ".m4a", ".webm", ".mp4", ".aac", ".mka")
# Containers that hold one recording. Playlists (hls, concat, …) are excluded: they make ffmpeg open other files.
_FORMATS = "wav,w64,flac,mp3,ogg,opus,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,aac,aiff,au,caf,asf,avi,flv,mpegts,mpeg,amr"
MAX_SECONDS = 6 * 3600.0
MAX_STREAM_SECONDS = 48 * 3600.0


class DecodeError(UserError):
    """Audio that cannot be decoded; the message is the reason."""


@lru_cache(maxsize=1)
def ffmpeg_path() -> str:
    """Path of the ffmpeg program: $FRAMEKD_FFMPEG, that of imageio-ffmpeg, or the system's."""
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
    """Problems of this machine's decoder, one sentence each; empty if it works."""
    try:
        program = ffmpeg_path()
        shown = subprocess.run([program, "-hide_banner", "-buildconf"], capture_output=True, text=True, timeout=30)
    except UserError as error:
        return [str(error)]
    except (OSError, subprocess.SubprocessError) as error:
        return [f"ffmpeg does not run ({error}); install imageio-ffmpeg or put a working ffmpeg on PATH"]
    if "--enable-libsoxr" not in shown.stdout:
        return [f"{program} has no soxr resampler; install imageio-ffmpeg, whose ffmpeg has one"]
    return []


def _command(stream: ffmpeg.nodes.OutputStream, *options: str) -> list[str]:
    """The command of an ffmpeg-python graph, run by the program of :func:`ffmpeg_path`."""
    return stream.compile(cmd=[ffmpeg_path(), "-hide_banner", "-loglevel", "error", *options])


def _filters(start: float, duration: float | None, sample_rate: int, channel: str) -> str:
    """Filter chain: downmix, resample, cut.

    first_pts=0 with async=1 puts sample 0 at time 0 also if the stream begins late, and fills gaps with silence.
    """
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
    """Decode a file to mono and cut a part out of it.

    Args:
        media: path, or the bytes of a file.
        start, duration: part to return, in seconds; None: up to the end.
        sample_rate: of the result, in Hz.
        channel: "mean" of all channels, or the "first".
        timeout: longest time that decoding may take, in seconds.
    Returns:
        float32 [samples], -1 … 1; shorter if the audio ends earlier, empty if it ends before `start`.
    Raises:
        DecodeError: decoding fails, at once or on the way, the audio is longer than `MAX_SECONDS`, or samples are
            non-finite.
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
    longest = MAX_SECONDS + 1 if duration is None else duration
    command = _decoder(source, _filters(start, longest, sample_rate, channel))
    stdin = subprocess.DEVNULL if data is None else None
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, stdin=stdin, input=data)
    except subprocess.TimeoutExpired:
        raise DecodeError(f"{name}: decoding took more than {timeout:.0f} s") from None
    samples = np.frombuffer(done.stdout, "<f4", count=len(done.stdout) // 4)
    if done.returncode != 0:
        got = f"decoding ended after {len(samples) / sample_rate:.2f} s"
        what = got if len(samples) else "no audio that can be decoded"
        raise DecodeError(f"{name}: {what} ({_last_line(done.stderr)})")
    if len(samples) > MAX_SECONDS * sample_rate:
        raise DecodeError(f"{name}: longer than {MAX_SECONDS / 3600:.0f} hours; cut it into parts")
    if not np.isfinite(samples).all():
        raise DecodeError(f"{name}: it has non-finite samples (NaN or infinity)")
    return samples


def _decoder(source: str, chain: str) -> list[str]:
    """The command that decodes the first audio stream to float32 on standard output."""
    stream = ffmpeg.input(source, threads=1, protocol_whitelist="file,pipe", format_whitelist=_FORMATS)["a:0"]
    return _command(stream.output("pipe:1", af=chain, threads=1, format="f32le"))


def _last_line(messages: bytes) -> str:
    lines = messages[-4096:].decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "no message"


def decode_stream(
    path: str | Path,
    *,
    block_seconds: float = 10.0,
    sample_rate: int = SAMPLE_RATE,
    channel: Literal["mean", "first"] = "mean",
    max_seconds: float = MAX_STREAM_SECONDS,
) -> Iterator[np.ndarray]:
    """Decode a file of any length to mono, block by block; the memory does not depend on the length.

    A file whose samples end early without an error of ffmpeg (it is cut off) gives what there is.

    Args:
        path: an audio or video file.
        block_seconds: length of a block.
        sample_rate, channel: see :func:`decode_float`.
        max_seconds: a file that is longer is refused. Wrong time stamps can make a small file last for years.
    Yields:
        float32 [samples], -1 … 1, never empty; the last block may be shorter. An empty file yields nothing.
    Raises:
        DecodeError: nothing can be decoded, ffmpeg ended with an error, the audio is too long, or samples are
            non-finite.
        FileNotFoundError: no such file.
    """
    name, size = os.fspath(path), 4 * round(block_seconds * sample_rate)
    if Path(path).is_dir():
        raise DecodeError(f"{name}: it is a folder")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{name}: no such audio file")
    command, done = _decoder(f"file:{name}", _filters(0.0, None, sample_rate, channel)), 0
    with (
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages) as process,
    ):
        assert process.stdout is not None
        try:
            while len(data := process.stdout.read(size)) >= 4:
                samples = np.frombuffer(data, "<f4", count=len(data) // 4)
                if not np.isfinite(samples).all():
                    raise DecodeError(f"{name}: it has non-finite samples (NaN or infinity)")
                done += len(samples)
                if done > max_seconds * sample_rate:
                    raise DecodeError(f"{name}: it has more than {max_seconds / 3600:g} hours of audio; split it")
                yield samples
        except BaseException:
            process.kill()
            raise
        code = process.wait()
        messages.seek(0)
        reason = _last_line(messages.read())
    if code != 0 and done == 0:
        raise DecodeError(f"{name}: no audio that can be decoded ({reason})")
    if code != 0:
        raise DecodeError(
            f"{name}: decoding stopped after {done / sample_rate:.1f} s ({reason}; ffmpeg's exit code {code})"
        )


def live_command(rate: int, channels: int) -> list[str]:
    """The command that turns PCM (signed 16 bit) on standard input into 16-kHz mono PCM, without waiting for more."""
    pcm = {"format": "s16le", "ar": rate, "ac": channels, "probesize": 32, "analyzeduration": 0, "fflags": "nobuffer"}
    output = ffmpeg.input("pipe:0", **pcm).output("pipe:1", af=_filters(0.0, None, SAMPLE_RATE, "mean"), format="s16le")
    return _command(output, "-flush_packets", "1")


def compress(path: str | Path, target: str | Path, *, sample_rate: int, kbit: int, max_seconds: float) -> None:
    """Write the first `max_seconds` of a file as mono mp3 of a constant bit rate, for players in a browser.

    Raises:
        DecodeError: ffmpeg ended with an error.
    """
    source = f"file:{os.fspath(path)}"
    stream = ffmpeg.input(source, threads=1, protocol_whitelist="file,pipe", format_whitelist=_FORMATS)["a:0"]
    chain = _filters(0.0, None, sample_rate, "mean")
    output = stream.output(
        f"file:{os.fspath(target)}",
        af=chain,
        acodec="libmp3lame",
        audio_bitrate=f"{kbit}k",
        t=max_seconds,
        format="mp3",
    )
    done = subprocess.run(_command(output, "-y"), stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode != 0:
        raise DecodeError(f"{os.fspath(path)}: it could not be compressed ({_last_line(done.stderr)})")


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
    """As :func:`decode_float`, but int16 [samples], as in the store."""
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
    """Download and decode a part of a remote media file.

    ffmpeg seeks by range requests to the last point before the part, decodes from there and drops what comes before:
    the first sample written is the one at ``span[0]``. Copying packets would be off by up to seconds.

    Args:
        span: begin and end in seconds.
        target: WAV file to write.
        headers, proxy: for the requests.
        timeout: longest silence of the connection in seconds.
    Returns:
        Whether `target` holds the whole part.
    """
    options: dict[str, str] = {"rw_timeout": str(round(timeout * 1e6)), "ss": f"{span[0]:.3f}"}
    if headers:
        options["headers"] = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    protocols = "http,https,tcp,tls,crypto,httpproxy"
    stream = ffmpeg.input(url, threads=1, protocol_whitelist=protocols, format_whitelist=_FORMATS, **options)["a:0"]
    output = stream.output(f"file:{os.fspath(target)}", t=f"{span[1] - span[0]:.3f}", acodec="pcm_f32le", format="wav")
    command = _command(output, "-xerror", "-y")
    try:
        # The proxy goes through the environment: other users can read a command's arguments.
        environment = os.environ | ({"http_proxy": proxy} if proxy else {})
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20 * timeout, env=environment
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode != 0 or not Path(target).is_file():
        return False
    import soundfile

    try:
        seconds = soundfile.info(target).duration
    except RuntimeError:
        return False
    # If the host does not support range requests, ffmpeg lands behind the begin, and some of the part is missing.
    return abs(seconds - (span[1] - span[0])) < 0.01


def declared_seconds(path: str | Path) -> float | None:
    """Seconds of audio that a file's header states, also if the file is truncated; None if it states nothing."""
    command = [ffmpeg_path(), "-hide_banner", "-protocol_whitelist", "file", "-format_whitelist", _FORMATS]
    try:
        done = subprocess.run(
            [*command, "-i", f"file:{os.fspath(path)}"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return None
    found = re.search(rb"Duration: (\d+):(\d\d):(\d\d\.\d+)", done.stderr)
    return None if found is None else int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
