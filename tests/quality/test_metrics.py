"""The benchmark's metrics against plain arithmetic and against the libraries' own entry points."""

from __future__ import annotations

import csv
import io
import math
import sys

import numpy as np
import pytest
import torch
from metric_files import Payload, isolate, save_clip, save_cnniqa, save_dists, save_musiq, save_vgg
from PIL import Image
from small import picture

from gic.errors import ConfigError, DataError
from gic.pictures.tensors import to_image, to_tensor
from gic.quality.metric import ImageMetric, MetricInfo
from gic.quality.metrics import higher_better, make_metric, make_metrics
from gic.quality.set_metrics import BATCH, PATCH, frechet_distance, patches, squared_mmd
from gic.quality.ssimulacra2 import ssimulacra2
from gic.quality.table import METRICS


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No network, no weights; gives torch hub's folder."""
    return isolate(monkeypatch, tmp_path)


@pytest.fixture
def weights(shared, no_network, monkeypatch):
    """The folder of local weights, and no network."""
    folder = shared / "weights"
    monkeypatch.setenv("GIC_METRIC_WEIGHTS", str(folder))
    return folder


def kodak(shared, number):
    path = shared / "data" / "kodak" / f"kodim{number:02d}.png"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return to_tensor(Image.open(path).convert("RGB"))


def jpeg(x, quality):
    data = io.BytesIO()
    to_image(x).save(data, "JPEG", quality=quality)
    return to_tensor(Image.open(data).convert("RGB"))


@pytest.fixture
def pair(shared):
    """A part of a Kodak image and its JPEG of quality 10."""
    x = kodak(shared, 3)[:, :288, :320]
    return x, jpeg(x, 10)


# --- one image --------------------------------------------------------------------------------------------------------


def test_psnr_is_the_textbooks():
    x, x_hat = picture(40, 30), picture(40, 30, salt=1)
    error = np.mean((x.numpy().astype(np.float64) - x_hat.numpy().astype(np.float64)) ** 2)
    assert make_metric("psnr")(x_hat, x) == pytest.approx(10 * math.log10(255**2 / error), abs=1e-9)
    assert make_metric("psnr")(x, x) is None
    assert "equals its original" in make_metric("psnr").judge(x, x)


def test_psnr_of_one_level_of_error_everywhere():
    x = torch.full((3, 5, 7), 100, dtype=torch.uint8)
    assert make_metric("psnr")(x + 1, x) == pytest.approx(48.1308, abs=1e-4)


def test_ms_ssim_is_one_for_equals_and_falls_with_noise():
    x = picture(170, 180)
    metric = make_metric("ms_ssim")
    noise = torch.randint(0, 40, x.shape, generator=torch.Generator().manual_seed(0))
    near, far = ((x.int() + scale * noise).clamp(0, 255).to(torch.uint8) for scale in (0.25, 1.0))
    assert metric(x, x) == pytest.approx(1)
    assert metric(far, x) < metric(near, x) < 1


def test_lpips_is_that_of_its_package(weights, pair):
    import lpips

    x, x_hat = pair
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = torch.load(weights / "alexnet_features.pth", weights_only=True)
    for number in range(1, 6):
        part = getattr(reference.net, f"slice{number}")
        for name, layer in part.named_children():
            if hasattr(layer, "weight"):
                layer.weight.data, layer.bias.data = state[f"features.{name}.weight"], state[f"features.{name}.bias"]
    with torch.no_grad():
        wanted = float(reference(x_hat[None] / 255.0, x[None] / 255.0, normalize=True))
    value = make_metric("lpips_alex")(x_hat, x)
    assert value == pytest.approx(wanted, rel=1e-5)
    assert 0.1 < value < 0.6
    assert make_metric("lpips_alex")(x, x) == 0


def test_lpips_takes_torchvisions_whole_file(weights, no_network, tmp_path, pair):
    import torchvision

    x, x_hat = pair
    network = torchvision.models.alexnet(weights=None)
    network.load_state_dict(torch.load(weights / "alexnet_features.pth", weights_only=True), strict=False)
    torch.save(network.state_dict(), tmp_path / "alexnet-owt-7be5be79.pth")
    whole = make_metric("lpips_alex", {"lpips_alex": str(tmp_path / "alexnet-owt-7be5be79.pth")})
    assert whole(x_hat, x) == make_metric("lpips_alex")(x_hat, x)


def posterised(x):
    return x // 24 * 24 + 12


def blurred(x):
    return torch.nn.functional.avg_pool2d(x.double(), 5, 1, 2).round().to(torch.uint8)


def noisy(x):
    noise = picture(x.shape[2], x.shape[1], "noise", 3).int() // 16 - 8
    return (x.int() + noise).clamp(0, 255).to(torch.uint8)


def tinted(x):
    return torch.stack([x[0], x[1], x[2] // 2])


SSIMULACRA2 = {  # what ssimulacra2 of libjxl 0.11.2 (Debian's libjxl-devtools) prints, of the four above in this order
    (300, 260, "smooth"): (69.319, 42.352, 80.942, 16.251),
    (300, 260, "edges"): (79.062, -27.528, 86.329, 43.732),
    (101, 67, "smooth"): (58.872, -5.731, 73.160, 59.706),  # five scales
    (101, 67, "edges"): (50.825, -7.709, 69.703, -4.027),
    (9, 40, "smooth"): (91.328, 74.746, 93.666, 98.134),  # two
}


@pytest.mark.parametrize("case", SSIMULACRA2)
def test_ssimulacra2_is_that_of_libjxl(case):
    """The tool computes in single precision, which costs it some hundredths."""
    x = picture(*case)
    found = [make_metric("ssimulacra2")(spoil(x), x) for spoil in (posterised, blurred, noisy, tinted)]
    assert found == pytest.approx(SSIMULACRA2[case], abs=0.1)


@pytest.mark.parametrize("size", [(300, 260), (101, 67), (8, 8)])
def test_ssimulacra2_is_100_for_equals_and_falls_with_noise(size):
    x = picture(*size)
    noise = torch.randint(-20, 20, x.shape, generator=torch.Generator().manual_seed(0))
    near, far = ((x + (scale * noise).int()).clamp(0, 255).to(torch.uint8) for scale in (0.2, 1.0))
    assert ssimulacra2(x, x) == 100
    assert ssimulacra2(far, x) < ssimulacra2(near, x) < 100


def test_ssimulacra2_sees_a_picture_alike_from_all_sides():
    x, x_hat = picture(75, 61), picture(75, 61, salt=1)
    wanted = ssimulacra2(x_hat, x)
    assert ssimulacra2(x_hat.mT, x.mT) == pytest.approx(wanted, rel=1e-9)
    # Odd sides are halved from the left and the top, so that only even ones can be mirrored.
    even, even_hat = x[:, :32, :64], x_hat[:, :32, :64]
    assert ssimulacra2(even_hat.flip(-1), even.flip(-1)) == pytest.approx(ssimulacra2(even_hat, even), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "file"), [("niqe", "niqe_modelparameters.mat"), ("brisque", "brisque_svm_weights.pth")]
)
def test_statistics_of_natural_images_are_those_of_pyiqa(name, file, weights, shared):
    import pyiqa

    x = kodak(shared, 3)
    reference = pyiqa.create_metric(name, device="cpu", pretrained_model_path=str(weights / file))
    metric = make_metric(name)
    assert metric(x, x) == pytest.approx(float(reference(x[None] / 255.0)), rel=1e-6)
    assert not metric.needs_reference
    assert not metric.info.higher_better


def test_jpeg_looks_worse_to_every_metric_at_hand(weights, pair):
    x, x_hat = pair
    images, _, missing = make_metrics(
        ["psnr", "ms_ssim", "ssimulacra2", "lpips_alex", "lpips_alex_moved", "lpips_squeeze", "niqe", "brisque"]
    )
    better = jpeg(x, 60)
    assert not missing
    for metric in images:
        sign = 1 if metric.info.higher_better else -1
        assert sign * metric(x_hat, x) < sign * metric(better, x), metric.info.name


def test_moved_lpips_is_lpips_without_the_first_rows_and_columns(weights, pair):
    x, x_hat = pair
    plain, free = make_metric("lpips_alex"), make_metric("lpips_alex_moved")
    assert free(x_hat, x) == plain(x_hat[:, 2:, 2:], x[:, 2:, 2:]) != plain(x_hat, x)
    assert (free.info.name, free.info.label) == ("lpips_alex_moved", "LPIPS (alex), moved")
    assert free.info.identity != plain.info.identity


def test_other_metrics_of_pyiqa_keep_their_direction(no_network):
    x = picture(64, 64)
    blurred = torch.nn.functional.avg_pool2d(x.float(), 5, 1, 2).round().to(torch.uint8)
    better, worse = make_metric("ssim"), make_metric("gmsd")
    assert (better.info.higher_better, worse.info.higher_better) == (True, False)
    assert better(blurred, x) < better(x, x)
    assert worse(blurred, x) > worse(x, x)
    assert better.needs_reference


def test_a_small_clip_serves_clipiqa(no_network, tmp_path):
    metric = make_metric("clipiqa", {"clipiqa": str(save_clip(tmp_path / "mine.pt"))})
    assert 0 < metric(picture(80, 64), picture(80, 64)) < 1
    assert metric.info.higher_better
    assert "mine.pt" in metric.info.identity


def test_ssimulacra2_takes_sides_of_eight():
    metric = make_metric("ssimulacra2")
    x, x_hat = picture(8, 20), picture(8, 20, salt=1)
    assert metric(x_hat, x) is not None
    assert metric(x_hat[..., 1:], x[..., 1:]) is None


def random_weights(name, folder):
    """Files of random weights for the metrics that are built from them; None for the others."""
    if name == "clipiqa":
        return {"clipiqa": str(save_clip(folder / "clip.pt"))}
    if name == "musiq":
        return {"musiq": str(save_musiq(folder / "musiq.pt"))}
    if name in ("lpips_vgg", "dists"):
        vgg = {"lpips_vgg" if name == "lpips_vgg" else "dists_vgg": str(save_vgg(folder / "vgg.pth"))}
        return vgg if name == "lpips_vgg" else {**vgg, "dists": str(save_dists(folder / "dists.pth"))}
    return None


OF_IMAGES = [name for name, entry in METRICS.items() if not entry.class_path.startswith("gic.quality.set_metrics")]
TAKE_LESS = ("dists", "brisque", "clipiqa")
"""Whose libraries compute something for smaller images too: of fewer features, or for some images only."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "ilniqe" else []) for name in OF_IMAGES]
)
def test_the_smallest_image_is_the_smallest_that_the_library_takes(name, request, tmp_path):
    named = random_weights(name, tmp_path)
    request.getfixturevalue("weights" if named is None else "no_network")
    try:
        metric = make_metric(name, named, download=False)
    except ConfigError as missing:
        pytest.skip(str(missing))
    side = metric.smallest
    for width, height in ((side, side), (side, side + 40), (side + 40, side)):
        assert math.isfinite(metric.judge(picture(width, height), picture(width, height, salt=1)))
    if side == 1:
        return
    small, small_hat = picture(side - 1, side + 40), picture(side - 1, side + 40, salt=1)
    assert metric(small_hat, small) is None
    assert metric.judge(small_hat, small) == f"{side - 1} x {side + 40} pixels are too few: it takes sides of {side}"
    if name not in TAKE_LESS:
        metric.smallest = 1
        values = [
            metric.judge(picture(width, side - 1), picture(width, side - 1, salt=1)) for width in (side - 1, side)
        ]
        assert any(isinstance(value, str) and "computation" in value for value in values)


@pytest.mark.parametrize("name", ["niqe", "brisque", "ilniqe"])
@pytest.mark.parametrize("level", [0, 250])
def test_natural_statistics_of_one_colour_are_no_value(name, level, weights):
    flat = torch.full((3, 100, 120), level, dtype=torch.uint8)
    metric = make_metric(name)
    assert metric(flat, picture(120, 100)) is None
    assert metric.judge(flat, picture(120, 100)) == "all pixels of the picture are equal"


def test_niqe_of_a_gradient_is_no_value_but_a_reason(weights):
    """Every block of it is without any detail."""
    gradient = torch.arange(200)[None, None].expand(3, 100, 200).to(torch.uint8)
    assert "its computation fails" in make_metric("niqe").judge(gradient, gradient)


class Failing(ImageMetric):
    info = MetricInfo("failing", "Failing", True, "image", "mine")

    def __init__(self, outcome):
        self.outcome = outcome

    def measure(self, x_hat, x):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    "outcome",
    [math.nan, math.inf, AssertionError("flat"), np.linalg.LinAlgError("singular"), torch.linalg.LinAlgError("nan"),
     ZeroDivisionError(), KeyError("k"), TypeError("None"), OverflowError("big")],
)  # fmt: skip
def test_a_metric_that_fails_on_an_image_has_no_value_there(outcome):
    metric = Failing(outcome)
    x = picture(8, 8)
    assert metric(x, x) is None
    assert "its computation" in metric.judge(x, x)


@pytest.mark.parametrize(
    "outcome",
    [MemoryError("cannot"), torch.OutOfMemoryError("CUDA out of memory"),
     RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), RuntimeError("CUDA error: launch failure")],
)  # fmt: skip
def test_a_machine_that_fails_is_an_error_and_no_missing_value(outcome):
    """Else a mean would depend on the machine."""
    with pytest.raises(DataError, match="failing fails on an image of 8 x 8 pixels"):
        Failing(outcome)(picture(8, 8), picture(8, 8))


def test_a_value_does_not_depend_on_where_it_is_asked_for(weights, pair):
    """Validation runs in half precision and without gradients, or with them."""
    x, x_hat = pair
    metric = make_metric("lpips_alex")
    with torch.autocast("cpu", torch.bfloat16):
        inside = metric(x_hat, x)
    assert inside == metric(x_hat, x)


# --- sets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height", "count"),
    [(768, 512, 8), (512, 768, 8), (256, 256, 1), (383, 400, 1), (384, 384, 2), (255, 999, 0)],
)
def test_patches_are_hific_s_two_grids(width, height, count):
    assert len(patches(torch.zeros(3, height, width, dtype=torch.uint8))) == count


def test_patches_are_where_they_should_be():
    x = torch.arange(640 * 512).reshape(1, 512, 640).expand(3, -1, -1)
    corners = [(int(patch[0, 0, 0]) // 640, int(patch[0, 0, 0]) % 640) for patch in patches(x)]
    assert corners == [(0, 0), (0, 256), (256, 0), (256, 256), (128, 128), (128, 384)]
    assert torch.equal(patches(x)[5], x[:, 128:384, 384:640])


def test_24_kodak_images_give_192_patches():
    shapes = [(512, 768)] * 18 + [(768, 512)] * 6
    assert sum(len(patches(torch.zeros(3, *shape, dtype=torch.uint8))) for shape in shapes) == 192


def test_fid_and_kid_are_torchmetrics(weights, shared):
    from torchmetrics.image import FrechetInceptionDistance, KernelInceptionDistance

    originals = [kodak(shared, number)[:, :384, :512] for number in (1, 20)]
    decoded = [jpeg(x, 5) for x in originals]
    _, (fid, kid), missing = make_metrics(["fid768", "kid768"])
    assert not missing
    assert fid.extractor is kid.extractor
    assert fid.features_identity == kid.features_identity
    x, x_hat = (np.concatenate([fid.features(image) for image in images]) for images in (originals, decoded))
    assert x.shape == (6, 768)
    assert x.dtype == np.float32

    path = str(weights / "inception_fid_768.pth")
    reference = FrechetInceptionDistance(feature=768, feature_extractor_weights_path=path)
    kernel = KernelInceptionDistance(feature=reference.inception, subsets=1, subset_size=6)
    for images, real in ((originals, True), (decoded, False)):
        for image in images:
            reference.update(patches(image), real=real)
    for features, real in ((x, True), (x_hat, False)):
        (kernel.real_features if real else kernel.fake_features).append(torch.from_numpy(features))
    assert fid.value(x_hat, x) == pytest.approx(float(reference.compute()), rel=1e-3)
    assert kid.value(x_hat, x) == pytest.approx(float(kernel.compute()[0]), rel=1e-3)
    assert fid.value(x, x) == pytest.approx(0, abs=1e-5)


def test_images_without_patches_have_no_features(weights):
    fid = make_metric("fid768")
    features = fid.features(picture(200, 300))
    assert features.shape == (0, 768)
    with pytest.raises(DataError, match="at least two patches of 256 x 256"):
        fid.value(features, features)


def test_below_how_many_patches_values_are_not_comparable_is_stated(weights):
    _, (fid, kid), _ = make_metrics(["fid768", "kid768"])
    assert (fid.info.enough, kid.info.enough) == (768, 100)  # FID: as many as features
    assert fid.info.caution(2) == (
        "FID-768 (256x256 patches) is over 2 patches: below 768 it must not be compared with values over other images"
    )
    assert fid.info.caution(768) == kid.info.caution(192) == make_metric("psnr").info.caution(1) == ""


def test_a_few_patches_and_their_reconstructions_lower_kid():
    """They are not independent: why kid states a number of patches, too."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 16, generator=generator, dtype=torch.float64)
    x_hat = 0.9 * x + 0.3
    few = torch.stack([torch.tensor(squared_mmd(b, a)) for a, b in zip(x.split(4), x_hat.split(4), strict=True)])
    assert float(few.mean()) < 0 < squared_mmd(x_hat, x)


@pytest.mark.parametrize(("n", "m", "d"), [(5, 7, 20), (40, 30, 6), (4, 50, 10)])
def test_the_frechet_distance_is_the_formulas(n, m, d):
    from scipy.linalg import sqrtm

    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, d, generator=generator, dtype=torch.float64)
    b = torch.randn(m, d, generator=generator, dtype=torch.float64) * torch.linspace(0.5, 2, d) + 0.3
    covariances = [np.cov(samples.numpy(), rowvar=False) for samples in (a, b)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(float(wanted), rel=1e-5)


def test_the_discrepancy_is_unbiased():
    """Its mean over samples of one distribution is zero; that of the biased estimate is not."""
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(2, 12, 3, generator=generator, dtype=torch.float64) for _ in range(2000)]
    values = torch.tensor([squared_mmd(a, b) for a, b in samples])
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean())) < 4 * error
    assert squared_mmd(samples[0][0], samples[0][0] + 1) > 1


def test_a_network_cut_off_above_768_is_refused_for_2048(weights):
    path = str(weights / "inception_fid_768.pth")
    with pytest.raises(ConfigError, match="weights up to the 768 features"):
        make_metric("fid", {"fid": path})


def test_the_whole_network_serves_both_layers(weights, tmp_path):
    """Random weights above 768, where the local file has zeros."""
    state = torch.load(weights / "inception_fid_768.pth", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, values in state.items():
        if name.startswith(("Mixed_7", "fc")) and values.is_floating_point():
            state[name] = torch.rand(values.shape, generator=generator) * 0.05
    torch.save(state, tmp_path / "whole.pth")
    _, sets, missing = make_metrics(["fid", "kid", "fid768"], {"fid": str(tmp_path / "whole.pth")})
    assert not missing
    x = picture(256, 300)
    assert [metric.features(x).shape for metric in sets] == [(1, 2048), (1, 2048), (1, 768)]
    assert sets[0].extractor is sets[1].extractor
    assert sets[0].features_identity != sets[2].features_identity


def test_more_patches_than_a_batch_come_out_in_order(weights):
    extractor = make_metric("fid768").extractor
    rows = []
    extractor._network = lambda batch: (rows.append(len(batch)), batch[:, 0, 0, :1].float())[1]
    x = torch.zeros(3, PATCH * 3, PATCH * 6, dtype=torch.uint8)
    for number in range(18):
        x[:, PATCH * (number // 6), PATCH * (number % 6)] = number
    assert extractor(x)[:18, 0].tolist() == list(range(18))
    assert rows[0] == BATCH
    assert sum(rows) == 18 + 10


@pytest.mark.slow
def test_means_over_kodak_are_those_measured_elsewhere(weights, shared):
    """JPEG of quality 10, 24 images, 192 patches."""
    published = shared / "published" / "kodak_classical.csv"
    if not published.is_file():
        pytest.skip(f"no {published}")
    with published.open() as file:
        (row,) = (row for row in csv.DictReader(file) if (row["codec"], row["q"]) == ("jpeg", "10"))
    images, (fid, kid), _ = make_metrics(["psnr", "ms_ssim", "lpips_alex", "niqe", "fid768", "kid768"])
    values, features = [], ([], [])
    for number in range(1, 25):
        x = kodak(shared, number)
        x_hat = jpeg(x, 10)
        values.append([metric(x_hat, x) for metric in images])
        for image, kept in zip((x_hat, x), features, strict=True):
            kept.append(fid.features(image))
    x_hat, x = map(np.concatenate, features)
    means = [*np.mean(values, axis=0), fid.value(x_hat, x), 1000 * kid.value(x_hat, x)]
    columns = ("psnr", "ms_ssim", "lpips", "niqe", "fid768", "kid768_x1000")
    assert means == pytest.approx([float(row[name]) for name in columns], rel=1e-4)


# --- making -----------------------------------------------------------------------------------------------------------


def test_without_weights_and_network_what_cannot_be_computed_is_named(no_network):
    images, sets, missing = make_metrics([*METRICS])
    without_weights = [name for name, entry in METRICS.items() if not entry.weights]
    assert [metric.info.name for metric in images] == without_weights and "psnr" in without_weights
    assert not sets
    assert set(missing) == set(METRICS) - set(without_weights)
    assert all("cannot be had" in reason for reason in missing.values())
    x, x_hat = picture(170, 170), picture(170, 170, salt=1)
    assert all(metric(x_hat, x) is not None for metric in images)


def test_names_and_directions(weights):
    images, sets, _ = make_metrics(["psnr", "lpips_alex", "brisque", "fid768", "kid768"])
    infos = {metric.info.name: metric.info for metric in (*images, *sets)}
    assert list(infos) == ["psnr", "lpips_alex", "brisque", "fid768", "kid768"]
    assert [info.kind for info in infos.values()] == ["image"] * 3 + ["set"] * 2
    assert [info.higher_better for info in infos.values()] == [True] + [False] * 4
    assert infos["lpips_alex"].label == "LPIPS (alex)"
    assert infos["fid768"].label == "FID-768 (256x256 patches)"
    assert infos["psnr"].unit == "dB"
    assert len({info.identity for info in infos.values()}) == 5


def test_the_direction_of_a_metric_is_known_without_its_weights(no_network):
    assert all(higher_better(name) for name in ("psnr", "ms_ssim", "ssimulacra2", "ssim"))
    assert not any(higher_better(name) for name in ("lpips_alex", "lpips_alex_moved", "fid", "kid768", "gmsd"))
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    for name in METRICS.keys() & DEFAULT_CONFIGS.keys() - {"psnr", "ms_ssim", "fid"}:
        assert higher_better(name) != DEFAULT_CONFIGS[name].get("lower_better", False), name
    with pytest.raises(ConfigError, match="near: lpips_alex"):
        higher_better("lpips_alx")


def test_only_the_direction_of_metrics_that_pyiqa_alone_has_takes_pyiqa(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    assert higher_better("ssimulacra2") and not higher_better("niqe")
    with pytest.raises(ConfigError, match="not installed"):
        higher_better("gmsd")


def test_identities_carry_the_hash_of_the_weights(weights, tmp_path):
    from hashlib import sha256

    path = weights / "alexnet_features.pth"
    digest = sha256(path.read_bytes()).hexdigest()[:8]
    assert f"alexnet_features.pth {digest}" in make_metric("lpips_alex").info.identity
    identities = {
        make_metric("cnniqa", {"cnniqa": str(save_cnniqa(tmp_path / "one.pth", seed))}).info.identity for seed in (1, 2)
    }
    assert len(identities) == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [("lpips_alx", "near: lpips_alex"), ("clipiqaa", "clipiqa"), ("inception_score", "does not judge single images")],
)
def test_unknown_names_are_errors(name, said, no_network):
    with pytest.raises(ConfigError, match=said):
        make_metrics(["psnr", name])


def test_a_wrong_file_that_the_user_names_is_an_error(no_network, tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.pth"):
        make_metrics(["psnr", "lpips_alex"], {"lpips_alex": "nowhere.pth"})
    torch.save(Payload(tmp_path / "made"), tmp_path / "bad.pth")
    with pytest.raises(ConfigError, match=r"bad\.pth"):
        make_metrics(["psnr", "dists"], {"dists_vgg": str(tmp_path / "bad.pth")})


def test_what_else_a_named_file_needs_may_be_missing(no_network, tmp_path):
    torch.save({}, tmp_path / "dists.pth")
    _, _, missing = make_metrics(["psnr", "dists"], {"dists": str(tmp_path / "dists.pth")})
    assert "vgg16-397923af.pth of dists cannot be had" in missing["dists"]


def test_a_wrong_file_in_the_folder_is_a_reason(no_network, tmp_path, monkeypatch):
    monkeypatch.setenv("GIC_METRIC_WEIGHTS", str(tmp_path))
    (tmp_path / "alexnet_features.pth").write_bytes(b"no weights")
    images, _, missing = make_metrics(["psnr", "lpips_alex"])
    assert [metric.info.name for metric in images] == ["psnr"]
    assert "alexnet_features.pth" in missing["lpips_alex"]


# --- one's own --------------------------------------------------------------------------------------------------------


def test_a_metric_of_ones_own_says_what_it_is_before_anything_is_measured():
    class Silent(ImageMetric):
        def measure(self, x_hat, x):
            return 0.0

    with pytest.raises(ConfigError, match="Silent has no description"):
        make_metric(Silent())
    with pytest.raises(ConfigError, match=r"\{class_path: mine\.Metric\}"):
        make_metrics(["psnr", "mine.Metric"])
    with pytest.raises(ConfigError, match="a metric is a name"):
        make_metric(7)


def test_metrics_of_one_run_share_their_extractor(weights):
    shared = {}
    fid, kid = (make_metric(name, shared=shared) for name in ("fid768", "kid768"))
    assert fid.extractor is kid.extractor and len(shared) == 1
    assert make_metric("fid768").extractor is not fid.extractor
