"""LPIPS and no-reference terms: values, direction, gradients, and that nothing of them is trained or saved."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from metric_files import isolate, save_clip, save_cnniqa, save_maniqa, save_musiq
from places import CONFIGS, TESTS
from small import small_model
from torch.nn import functional as F

from gic.errors import ConfigError
from gic.quality.networks import lpips_network
from gic.quality.terms import LPIPS, NoReference, _random_crop, moved
from gic.training.objective import Objective


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No network, no weights; gives torch hub's folder."""
    return isolate(monkeypatch, tmp_path)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(2, 3, 16, 16), size=96, mode="bicubic").clamp(0, 1)
    return x, (x + 0.1 * torch.randn_like(x)).clamp(0, 1)


SAVE = {
    "clipiqa": (save_clip, "RN50.pt"),
    "cnniqa": (save_cnniqa, "cnniqa.pth"),
    "musiq": (save_musiq, "musiq.pth"),
    "maniqa": (save_maniqa, "maniqa.pt"),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of a no-reference metric, by name: the real networks' layouts, random values."""
    folder = tmp_path_factory.mktemp("weights")

    @cache
    def make(metric):
        save, name = SAVE[metric]
        return str(save(folder / name))

    return make


@pytest.fixture(scope="module")
def term(file):
    """A term with those weights, by name."""
    return cache(lambda metric: NoReference(metric, weights=file(metric)))


class Seen(Exception):  # noqa: N818
    """What a layer was given; the rest of the network need not run."""


def given_to(network, layer, call):
    """What a call gives to a layer of a network."""

    def stop(module, args):
        raise Seen(args[0].detach())

    hook = network.get_submodule(layer).register_forward_pre_hook(stop)
    try:
        with pytest.raises(Seen) as seen:
            call()
    finally:
        hook.remove()
    return seen.value.args[0]


# --- LPIPS ------------------------------------------------------------------------------------------------------------


def test_lpips_from_a_local_backbone_is_zero_for_equals_and_grows_with_noise(shared, pair):
    x, noisy = pair
    term = LPIPS(backbone=str(shared / "weights" / "alexnet_features.pth"))
    same, near, far = term(x, x), term((x + noisy) / 2, x), term(noisy, x)
    assert torch.allclose(same, torch.zeros(2), atol=1e-6)
    assert (near < far).all()
    assert near.shape == (2,)


def test_lpips_passes_gradients_to_the_image_and_to_nothing_else(shared, pair):
    x, noisy = pair
    term = LPIPS(backbone=str(shared / "weights" / "alexnet_features.pth"))
    noisy.requires_grad_()
    term(noisy, x).sum().backward()
    assert noisy.grad is not None
    assert noisy.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in term.network.parameters())


def test_lpips_judges_in_single_precision_where_the_codec_trains_in_half(shared, pair):
    x, noisy = pair
    term = LPIPS(backbone=str(shared / "weights" / "alexnet_features.pth"))
    with torch.autocast("cpu", torch.bfloat16):
        inside = term(noisy, x)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, term(noisy, x))


def test_a_backbone_left_out_is_found_in_the_folder(shared, no_network, monkeypatch, pair):
    x, noisy = pair
    with pytest.raises(ConfigError, match="gic weights lpips_alex --download"):
        LPIPS()
    monkeypatch.setenv("GIC_METRIC_WEIGHTS", str(shared / "weights"))
    named = LPIPS(backbone=str(shared / "weights" / "alexnet_features.pth"))
    assert torch.equal(LPIPS()(noisy, x), named(noisy, x))


def test_the_wrong_backbone_is_refused(shared):
    with pytest.raises(ConfigError, match="does not hold this backbone"):
        lpips_network("alex", str(shared / "weights" / "squeezenet1_1_features.pth"))


def test_a_missing_backbone_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.pth"):
        lpips_network("alex", "nowhere.pth")


def test_moved_images_stay_beside_each_other_and_meet_every_place_of_a_stride():
    rows, columns = torch.meshgrid(torch.arange(80.0), torch.arange(96.0), indexing="ij")
    x = torch.stack([rows, columns, torch.zeros(80, 96)])[None]
    corners, directions, sizes = set(), set(), set()
    torch.manual_seed(0)
    for _ in range(200):
        a, b = moved(x, x + 1)
        assert torch.allclose(a + 1, b, atol=1e-4)
        sizes.add(tuple(a.shape[-2:]))
        if a.shape[-2:] == (72, 88):
            directions.add(tuple(int(v) for v in (a[0, :2, -1, -1] - a[0, :2, 0, 0]).sign()))
            corners.add(tuple(int(v) for v in a[0, :2].amin((1, 2))))
    assert directions == {(1, 1), (1, -1), (-1, 1), (-1, -1)}
    assert {top % 4 for top, _ in corners} == {left % 4 for _, left in corners} == {0, 1, 2, 3}
    assert all(0 <= top <= 8 and 0 <= left <= 8 for top, left in corners)
    assert all(64 <= h <= 72 * 1.4 + 1 and 64 <= w <= 88 * 1.4 + 1 for h, w in sizes) and len(sizes) > 20


def test_what_pleases_the_grid_of_the_backbone_pleases_moved_lpips_less(shared, pair):
    """A picture changed to please AlexNet where its stride puts it, as a decoder learns to."""
    x, noisy = pair
    plain, free = (LPIPS(backbone=str(shared / "weights" / "alexnet_features.pth"), moved=m) for m in (False, True))
    tuned = noisy.clone().requires_grad_()
    for _ in range(10):
        (slope,) = torch.autograd.grad(plain(tuned, x).sum(), tuned)
        tuned = (tuned - 0.01 * slope.sign()).detach().requires_grad_()

    def mean(image):
        torch.manual_seed(0)
        with torch.no_grad():
            return float(torch.stack([free(image, x) for _ in range(16)]).mean())

    with torch.no_grad():
        kept = float((plain(tuned, x) / plain(noisy, x)).mean())
    assert kept < 0.5
    assert mean(tuned) / mean(noisy) > 1.5 * kept
    assert torch.allclose(free(x, x), torch.zeros(2), atol=1e-6)


# --- no reference -----------------------------------------------------------------------------------------------------


def test_an_unknown_metric_gets_near_names():
    with pytest.raises(ConfigError, match="clipiqa"):
        NoReference("clipiqaa")


def test_a_metric_with_a_reference_is_refused():
    with pytest.raises(ConfigError, match="needs a reference"):
        NoReference("psnr")


@pytest.mark.parametrize("metric", ["clipiqa", "cnniqa", "musiq", pytest.param("maniqa", marks=pytest.mark.slow)])
def test_gradients_reach_the_image_and_lead_to_better_scores(metric, term):
    """Higher is better for all of these: going down the term goes up the score."""
    judge = term(metric)
    x = F.interpolate(torch.rand(1, 3, 8, 8, generator=seeded(1)), size=(232, 240), mode="bicubic").clamp(0.1, 0.9)
    x.requires_grad_()
    torch.manual_seed(2)
    value = judge(x, x)
    value.sum().backward()
    assert value.shape == (1,)
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any()

    def score(image):
        torch.manual_seed(2)  # the same window
        window = image if judge.crop is None else _random_crop(image, judge.crop)
        with torch.no_grad():
            return float(judge.network.net(window))

    assert score(x - 0.02 * x.grad / x.grad.abs().max()) > score(x)
    assert not judge.network.lower_better
    assert not any(p.requires_grad or p.grad is not None for p in judge.network.parameters())


@pytest.mark.parametrize("metric", ["clipiqa", "cnniqa"])
def test_the_term_is_the_negated_score_of_the_library(metric, file):
    x = torch.rand(2, 3, 64, 64, generator=seeded())
    judge = NoReference(metric, weights=file(metric), crop=None)
    with torch.no_grad():
        assert torch.equal(-judge(x, x), judge.network.net(x).flatten())
        assert (-judge(x, x)).mean() == pytest.approx(float(judge.network(x)))


@pytest.mark.parametrize(
    ("metric", "layer", "mean", "std"),
    [
        ("clipiqa", "conv1", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ("maniqa", "vit", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("cnniqa", "conv1", (0, 0, 0), (1, 1, 1)),
    ],
)
def test_a_network_gets_the_values_it_was_trained_on(metric, layer, mean, std, term):
    """A term is given [0, 1], clips what lies outside, and the networks normalise themselves."""
    judge = term(metric)
    network = judge.network.net.clip_model[0].visual if metric == "clipiqa" else judge.network.net
    x = torch.tensor([-0.5, 0.25, 0.5, 1.5]).repeat_interleave(60)[:225].expand(1, 3, 225, 225)
    window = given_to(network, layer, lambda: judge(x, x))
    values = window[0] * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    assert window.shape == (1, 3, 224, 224)
    assert torch.allclose(values.mul(4096).round().unique() / 4096, torch.tensor([0.0, 0.25, 0.5, 1.0]))


def test_musiq_gets_values_from_minus_one_to_one(term, monkeypatch):
    from pyiqa.archs import musiq_arch

    seen = []
    real = musiq_arch.get_multiscale_patches
    monkeypatch.setattr(
        musiq_arch, "get_multiscale_patches", lambda x, **options: (seen.append(x), real(x, **options))[1]
    )
    x = torch.linspace(0, 1, 64 * 96).reshape(1, 1, 64, 96).expand(1, 3, 64, 96)
    with torch.no_grad():
        term("musiq")(x, x)
    assert seen[0].shape == x.shape  # the whole image
    assert (float(seen[0].min()), float(seen[0].max())) == (-1, 1)


def test_clipiqa_lies_between_0_and_1(term):
    x = torch.rand(2, 3, 64, 64, generator=seeded())
    with torch.no_grad():
        score = -term("clipiqa")(x, x)
    assert ((score > 0) & (score < 1)).all()


@pytest.mark.parametrize(("metric", "crop"), [("clipiqa", 224), ("cnniqa", 224), ("musiq", None), ("maniqa", 225)])
def test_each_metric_gets_the_crop_it_expects(metric, crop, term):
    assert term(metric).crop == crop


def test_the_crop_can_be_chosen(file):
    assert NoReference("cnniqa", weights=file("cnniqa"), crop=None).crop is None
    assert NoReference("cnniqa", weights=file("cnniqa"), crop=96).crop == 96


def test_maniqa_judges_one_window_without_resampling(term):
    """pyiqa alone would judge 20 windows, of a crop of 224 all in the same place."""
    judge = term("maniqa")
    x = torch.rand(1, 3, 225, 225, generator=seeded())
    window = given_to(judge.network.net, "vit", lambda: judge(x, x))
    assert torch.allclose(window * 0.5 + 0.5, x[..., :224, :224], atol=1e-6)


def test_niqe_is_a_loss_of_which_less_is_better(shared, monkeypatch):
    monkeypatch.setenv("GIC_METRIC_WEIGHTS", str(shared / "weights"))
    term = NoReference("niqe")
    x = torch.rand(1, 3, 192, 192, generator=seeded()).requires_grad_()
    value = term(x, x)
    value.sum().backward()
    assert value > 0
    assert x.grad is not None
    assert x.grad.any()


def test_a_metric_without_a_gradient_is_refused_as_a_loss():
    term = NoReference("entropy")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert term(x, x).shape == (1,)  # it can measure
    with pytest.raises(ConfigError, match="entropy passes no usable gradient"):
        term(x.requires_grad_(), x)


def test_clip_stays_in_single_precision_when_the_image_comes_in_half(term):
    judge = term("clipiqa")
    x = torch.rand(1, 3, 64, 64, generator=seeded())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        score = judge(x.bfloat16(), x)
    assert score.dtype == torch.float32
    assert next(judge.network.net.clip_model[0].parameters()).dtype == torch.float32


def test_crops_have_the_size_asked_for_even_of_smaller_images():
    assert _random_crop(torch.rand(2, 3, 300, 260), 224).shape == (2, 3, 224, 224)
    assert _random_crop(torch.rand(2, 3, 100, 50), 224).shape == (2, 3, 224, 224)


# --- in the objective -------------------------------------------------------------------------------------------------


def test_several_terms_count_by_their_weights(file):
    """At r = 1 the loss is the rest and each term times its weight."""
    codec = small_model()
    x = torch.rand(1, 3, 64, 64, generator=seeded())

    def loss(**weights):
        terms = {metric: NoReference(metric, weight, file(metric), crop=None) for metric, weight in weights.items()}
        return Objective(terms=terms, realism=[1.0], sampler="mean")(codec, x, torch.tensor([2.0]))

    both = loss(clipiqa=0.5, cnniqa=3.0)
    assert torch.allclose(both["loss"], loss()["loss"] + 0.5 * both["clipiqa"] + 3 * both["cnniqa"], rtol=1e-5)
    assert both["clipiqa"] != both["cnniqa"]


def test_terms_train_the_codec_and_are_no_part_of_it(file, tmp_path, monkeypatch):
    """Nothing of a term is in the state dict, in the optimiser or in a checkpoint, and a run leaves it as it was."""
    from gic.data.synthetic import ensure_synthetic_shards
    from gic.training.cli import make_cli

    monkeypatch.chdir(tmp_path)
    ensure_synthetic_shards(tmp_path / "pictures", train=4, val=1, size=(64, 64), progress=False)
    terms = {
        metric: {
            "class_path": "gic.quality.terms.NoReference",
            "init_args": {"metric": metric, "weights": file(metric)},
        }
        for metric in ("clipiqa", "cnniqa")
    }
    objective = {
        "terms": terms,
        "realism": [1.0],
        "realism_from": 0.0,
        "sampler": "mean",
        "rate_weight": 0.0,
        "lambda_0": 0.0,
    }
    settings = {
        "trainer": {"max_steps": 2, "val_check_interval": 2, "limit_val_batches": 0},
        "model": {"trainable": ["compressor.g_s"], "objective": {"init_args": objective}},
        "data": {"train": "pictures/train-*.tar", "val": "pictures/val-000000.tar", "batches_per_epoch": 2},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    configs = [str(CONFIGS / "base.yaml"), str(TESTS / "tiny.yaml"), "run.yaml"]
    cli = make_cli(["fit", *(word for config in configs for word in ("--config", config))])
    cli.trainer.save_checkpoint("a.ckpt")

    saved = torch.load("a.ckpt", weights_only=True)
    codec = cli.model.codec
    assert set(saved["state_dict"]) == {f"codec.{name}" for name in codec.state_dict()}
    (group,) = saved["optimizer_states"][0]["param_groups"]
    assert len(group["params"]) == len(list(codec.compressor.g_s.parameters()))
    assert (tmp_path / "a.ckpt").stat().st_size < (tmp_path / file("cnniqa")).stat().st_size / 2
    judge = cli.model.objective.terms["cnniqa"]
    assert judge.network.net.training is False
    fresh = torch.load(file("cnniqa"), weights_only=True)["params"]
    assert all(torch.equal(values.cpu(), fresh[name]) for name, values in judge.network.net.state_dict().items())


def test_an_objective_with_terms_has_no_parameters_of_its_own(shared):
    objective = Objective(terms={"lpips": LPIPS(backbone=str(shared / "weights" / "alexnet_features.pth"))})
    assert not list(objective.parameters()) and not objective.state_dict()
