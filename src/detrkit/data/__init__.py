"""Datasets: reading, checking, converting, augmenting and batching."""

from detrkit.data.dataset import Dataset
from detrkit.data.image_processor import ImageProcessor
from detrkit.data.loader import Loader, make_loader
from detrkit.data.merging import merge_datasets
from detrkit.data.opening import open_dataset
from detrkit.data.sample import Record, Sample
from detrkit.data.samplers import EvalSampler, TrainSampler, order_by_aspect
from detrkit.data.transforms import eval_transform, to_target, train_transform

__all__ = [
    "Dataset",
    "EvalSampler",
    "ImageProcessor",
    "Loader",
    "Record",
    "Sample",
    "TrainSampler",
    "eval_transform",
    "make_loader",
    "merge_datasets",
    "open_dataset",
    "order_by_aspect",
    "to_target",
    "train_transform",
]
