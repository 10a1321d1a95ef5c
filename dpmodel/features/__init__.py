"""Fixed features: a scattering transform, and features of data sets by frozen networks."""

from dpmodel.features.extraction import extract as extract
from dpmodel.features.extraction import extract_splits as extract_splits
from dpmodel.features.mirrored import Mirrored as Mirrored
from dpmodel.features.scattering import Scattering2D as Scattering2D
from dpmodel.features.transforms import FEATURES as FEATURES
from dpmodel.features.transforms import build_features as build_features
