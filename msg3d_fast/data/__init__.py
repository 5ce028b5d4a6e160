"""Skeleton clips: reading, storing, normalising, sampling and batching them."""

from .augment import Augment
from .clips import ClipSet
from .formats import open_dataset
from .order import Order
from .pipeline import Pipeline
from .prepare import default_workers, prepare
from .store import check_store, open_store
from .store_writer import write_store
from .synthetic import synthetic

__all__ = [
    "Augment",
    "ClipSet",
    "Order",
    "Pipeline",
    "check_store",
    "default_workers",
    "open_dataset",
    "open_store",
    "prepare",
    "synthetic",
    "write_store",
]
