"""`framekd listen`: events in a stream of PCM from standard input."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from framekd.commands.predict import early_check, model_arguments, open_for_frames, options_of
from framekd.errors import UserError


def add(commands: Any) -> None:
    """Add the command's arguments."""
    out = commands.add_parser(
        "listen", help="detect events in PCM (signed 16 bit, little endian) from standard input, as it comes"
    )
    out.set_defaults(run=listen)
    model_arguments(out)
    out.add_argument("--rate", type=int, default=16_000, help="samples per second of the stream (16000)")
    out.add_argument("--channels", type=int, default=1, help="channels of the stream (1)")


def listen(given: argparse.Namespace) -> int:
    """Print each event as a line of JSON when it has ended."""
    early_check(given)
    if not 1000 <= given.rate <= 768_000 or not 1 <= given.channels <= 64:
        raise UserError(
            f"--rate {given.rate} --channels {given.channels}: expected 1000 to 768000 Hz, 1 to 64 channels"
        )
    from framekd.listen import at_16_khz, parts_of
    from framekd.listen import listen as events_of

    model, classes = open_for_frames(given.model, given.device)
    options = options_of(given, classes)
    print("framekd: listening", file=sys.stderr, flush=True)
    try:
        with at_16_khz(sys.stdin.fileno(), given.rate, given.channels) as stream:
            for event in events_of(model, parts_of(stream), classes, **options):
                print(json.dumps(event, ensure_ascii=False), flush=True)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has ended, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
