"""Equations (1)–(3) of the paper: encoder → 40-ms frames → optional BiGRU → heads, the same for every architecture.

    z = align(encoder(mel))          (1) a sequence of embeddings, one per 40-ms frame
    s = BiGRU(z)  or  s = z          (2) the teachers' sequence model
    ŷ = W s + b                      (3) frame logits; a second layer on the mean over time gives clip logits

`framekd.models.encoder.Encoder` states what an architecture provides.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from framekd.config import UserError
from framekd.models.encoder import Encoder
from framekd.models.unrolled_gru import bigru
from framekd.units import CLIP_FRAMES, FRAME_SAMPLES, FRAME_SECONDS, MEL_HOP, SAMPLE_RATE

HEADS = ("linear", "attention")
SEQUENCE_MODELS = (None, "bigru")


class FrameModel(nn.Module):
    """An encoder with frame and clip predictions; `framekd.models.build_model` builds it.

    Attributes:
        name: the architecture's name.
        sizes: all sizes of the architecture and the BiGRU.
        n_classes, n_clip_classes: classes of the frame and the clip predictions.
        sequence_model: None or "bigru".
        head: "linear" or "attention".
        embed_dim: channels of the encoder's output.
        generator: default source of random numbers in training mode (see `encode`).
    """

    sample_rate = SAMPLE_RATE
    frame_seconds = FRAME_SECONDS

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        sizes: Mapping[str, Any],
        *,
        n_classes: int,
        n_clip_classes: int | None,
        sequence_model: str | None,
        head: str,
    ) -> None:
        super().__init__()
        n_clip_classes = n_classes if n_clip_classes is None else n_clip_classes
        if head not in HEADS or sequence_model not in SEQUENCE_MODELS:
            raise UserError(
                f"head must be one of {HEADS} and sequence_model one of {SEQUENCE_MODELS}, "
                f"not head={head!r}, sequence_model={sequence_model!r}."
            )
        if head == "attention" and n_clip_classes != n_classes:
            raise UserError(
                "The attention head derives clip predictions from frame predictions: n_clip_classes must equal "
                f"n_classes ({n_classes}), not {n_clip_classes}."
            )
        self.name, self.encoder, self.sizes = name, encoder, dict(sizes)
        self.n_classes, self.n_clip_classes = n_classes, n_clip_classes
        self.sequence_model, self.head = sequence_model, head
        self.embed_dim = encoder.embed_dim
        self.generator: torch.Generator | None = None
        features = encoder.embed_dim
        self.unrolled_gru = False  # see framekd.models.unrolled_gru; acts in training
        self.rnn: nn.GRU | None = None
        if sequence_model == "bigru":
            hidden, layers = int(sizes["rnn_hidden"]), int(sizes["rnn_layers"])
            self.rnn = nn.GRU(features, hidden, num_layers=layers, batch_first=True, bidirectional=True)
            features = 2 * hidden
        self.frame_head = nn.Linear(features, n_classes)
        self.clip_head = nn.Linear(features, n_clip_classes)

    @property
    def head_outputs(self) -> str:
        """What `forward` returns by default: "logits" (linear head) or "probabilities" (attention head)."""
        return "logits" if self.head == "linear" else "probabilities"

    # -- equation (1) ------------------------------------------------------------------------------------------

    def frontend(
        self, waveform: Float[Tensor, "batch samples"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch 1 bins frames"]:
        """Compute the normalised log-mel spectrogram of a 16-kHz waveform in -1..1, in fp32 under any autocast.

        fPaSST jitters its filters in training mode with a generator (this argument, else `self.generator`).
        """
        return self.encoder.frontend(waveform, generator=self._draws(generator))

    def encode(
        self, mel: Float[Tensor, "batch 1 bins frames"], *, generator: torch.Generator | None = None, part: int = 0
    ) -> Float[Tensor, "batch length width"]:
        """Compute the encoder's sequence.

        In training mode all random numbers (BEATs' dropout and layerdrop, fPaSST's position window) come from
        `generator`, else from `self.generator`. With neither there is no dropout, and the model warns once. The
        states of torch's global generators do not change. Parts of one batch have equal generators and another `part`
        each: then layerdrop and windows are those of the batch, and dropout is of the part.
        """
        generator = self._draws(generator)
        if generator is None:
            if self.training and self.encoder.random:
                self._warn_once()
            return self.encoder(mel)
        with seeded_from(generator, mel.device, part):
            return self.encoder(mel, generator=generator)

    def align(
        self, seq: Float[Tensor, "batch length width"], n_frames: int = CLIP_FRAMES
    ) -> Float[Tensor, "batch n_frames width"]:
        """Resample a sequence to `n_frames`: average pooling of longer ones, linear interpolation of shorter ones."""
        length = seq.shape[1]
        if length > n_frames:
            return F.adaptive_avg_pool1d(seq.transpose(1, 2), n_frames).transpose(1, 2)
        if length < n_frames:
            return F.interpolate(seq.transpose(1, 2), size=n_frames, mode="linear").transpose(1, 2)
        return seq

    def n_frames(self, mel: Float[Tensor, "batch 1 bins frames"]) -> int:
        """Count the 40-ms frames of the clip of a spectrogram: 250 for 10 s, 100 for 4 s."""
        hops = mel.shape[-1] + self.encoder.front_end.extra_hops
        return max(1, math.floor(hops * MEL_HOP / FRAME_SAMPLES + 0.5))

    def features(
        self,
        mel: Float[Tensor, "batch 1 bins frames"],
        *,
        n_frames: int | None = None,
        generator: torch.Generator | None = None,
        part: int = 0,
    ) -> Float[Tensor, "batch time width"]:
        """Compute the aligned sequence, the input of `classify`; a frozen encoder can cache it."""
        seq = self.encode(mel, generator=generator, part=part)
        return self.align(seq, n_frames=self.n_frames(mel) if n_frames is None else n_frames)

    # -- equations (2) and (3) ---------------------------------------------------------------------------------

    def classify(
        self, features: Float[Tensor, "batch time width"], *, outputs: str | None = None
    ) -> tuple[Float[Tensor, "batch classes time"], Float[Tensor, "batch clip_classes"]]:
        """Compute frame and clip predictions of aligned features.

        Args:
            features: output of `features`.
            outputs: "logits" or "probabilities"; None means `head_outputs`. Clip logits of the attention head are
                the logits of the pooled probabilities, limited to ±16.

        Raises:
            UserError: `outputs` is another string.
        """
        outputs = outputs or self.head_outputs
        if outputs not in ("logits", "probabilities"):
            raise UserError(f'outputs must be "logits" or "probabilities", not {outputs!r}.')
        if self.rnn is not None:
            features = bigru(self.rnn, features) if self.unrolled_gru and self.training else self.rnn(features)[0]
        frame_logits = self.frame_head(features)
        if self.head == "linear":
            pair = frame_logits.transpose(1, 2), self.clip_head(features.mean(dim=1))
            return pair if outputs == "logits" else (pair[0].sigmoid(), pair[1].sigmoid())
        clip = attention_pool(frame_logits, self.clip_head(features))
        if outputs == "logits":
            return frame_logits.transpose(1, 2), torch.logit(clip.float(), eps=1e-7)
        return frame_logits.sigmoid().transpose(1, 2), clip

    def forward(
        self,
        mel: Float[Tensor, "batch 1 bins frames"],
        *,
        n_frames: int | None = None,
        generator: torch.Generator | None = None,
        part: int = 0,
        outputs: str | None = None,
    ) -> tuple[Float[Tensor, "batch classes time"], Float[Tensor, "batch clip_classes"]]:
        """Compute frame and clip predictions of a spectrogram.

        Args:
            mel: output of `frontend`.
            n_frames: frames of the output; None means the clip's duration (250 for 10 s).
            generator, part: random numbers in training mode; see `encode`.
            outputs: "logits" or "probabilities"; see `classify`.
        """
        features = self.features(mel, n_frames=n_frames, generator=generator, part=part)
        return self.classify(features, outputs=outputs)

    # -- initialisation, groups, specification -----------------------------------------------------------------

    def new_heads(
        self,
        n_classes: int | None = None,
        n_clip_classes: int | None = None,
        generator: torch.Generator | None = None,
        *,
        std: float | None = None,
    ) -> "FrameModel":
        """Replace both heads by new ones.

        Args:
            n_classes: classes of the frame predictions; None keeps the number.
            n_clip_classes: classes of the clip predictions; None means n_classes.
            generator: source of the weights.
            std: see `init_linear`; Li et al. use 0.01.

        Returns:
            The model itself.

        Raises:
            UserError: an attention head with unequal numbers of classes.
        """
        n_classes = self.n_classes if n_classes is None else n_classes
        n_clip_classes = n_classes if n_clip_classes is None else n_clip_classes
        if self.head == "attention" and n_clip_classes != n_classes:
            raise UserError(f"The attention head needs as many clip as frame classes ({n_classes}).")
        like = self.frame_head.weight
        self.n_classes, self.n_clip_classes = n_classes, n_clip_classes
        self.frame_head = nn.Linear(like.shape[1], n_classes, device=like.device, dtype=like.dtype)
        self.clip_head = nn.Linear(like.shape[1], n_clip_classes, device=like.device, dtype=like.dtype)
        for layer in (self.frame_head, self.clip_head):
            init_linear(layer, generator, std=std)
        return self

    def init_weights(self, generator: torch.Generator | None) -> "FrameModel":
        """Draw all parameters anew from `generator` (on their device) and return the model itself."""
        self.encoder.init_weights(generator)
        self.init_sequence_model(generator)
        init_linear(self.frame_head, generator)
        init_linear(self.clip_head, generator)
        return self

    @torch.no_grad()
    def init_sequence_model(self, generator: torch.Generator | None) -> None:
        """Draw the BiGRU anew, if there is one: PyTorch's default, uniform within ±1/√hidden."""
        for weight in () if self.rnn is None else self.rnn.parameters():
            bound = 1.0 / math.sqrt(self.sizes["rnn_hidden"])
            nn.init.uniform_(weight, -bound, bound, generator=generator)

    def depth_groups(self) -> list[list[str]]:
        """Group the names of the encoder's parameters by depth, for layer-wise learning rates.

        Returns:
            One list per block, the last block (with the final norm) first; the first block's list holds everything
            before that block too. Heads and BiGRU are in none.
        """
        owner = {id(p): len(self.encoder.blocks) - 1 for p in self.encoder.parameters()}
        for depth, block in enumerate(reversed(self.encoder.blocks)):
            owner.update({id(p): depth for p in block.parameters()})
        for module in self.encoder.top():
            owner.update({id(p): 0 for p in module.parameters()})
        groups: list[list[str]] = [[] for _ in self.encoder.blocks]
        for name, parameter in self.encoder.named_parameters():
            groups[owner[id(parameter)]].append(f"encoder.{name}")
        return groups

    def compile_blocks(self, **options: Any) -> "FrameModel":
        """Apply torch.compile to each transformer block (so that layerdrop still works) and return the model itself."""
        for block in self.encoder.blocks:
            block.compile(**options)
        return self

    def spec(self) -> dict[str, Any]:
        """Describe the model as JSON values, from which `framekd.models.build_from_spec` rebuilds it."""
        return {
            "model": self.name,
            "sizes": dict(self.sizes),
            "n_classes": self.n_classes,
            "n_clip_classes": self.n_clip_classes,
            "sequence_model": self.sequence_model,
            "head": self.head,
            "sample_rate": self.sample_rate,
            "frame_seconds": self.frame_seconds,
            "front_end": dict(self.encoder.front_end.settings),
        }

    def _draws(self, generator: torch.Generator | None) -> torch.Generator | None:
        if not self.training:
            return None
        return self.generator if generator is None else generator

    def _warn_once(self) -> None:
        if not getattr(self, "_warned", False):
            self._warned = True
            warnings.warn(
                f"{self.name} is in training mode without a generator: dropout and layerdrop are off. "
                "Pass generator=, or set model.generator.",
                stacklevel=3,
            )


def attention_pool(
    frame_logits: Float[Tensor, "*batch frames classes"], attention_logits: Float[Tensor, "*batch frames classes"]
) -> Float[Tensor, "*batch classes"]:
    """Pool frame probabilities over time to clip probabilities, weighted by a softmax over the classes (DESED)."""
    attention = attention_logits.softmax(dim=-1).clamp(min=1e-7, max=1.0)
    return (frame_logits.sigmoid() * attention).sum(dim=-2) / attention.sum(dim=-2)


@contextlib.contextmanager
def seeded_from(generator: torch.Generator, device: torch.device, part: int = 0) -> Iterator[None]:
    """Seed torch's default generators (CPU and `device`) with one draw from `generator`; restore them on exit.

    Dropout can only draw from the default generators. Another `part` is another seed.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device)) + part
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


@torch.no_grad()
def init_linear(layer: nn.Linear, generator: torch.Generator | None, *, std: float | None = None) -> None:
    """Draw a linear layer: PyTorch's default (uniform within ±1/√inputs), or with `std` N(0, std) and zero biases."""
    if std is not None:
        nn.init.normal_(layer.weight, std=std, generator=generator)
        nn.init.zeros_(layer.bias)
        return
    bound = 1.0 / math.sqrt(layer.in_features)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
