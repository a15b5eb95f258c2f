"""Equations (1)–(3) of the paper: encoder → 40-ms frames → optional BiGRU → heads, the same for every architecture.

    z = align(encoder(mel))          (1) a sequence of embeddings, one a 40-ms frame
    s = BiGRU(z)  or  s = z          (2) the teachers' sequence model
    ŷ = W s + b                      (3) frame logits; a second layer on the mean over time gives clip logits

An architecture is an `Encoder` (`framekd.models.encoder`): its docstring is the contract a further one has to keep.
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
from framekd.models.gru import BiGRU
from framekd.models.mel import SAMPLE_RATE, duration_frames

FRAME_SECONDS = 0.04
HEADS = ("linear", "attention")
SEQUENCE_MODELS = (None, "bigru")


class FrameModel(nn.Module):
    """An encoder with frame and clip predictions; built by `framekd.models.build_model`.

    Attributes: name, sizes (resolved), n_classes, n_clip_classes, sequence_model, head, head_outputs ("logits" or
    "probabilities": what `forward` gives), embed_dim, sample_rate, frame_seconds, generator (see `encode`).
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
                f"head is one of {HEADS} and sequence_model one of {SEQUENCE_MODELS}; "
                f"got head={head!r}, sequence_model={sequence_model!r}."
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
        self.rnn: nn.GRU | None = None
        if sequence_model == "bigru":
            hidden, layers = int(sizes["rnn_hidden"]), int(sizes["rnn_layers"])
            self.rnn = BiGRU(features, hidden, layers=layers)
            features = 2 * hidden
        self.frame_head = nn.Linear(features, n_classes)
        self.clip_head = nn.Linear(features, n_clip_classes)

    @property
    def head_outputs(self) -> str:
        """What `forward` gives: "logits" (linear head) or "probabilities" (attention head)."""
        return "logits" if self.head == "linear" else "probabilities"

    # -- equation (1) ------------------------------------------------------------------------------------------

    def frontend(
        self, waveform: Float[Tensor, "batch samples"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch 1 bins frames"]:
        """Normalised log-mel of a 16-kHz waveform in -1..1, in fp32 whatever the autocast.

        fPaSST's filters jitter only in training mode with a generator (this argument or `self.generator`).
        """
        return self.encoder.frontend(waveform, generator=self._draws(generator))

    def encode(
        self, mel: Float[Tensor, "batch 1 bins frames"], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch length width"]:
        """The encoder's own sequence.  In training mode every random number (BEATs' dropout and layerdrop, fPaSST's
        position window) comes from `generator`, else from `self.generator`; with neither, nothing is drawn (no
        dropout), and a warning says so once.  The state of torch's global generators is left as it was.
        """
        generator = self._draws(generator)
        if generator is None:
            if self.training and self.encoder.random:
                self._warn_once()
            return self.encoder(mel)
        with seeded_from(generator, mel.device):
            return self.encoder(mel, generator=generator)

    def align(self, seq: Float[Tensor, "batch length width"], n_frames: int = 250) -> Tensor:
        """Resample a sequence to `n_frames`: longer ones are pooled, shorter ones interpolated linearly."""
        length = seq.shape[1]
        if length > n_frames:
            return F.adaptive_avg_pool1d(seq.transpose(1, 2), n_frames).transpose(1, 2)
        if length < n_frames:
            return F.interpolate(seq.transpose(1, 2), size=n_frames, mode="linear").transpose(1, 2)
        return seq

    def n_frames(self, mel: Float[Tensor, "batch 1 bins frames"]) -> int:
        """How many 40-ms frames the clip behind this spectrogram has: 250 for 10 s, 100 for 4 s."""
        extra = self.encoder.front_end.extra_hops
        return duration_frames(mel.shape[-1], extra, frame_seconds=self.frame_seconds)

    def features(
        self,
        mel: Float[Tensor, "batch 1 bins frames"],
        *,
        n_frames: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch time width"]:
        """The aligned sequence, before sequence model and heads: what a frozen encoder can cache."""
        seq = self.encode(mel, generator=generator)
        return self.align(seq, n_frames=self.n_frames(mel) if n_frames is None else n_frames)

    # -- equations (2) and (3) ---------------------------------------------------------------------------------

    def classify(
        self, features: Float[Tensor, "batch time width"], *, outputs: str | None = None
    ) -> tuple[Float[Tensor, "batch classes time"], Float[Tensor, "batch clip_classes"]]:
        """Frame and clip predictions of aligned features.

        `outputs`: "logits" or "probabilities"; None gives the head's own (`head_outputs`).  The attention head's
        frame logits are exact; its clip logits are the logit of the pooled probability, kept within ±16.
        """
        outputs = outputs or self.head_outputs
        if outputs not in ("logits", "probabilities"):
            raise UserError(f'outputs is "logits" or "probabilities", not {outputs!r}.')
        if self.rnn is not None:
            features, _ = self.rnn(features)
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
        outputs: str | None = None,
    ) -> tuple[Float[Tensor, "batch classes time"], Float[Tensor, "batch clip_classes"]]:
        """(frame, clip) predictions of a spectrogram; `n_frames` follows from its length (250 for 10 s).

        Logits from the linear head, probabilities from the attention head, unless `outputs` says otherwise.
        """
        return self.classify(self.features(mel, n_frames=n_frames, generator=generator), outputs=outputs)

    # -- initialisation, groups, specification -----------------------------------------------------------------

    def new_heads(
        self,
        n_classes: int | None = None,
        n_clip_classes: int | None = None,
        generator: torch.Generator | None = None,
        *,
        std: float | None = None,
    ) -> "FrameModel":
        """Replace both heads by fresh ones; returns the model.

        PyTorch's default (uniform within ±1/√inputs), or weights N(0, std) and zero biases when `std` is given
        (0.01: the heads of Li et al.).  `n_clip_classes` defaults to `n_classes`.
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
        """Draw every parameter anew from `generator` (on the parameters' device); returns the model."""
        self.encoder.init_weights(generator)
        self.init_sequence_model(generator)
        init_linear(self.frame_head, generator)
        init_linear(self.clip_head, generator)
        return self

    @torch.no_grad()
    def init_sequence_model(self, generator: torch.Generator | None) -> None:
        """Draw the BiGRU anew (PyTorch's default, uniform within ±1/√hidden); nothing to do without one."""
        for weight in () if self.rnn is None else self.rnn.parameters():
            bound = 1.0 / math.sqrt(self.sizes["rnn_hidden"])
            nn.init.uniform_(weight, -bound, bound, generator=generator)

    def depth_groups(self) -> list[list[str]]:
        """Names of the encoder's parameters by depth, top first: the last block (with the final norm) … the first
        block with everything before it.  Twelve groups at the paper's sizes; heads and BiGRU are in none.
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
        """torch.compile every transformer block on its own: one graph shared by all, layerdrop stays possible."""
        for block in self.encoder.blocks:
            block.compile(**options)
        return self

    def spec(self) -> dict[str, Any]:
        """Everything that rebuilds this model (`framekd.models.build_from_spec`), JSON-able."""
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
                "Give generator=, or set model.generator.",
                stacklevel=3,
            )


def attention_pool(
    frame_logits: Float[Tensor, "*batch frames classes"], attention_logits: Float[Tensor, "*batch frames classes"]
) -> Float[Tensor, "*batch classes"]:
    """Clip probabilities: the mean of the frame probabilities over time, weighted by a softmax over classes."""
    weight = attention_logits.softmax(dim=-1).clamp(min=1e-7, max=1.0)
    return (frame_logits.sigmoid() * weight).sum(dim=-2) / weight.sum(dim=-2)


@contextlib.contextmanager
def seeded_from(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Seed torch's default generators (CPU, and `device`) from one draw of `generator`; restore them afterwards.

    So the fused dropout kernels, which know only the default generators, draw from the generator given.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


@torch.no_grad()
def init_linear(layer: nn.Linear, generator: torch.Generator | None, *, std: float | None = None) -> None:
    """PyTorch's default for a linear layer from a generator; with `std`, weights N(0, std) and zero biases."""
    if std is not None:
        nn.init.normal_(layer.weight, std=std, generator=generator)
        nn.init.zeros_(layer.bias)
        return
    bound = 1.0 / math.sqrt(layer.in_features)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def resolve_sizes(name: str, defaults: Mapping[str, Any], sizes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The defaults with `sizes` over them; `mlp_ratio` stands for mlp = ratio × width.

    Raises UserError for a key that the model does not have, and for heads that do not divide the width.
    """
    given, defaults = dict(sizes or {}), {**defaults, "rnn_layers": defaults.get("rnn_layers", 2)}
    allowed = sorted({*defaults, "mlp_ratio"})
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        raise UserError(f"{name} has no size called {unknown[0]!r}; its sizes are {', '.join(allowed)}.")
    if "mlp" in given and "mlp_ratio" in given:
        raise UserError("Give mlp (hidden units) or mlp_ratio (times width), not both.")
    ratio = given.pop("mlp_ratio", None)
    resolved = {**defaults, **given}
    if ratio is not None:
        resolved["mlp"] = round(ratio * resolved["width"])
    elif "mlp" not in given:  # the architecture's own ratio at another width
        resolved["mlp"] = defaults["mlp"] * resolved["width"] // defaults["width"]
    if resolved["width"] % resolved["heads"]:
        raise UserError(
            f"{name}: heads ({resolved['heads']}) must divide width ({resolved['width']}); "
            "change one of the two in sizes."
        )
    return resolved
