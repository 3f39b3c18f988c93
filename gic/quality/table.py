"""Two tables, read before any metric is made: the metrics, and the files of weights that they need.

To add a metric, add a line to :data:`METRICS`; a metric of your own needs none: a config gives its ``class_path``
instead of a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class WeightsFile:
    """One file of weights.

    Attributes:
        key: Its name in configs, ``weights: {KEY: FILE}``.
        what: What it holds, and which library downloads it.
        names: Names in the folder GIC_METRIC_WEIGHTS, the library's own name first.
        cache: Folder of the library's cache, below torch hub's, or an absolute path.
    """

    key: str
    what: str
    names: tuple[str, ...]
    cache: str


_INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
_FILES = (
    WeightsFile(
        "lpips_alex",
        "AlexNet (torchvision): backbone of LPIPS, whole or features.* alone",
        ("alexnet-owt-7be5be79.pth", "alexnet_features.pth"),
        "checkpoints",
    ),
    WeightsFile(
        "lpips_squeeze",
        "SqueezeNet 1.1 (torchvision): backbone of LPIPS, whole or features.* alone",
        ("squeezenet1_1-b8a52dc0.pth", "squeezenet1_1_features.pth"),
        "checkpoints",
    ),
    WeightsFile(
        "lpips_vgg",
        "VGG-16 (torchvision): backbone of LPIPS, whole or features.* alone",
        ("vgg16-397923af.pth", "vgg16_features.pth"),
        "checkpoints",
    ),
    WeightsFile("fid", "Inception-v3 of FID and KID (torch-fidelity)", (_INCEPTION,), "checkpoints"),
    WeightsFile(
        "fid768",
        "Inception-v3 of FID and KID up to its 768 features (torch-fidelity)",
        (_INCEPTION, "inception_fid_768.pth"),
        "checkpoints",
    ),
    WeightsFile("dists", "DISTS (pyiqa)", ("DISTS_weights-f5e65c96.pth",), "pyiqa"),
    WeightsFile("dists_vgg", "VGG-16 (torchvision): backbone of DISTS, whole", ("vgg16-397923af.pth",), "checkpoints"),
    WeightsFile("clipiqa", "CLIP RN50 as OpenAI publishes it, TorchScript (pyiqa)", ("RN50.pt",), "clip"),
    WeightsFile("maniqa", "MANIQA trained on KonIQ-10k (pyiqa)", ("ckpt_koniq10k.pt",), "pyiqa"),
    WeightsFile("musiq", "MUSIQ trained on KonIQ-10k (pyiqa)", ("musiq_koniq_ckpt-e95806b9.pth",), "pyiqa"),
    WeightsFile("niqe", "NIQE (pyiqa)", ("niqe_modelparameters.mat",), "pyiqa"),
    WeightsFile("brisque", "BRISQUE (pyiqa)", ("brisque_svm_weights.pth",), "pyiqa"),
    WeightsFile("ilniqe", "IL-NIQE (pyiqa)", ("ILNIQE_templateModel.mat",), "pyiqa"),
)
FILES: Mapping[str, WeightsFile] = {file.key: file for file in _FILES}


class Tolerance(NamedTuple):
    """How much worse a metric may get before it counts as more than noise; the larger bound counts.

    Attributes:
        relative: Share of the earlier value.
        absolute: In the metric's own unit.
    """

    relative: float
    absolute: float


@dataclass(frozen=True)
class Entry:
    """A metric that has a name.

    Attributes:
        class_path: Its class.
        label: For people.
        higher_better: Its direction.
        init_args: Arguments of the class.
        weights: Keys of the files in :data:`FILES` that it needs.
        smallest: Shortest side of images, in pixels, for which it is defined.
        varied: Whether it needs pixels that are not all equal.
        tolerance: For metrics of how pictures look: how much worse training may make them, see
            :func:`gic.training.evaluation.gaming`; None for the others.
    """

    class_path: str
    label: str
    higher_better: bool
    init_args: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    smallest: int = 1
    tolerance: Tolerance | None = None
    varied: bool = False


def _own(name: str) -> str:
    return f"gic.quality.metrics.{name}"


def _set(name: str) -> str:
    return f"gic.quality.set_metrics.{name}"


def _lpips(net: str, smallest: int, moved: int = 0) -> Entry:
    arguments = {"net": net, "moved": moved}
    label = f"LPIPS ({net})" + (", moved" if moved else "")
    return Entry(_own("LPIPS"), label, False, arguments, (f"lpips_{net}",), smallest, Tolerance(0.05, 0.005))


def _pyiqa(
    name: str, label: str, higher_better: bool, weights: tuple[str, ...], smallest: int = 1, **more: Any
) -> Entry:
    return Entry(_own("Pyiqa"), label, higher_better, {"metric": name}, weights, smallest, **more)


METRICS: Mapping[str, Entry] = {
    "psnr": Entry(_own("PSNR"), "PSNR", True),
    "ms_ssim": Entry(_own("MSSSIM"), "MS-SSIM", True, smallest=161),  # five scales
    # May be negative, so that its tolerance is absolute.
    "ssimulacra2": Entry(_own("SSIMULACRA2"), "SSIMULACRA 2", True, smallest=8, tolerance=Tolerance(0.0, 2.0)),
    "lpips_alex": _lpips("alex", 31),
    "lpips_alex_moved": _lpips("alex", 33, moved=2),  # half the stride of AlexNet's first layer
    "lpips_squeeze": _lpips("squeeze", 17),
    "lpips_vgg": _lpips("vgg", 16),
    "dists": _pyiqa("dists", "DISTS", False, ("dists", "dists_vgg"), 16, tolerance=Tolerance(0.05, 0.005)),
    "fid": Entry(_set("FID"), "FID", False, {"dimensions": 2048}, ("fid",), tolerance=Tolerance(0.05, 0.0)),
    # Values near zero may be negative by chance.
    "kid": Entry(_set("KID"), "KID", False, {"dimensions": 2048}, ("fid",), tolerance=Tolerance(0.1, 0.0005)),
    "fid768": Entry(_set("FID"), "FID-768", False, {"dimensions": 768}, ("fid768",), tolerance=Tolerance(0.05, 0.0)),
    "kid768": Entry(_set("KID"), "KID-768", False, {"dimensions": 768}, ("fid768",), tolerance=Tolerance(0.1, 0.0001)),
    "clipiqa": _pyiqa("clipiqa", "CLIP-IQA", True, ("clipiqa",), 32),
    "maniqa": _pyiqa("maniqa", "MANIQA", True, ("maniqa",)),
    "musiq": _pyiqa("musiq", "MUSIQ", True, ("musiq",)),
    "niqe": _pyiqa("niqe", "NIQE", False, ("niqe",), 96, tolerance=Tolerance(0.05, 0.1), varied=True),
    "brisque": _pyiqa("brisque", "BRISQUE", False, ("brisque",), 16, varied=True),
    "ilniqe": _pyiqa("ilniqe", "IL-NIQE", False, ("ilniqe",), 4, varied=True),
}
"""Metrics by name. pyiqa has more, under its own names and with its own list of files."""
