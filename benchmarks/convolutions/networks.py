"""VGG-16, the network whose whole training step and inference are measured."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # filters and 3x3 layers; each stage ends with pooling


def vgg16(size: int = 224, classes: int = 1000) -> nn.Sequential:
    """Return VGG-16 for colour images of ``size`` x ``size``, a multiple of 32.

    Configuration D of Simonyan and Zisserman, "Very deep convolutional networks", 2014; weights as He et al. 2015
    draw them.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for stage, (filters, depth) in enumerate(STAGES, 1):
        for layer in range(1, depth + 1):
            conv = layers[f"conv{stage}_{layer}"] = nn.Conv2d(channels, filters, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            layers[f"relu{stage}_{layer}"] = nn.ReLU(inplace=True)
            channels = filters
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    features = channels * (size // 32) ** 2
    for number, units in ((6, 4096), (7, 4096)):
        layers[f"fc{number}"] = nn.Linear(features, units)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        layers[f"dropout{number}"] = nn.Dropout()
        features = units
    layers["fc8"] = nn.Linear(features, classes)
    return nn.Sequential(layers)
