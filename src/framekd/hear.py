"""The HEAR interface: embeddings for the tasks of https://hearbenchmark.com, from any model of this project.

    model = load_model("BEATs")                              # a published model, or a checkpoint folder
    scenes = get_scene_embeddings(audio, model)              # audio: [sounds, samples] at 16 kHz, -1 … 1
    frames, times = get_timestamp_embeddings(audio, model)   # times in milliseconds

Embeddings are the transformer's aligned sequence (25 frames per second), and their mean over time.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from framekd.config import UserError
from framekd.models import FrameModel
from framekd.published import open_model
from framekd.units import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE
from framekd.windows import embedding_stream

DEFAULT = "BEATs"


class HearModel(nn.Module):
    """A model with the attributes that HEAR asks for."""

    sample_rate = SAMPLE_RATE

    def __init__(self, model: FrameModel) -> None:
        super().__init__()
        self.model = model
        self.scene_embedding_size = int(model.embed_dim)
        self.timestamp_embedding_size = int(model.embed_dim)


def load_model(model_file_path: str = "") -> HearModel:
    """Open a model: a published name, a checkpoint folder, or nothing for BEATs."""
    return HearModel(open_model(model_file_path or DEFAULT)[0])


def get_timestamp_embeddings(
    audio: Float[Tensor, "sounds samples"], model: HearModel
) -> tuple[Float[Tensor, "sounds frames width"], Float[Tensor, "sounds frames"]]:
    """Embeddings of the frames whose centre lies within the audio, and their centres in milliseconds.

    Raises:
        UserError: the audio is not [sounds, samples] or has no samples.
    """
    if audio.ndim != 2 or audio.shape[1] == 0:
        raise UserError(f"expected audio of the shape [sounds, samples], not {list(audio.shape)}")
    n_frames = max(1, (audio.shape[1] + FRAME_SAMPLES // 2 - 1) // FRAME_SAMPLES)
    sounds = []
    for waveform in audio.float().cpu().numpy():
        sounds.append(torch.cat(list(embedding_stream(model.model, [waveform])))[:n_frames])
    times = (torch.arange(n_frames, dtype=torch.float32) + 0.5) * (1000 / FRAME_RATE)
    device = audio.device
    return torch.stack(sounds).to(device), times.expand(len(audio), -1).contiguous().to(device)


def get_scene_embeddings(audio: Float[Tensor, "sounds samples"], model: HearModel) -> Float[Tensor, "sounds width"]:
    """Mean of each sound's frame embeddings over time; arguments and errors as :func:`get_timestamp_embeddings`."""
    return get_timestamp_embeddings(audio, model)[0].mean(1)
