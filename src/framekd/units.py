"""Units of time that all modules share; each is defined here and nowhere else (Sec. 3.1 and 3.3 of the paper)."""

SAMPLE_RATE = 16_000
"""Audio samples per second."""
FRAME_RATE = 25
"""Label frames per second."""
FRAME_SECONDS = 1 / FRAME_RATE
"""Length of a label frame: 40 ms."""
FRAME_SAMPLES = SAMPLE_RATE // FRAME_RATE
"""Audio samples per label frame."""
MEL_HOP = 160
"""Audio samples between two spectrogram frames (10 ms), the same in all five front ends."""
CLIP_SECONDS = 10.0
"""Length of an AudioSet clip, and of a training crop."""
CLIP_FRAMES = 250
"""Label frames of a clip of 10 s."""
