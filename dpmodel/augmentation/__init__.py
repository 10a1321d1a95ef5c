"""Random augmentation of the examples on the training device; all views of an example count as one example."""

from dpmodel.augmentation.augmentation import Augmentation as Augmentation
from dpmodel.augmentation.transforms import AUGMENTATIONS as AUGMENTATIONS
from dpmodel.augmentation.transforms import HorizontalFlip as HorizontalFlip
from dpmodel.augmentation.transforms import RandomCrop as RandomCrop
from dpmodel.augmentation.transforms import Transform as Transform
from dpmodel.augmentation.transforms import build_transform as build_transform
