"""Data sets: read what people upload, report every fault, keep it once.

``read_upload`` detects the format by content; ``DatasetStore`` keeps the
normalized examples and pictures under an id made from their content.
"""

from adapter_store.datasets.records import DatasetRef, Example, Fault, Limits, Report, Turn
from adapter_store.datasets.sources import ImageSource
from adapter_store.datasets.store import Dataset, DatasetStore
from adapter_store.datasets.upload import read_upload

__all__ = [
    "Dataset",
    "DatasetRef",
    "DatasetStore",
    "Example",
    "Fault",
    "ImageSource",
    "Limits",
    "Report",
    "Turn",
    "read_upload",
]
