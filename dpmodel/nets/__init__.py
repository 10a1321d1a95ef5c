"""Networks for images and feature vectors, built by name."""

from dpmodel.nets.activations import ACTIVATIONS as ACTIVATIONS
from dpmodel.nets.activations import TemperedSigmoid as TemperedSigmoid
from dpmodel.nets.activations import build_activation as build_activation
from dpmodel.nets.cifar_cnn import CifarCNN as CifarCNN
from dpmodel.nets.dense import MLP as MLP
from dpmodel.nets.dense import Linear as Linear
from dpmodel.nets.frozen_batch_norm import FrozenBatchNorm as FrozenBatchNorm
from dpmodel.nets.initializers import INITIALIZERS as INITIALIZERS
from dpmodel.nets.lenet5 import LeNet5 as LeNet5
from dpmodel.nets.networks import NETWORKS as NETWORKS
from dpmodel.nets.networks import build_network as build_network
from dpmodel.nets.resnet import resnet18 as resnet18
from dpmodel.nets.scattering_cnn import ScatteringCNN as ScatteringCNN
from dpmodel.nets.scattering_linear import ScatteringLinear as ScatteringLinear
from dpmodel.nets.small_cnn import SmallCNN as SmallCNN
from dpmodel.nets.standardised_conv import StandardisedConv2d as StandardisedConv2d
from dpmodel.nets.wide_resnet import WideResNet as WideResNet
