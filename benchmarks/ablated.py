"""Run a script of stage 2 with another network in the place of its own.

    python benchmarks/ablated.py identity train_strokeformer.py --train_scans ...

``identity`` leaves the transformer's blocks out, ``segresnet`` is a convolutional network of about the same cost.
Checkpoints of one can be tested by the same one only.
"""

import runpy
import sys
from pathlib import Path

from monai.networks.nets import SegResNet
from torch import nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from models.segmentation import module as strokeformer
from models.segmentation import networks as segmenters


def without_attention(network: nn.Module) -> nn.Module:
    """Put the identity in place of every transformer of a network."""
    for module in [m for m in network.modules() if hasattr(m, "transformer")]:
        module.transformer = nn.Identity()
    return network


def identity(*args) -> nn.Module:
    return without_attention(segmenters.build_segmenter(*args))


def segresnet(arch: str, in_channels: int, num_classes: int, *rest) -> nn.Module:
    return SegResNet(3, 16, in_channels, num_classes)


NETWORKS = {"identity": identity, "segresnet": segresnet}

if __name__ == "__main__":
    name, script = sys.argv[1:3]
    strokeformer.build_segmenter = NETWORKS[name]
    sys.argv = sys.argv[2:]
    runpy.run_path(str(ROOT / script), run_name="__main__")
