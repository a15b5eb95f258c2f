"""HEAR's notes of MAESTRO, on MIDI made here: the sustain pedal, repeated pitches, the cut at 120 s, times."""

from __future__ import annotations

import io

import mido
import pytest
from task_archives import midi

from framekd.config import UserError
from framekd.sets.hear import cut, piano_rows
from framekd.sets.midi import read_notes


def notes(*messages, **values):
    return [(row[2], row[0], row[1]) for row in sorted(piano_rows(midi(*messages, **values), "x.midi"))]


def test_without_pedal_a_note_lasts_from_on_to_off_and_an_on_of_velocity_0_is_an_off():
    assert notes((0.5, "on", 60, 64), (1.0, "off", 60, 0), (1.2, "on", 61, 64), (1.5, "on", 61, 0)) == [
        (60, 500.0, 1000.0),
        (61, 1200.0, 1500.0),
    ]


def test_the_pedal_extends_notes_to_its_release_and_not_those_that_ended_before_it():
    found = notes(
        *((0.1, "on", 50, 64), (0.2, "off", 50, 0), (0.3, "on", 60, 64), (0.4, "pedal", 127, 0)),
        *((0.5, "off", 60, 0), (0.6, "on", 62, 64), (0.7, "off", 62, 0), (1.0, "pedal", 0, 0)),
    )
    assert found == [(50, 100.0, 200.0), (60, 300.0, 1000.0), (62, 600.0, 1000.0)]


@pytest.mark.parametrize(("value", "end"), [(63, 500.0), (64, 1000.0)])
def test_the_pedal_is_down_from_64_on(value, end):
    assert notes((0.1, "on", 60, 64), (0.2, "pedal", value, 0), (0.5, "off", 60, 0), (1.0, "pedal", 0, 0)) == [
        (60, 100.0, end)
    ]


def test_a_key_that_is_held_when_the_pedal_goes_up_sounds_until_it_is_released():
    found = notes((0.1, "pedal", 100, 0), (0.2, "on", 60, 64), (0.5, "pedal", 0, 0), (0.9, "off", 60, 0))
    assert found == [(60, 200.0, 900.0)]


def test_a_repeated_pitch_under_the_pedal_ends_the_note_before_it():
    found = notes(
        *((0.1, "pedal", 100, 0), (0.2, "on", 60, 64), (0.3, "off", 60, 0), (0.6, "on", 60, 64), (0.7, "off", 60, 0)),
        *((0.8, "on", 64, 64), (0.9, "off", 64, 0), (1.5, "pedal", 0, 0)),
    )
    assert found == [(60, 200.0, 600.0), (60, 600.0, 1500.0), (64, 800.0, 1500.0)]


def test_a_pedal_that_never_goes_up_ends_with_the_last_event():
    found = notes(
        (0.1, "pedal", 90, 0), (0.2, "on", 60, 64), (0.3, "off", 60, 0), (2.0, "on", 70, 9), (2.5, "off", 70, 0)
    )
    assert found == [(60, 200.0, 2500.0), (70, 2000.0, 2500.0)]


def test_a_note_off_ends_all_earlier_notes_of_its_pitch_and_not_one_that_begins_with_it():
    found = notes(
        (0.1, "on", 60, 64), (0.3, "on", 60, 64), (0.5, "on", 60, 64), (0.5, "off", 60, 0), (0.9, "off", 60, 0)
    )
    assert found == [(60, 100.0, 500.0), (60, 300.0, 500.0), (60, 500.0, 900.0)]


def test_only_the_88_keys_of_a_piano_are_labels():
    found = notes(
        *((t, kind, p, 64) for p in (20, 21, 108, 109) for t, kind in ((p / 100, "on"), (p / 100 + 0.05, "off")))
    )
    assert [pitch for pitch, _, _ in found] == [21, 108]


def test_times_follow_the_tempo_and_are_milliseconds():
    file = mido.MidiFile(ticks_per_beat=384)
    tempo = mido.MetaMessage("set_tempo", tempo=500_000)
    slow = mido.MetaMessage("set_tempo", tempo=1_000_000, time=384)
    file.tracks.append(mido.MidiTrack([tempo, slow]))
    file.tracks.append(
        mido.MidiTrack(
            [mido.Message("note_on", note=60, time=1), mido.Message("note_off", note=60, time=383 + 384), tempo.copy()]
        )
    )
    out = io.BytesIO()
    file.save(file=out)
    # a tick is 1.302083 ms at first; from the second beat on it is twice as long
    assert piano_rows(out.getvalue(), "x") == [(1.302083, 1500.0, 60)]


def test_events_after_the_cut_are_dropped_and_those_across_it_end_there():
    rows = [(119_999.9, 130_000.0, 1), (120_000.0, 120_001.0, 2), (5.0, 9.0, 3), (100.0, 120_000.0, 4)]
    assert cut(rows) == [(5.0, 9.0, 3), (100.0, 120_000.0, 4), (119_999.9, 120_000.0, 1)]


def test_two_instruments_have_a_pedal_each():
    file = mido.MidiFile(ticks_per_beat=500)
    file.tracks.append(
        mido.MidiTrack(
            [
                mido.Message("control_change", channel=0, control=64, value=127, time=0),
                mido.Message("note_on", channel=0, note=60, time=100),
                mido.Message("note_on", channel=1, note=70, time=0),
                mido.Message("note_off", channel=0, note=60, time=100),
                mido.Message("note_off", channel=1, note=70, time=0),
                mido.Message("control_change", channel=0, control=64, value=0, time=300),
            ]
        )
    )
    out = io.BytesIO()
    file.save(file=out)
    assert {(n.pitch, n.offset) for n in read_notes(out.getvalue(), name="x")} == {(60, 0.5), (70, 0.2)}


@pytest.mark.parametrize("data", [b"", b"MThd", b"no midi at all", midi((0.1, "on", 60, 64))[:20]])
def test_what_is_no_midi_is_one_sentence(data):
    with pytest.raises(UserError, match=r"x\.midi: not a MIDI file"):
        read_notes(data, name="x.midi")
