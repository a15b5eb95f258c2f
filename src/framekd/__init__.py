"""Effective pre-training of audio transformers for sound event detection."""
