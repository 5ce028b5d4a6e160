"""Skeleton clips: reading, storing, normalising, sampling and batching them."""

from .augment import Augment
from .clips import ClipSet
from .pipeline import Pipeline

__all__ = ["Augment", "ClipSet", "Pipeline"]
