"""The notes of a MIDI file, as HEAR's MAESTRO has them: with the sustain pedal.

The rule is that of note_seq's `apply_sustain_control_changes`, on notes as pretty_midi reads them.
"""

from __future__ import annotations

import bisect
import io
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from framekd.errors import UserError

if TYPE_CHECKING:
    import mido

PEDAL = 64
"""Number of the controller, and its least value that counts as down."""
_DOWN, _UP, _ON, _OFF = range(4)  # the order of events at one time


@dataclass(eq=False, slots=True)
class Note:
    """A note: its instrument (track and channel), pitch, and times in seconds."""

    instrument: tuple[int, int]
    pitch: int
    onset: float
    offset: float


@dataclass(frozen=True, slots=True)
class Pedal:
    """A change of the sustain pedal of an instrument, at a time in seconds."""

    instrument: tuple[int, int]
    seconds: float
    down: bool


def read_notes(data: bytes, *, name: str) -> list[Note]:
    """The notes of a MIDI file, extended by the sustain pedal, in the order of their onsets.

    Args:
        data: content of the file.
        name: what a message calls the file.
    Raises:
        UserError: it is no MIDI file.
    """
    import mido

    try:
        file = mido.MidiFile(file=io.BytesIO(data))
    except Exception as error:  # noqa: BLE001 (mido raises whatever its parser met)
        raise UserError(f"{name}: not a MIDI file ({error}); take another copy of the archive") from None
    notes, pedals = _events(file)
    return sorted(with_pedal(notes, pedals), key=lambda note: (note.onset, note.offset, note.pitch))


def _events(file: mido.MidiFile) -> tuple[list[Note], list[Pedal]]:
    """Notes and changes of the pedal, in the order of the file.

    A note-off ends every earlier note-on of its pitch. A note-on at the same tick goes on.
    """
    clock = _Clock(file)
    notes: list[Note] = []
    pedals: list[Pedal] = []
    for number, track in enumerate(file.tracks):
        tick = 0
        begun: dict[tuple[int, int], list[int]] = defaultdict(list)
        for message in track:
            tick += message.time
            if message.type not in ("note_on", "note_off", "control_change"):
                continue
            instrument = (number, message.channel)
            if message.type == "control_change":
                if message.control == PEDAL:
                    pedals.append(Pedal(instrument, clock.seconds(tick), message.value >= PEDAL))
                continue
            key = (message.channel, message.note)
            if message.type == "note_on" and message.velocity > 0:
                begun[key].append(tick)
                continue
            earlier = [start for start in begun[key] if start != tick]
            begun[key] = [start for start in begun[key] if start == tick] if earlier else []
            end = clock.seconds(tick)
            notes += [Note(instrument, message.note, clock.seconds(start), end) for start in earlier]
    return notes, pedals


class _Clock:
    """Ticks to seconds, by the tempi of the first track."""

    def __init__(self, file: mido.MidiFile) -> None:
        self.ticks, self.times, self.scales = [0], [0.0], [0.5 / file.ticks_per_beat]
        tick = 0
        for message in file.tracks[0] if file.tracks else []:
            tick += message.time
            if message.type != "set_tempo":
                continue
            scale = message.tempo / 1e6 / file.ticks_per_beat
            if tick == self.ticks[-1]:
                self.scales[-1] = scale
            else:
                self.times.append(self.seconds(tick))
                self.ticks.append(tick)
                self.scales.append(scale)

    def seconds(self, tick: int) -> float:
        i = bisect.bisect_right(self.ticks, tick) - 1
        return self.times[i] + (tick - self.ticks[i]) * self.scales[i]


def with_pedal(notes: list[Note], pedals: list[Pedal]) -> list[Note]:
    """The notes with their offsets moved by the pedal of their instrument; `notes` themselves are changed.

    While the pedal is down, a note lasts until the pedal goes up or its pitch is played again. A note whose pitch is
    played again at its own onset is dropped.
    """
    events: list[tuple[float, int, Note | Pedal]] = [(note.onset, _ON, note) for note in notes]
    events += [(note.offset, _OFF, note) for note in notes]
    events += [(pedal.seconds, _DOWN if pedal.down else _UP, pedal) for pedal in pedals]
    events.sort(key=lambda event: event[:2])
    down: set[tuple[int, int]] = set()
    sounding: dict[tuple[int, int], list[Note]] = defaultdict(list)
    dropped: set[int] = set()
    for now, kind, event in events:
        who = event.instrument
        if isinstance(event, Pedal):
            if kind == _DOWN:
                down.add(who)
                continue
            down.discard(who)
            released = [note for note in sounding[who] if note.offset < now]
            sounding[who] = [note for note in sounding[who] if note.offset >= now]
            for note in released:
                note.offset = now
        elif kind == _ON:
            if who in down:
                for note in sounding[who]:
                    if note.pitch == event.pitch:
                        note.offset = now
                        if note.onset == now:
                            dropped.add(id(note))
                sounding[who] = [note for note in sounding[who] if note.pitch != event.pitch]
            sounding[who].append(event)
        elif who not in down and any(note is event for note in sounding[who]):
            sounding[who].remove(event)
    for note in [note for left in sounding.values() for note in left]:
        note.offset = events[-1][0]
    return [note for note in notes if id(note) not in dropped]
