"""Data sets: readers by name, with public constants only, and streams."""

from dpmodel.data.datasets import DATASETS as DATASETS
from dpmodel.data.datasets import load_dataset as load_dataset
from dpmodel.data.in_memory import InMemoryDataset as InMemoryDataset
from dpmodel.data.splits import DataSplits as DataSplits
from dpmodel.data.splits import RawSplits as RawSplits
from dpmodel.data.stream import Stream as Stream
