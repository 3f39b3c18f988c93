"""The adversarial term: who learns in which half step, how it is weighed, and that runs with it go on as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from terms import Roughness
from tiny_models import adversarial, images, judge, started, tiny
from torch import Tensor
from training_runs import DDP, callback_words, finish, losses, start
from training_runs import tiny as tiny_run

from gic.errors import ConfigError
from gic.models.codec import Codec, trainable_parameters
from gic.models.reverse import ReverseUNet
from gic.models.transforms import Synthesis
from gic.quality.discriminator import LOSS_MAX, LOSSES, Adversarial, DiscriminatorError, PatchDiscriminator
from gic.training.cli import make_cli
from gic.training.module import LitCodec
from gic.training.objective import Objective

Q = torch.tensor([1.0, 2.0, 4.0])
TERM = """
    class_path: gic.quality.discriminator.Adversarial
    init_args:
      warmup_steps: 1
      ramp_steps: 1
      discriminator:
        class_path: gic.quality.discriminator.PatchDiscriminator
        init_args: {width: 4, latent_width: 2, embedding: 4}
"""
CONFIG = f"""
model:
  objective:
    init_args:
      realism: [1.0]
      adversarial: {TERM.replace(chr(10), chr(10) + "    ")}
"""


def realistic(**options: Any) -> Codec:
    torch.manual_seed(2)
    codec = tiny(**options)
    torch.manual_seed(3)
    codec.reverse = ReverseUNet(codec.compressor.latent_channels, (8,), (1,), 8, realistic=True)
    with torch.no_grad():
        for name, weights in codec.reverse.named_parameters():
            if "realistic" not in name:
                weights.normal_(std=0.1)
    return codec


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


# --- who learns -------------------------------------------------------------------------------------------------------


def test_each_half_step_reaches_exactly_what_learns_in_it() -> None:
    codec = realistic().train()
    for name, learns in trainable_parameters(codec, ["reverse.realistic"]).items():
        codec.get_parameter(name).requires_grad_(learns)
    term = started(adversarial())
    parts, seen = Objective(realism=(1.0,), steps=2, adversarial=term).evaluate(codec, images(), Q)
    assert seen is not None
    parts["loss"].backward()
    decoder = gradients(codec)
    assert set(decoder) == {name for name, p in codec.named_parameters() if p.requires_grad}
    assert all(name.startswith("reverse.realistic.") for name in decoder)
    assert any(bool(grad.any()) for grad in decoder.values())
    assert not gradients(term.discriminator)

    term.learn(*seen)
    reached = gradients(term.discriminator)
    assert {name for name, grad in reached.items() if grad.any()} >= {
        name for name, _ in term.discriminator.named_parameters() if "original" in name
    }
    for name, grad in gradients(codec).items():
        assert torch.equal(grad, decoder[name])


def test_the_decoder_is_told_the_sum_of_all_terms() -> None:
    codec = tiny().train()
    term = started(adversarial(weight=0.7))
    term.discriminator.eval()  # spectral norms go on at every call
    objective = Objective(realism=(0.5,), terms={"roughness": Roughness(3.0)}, adversarial=term)

    torch.manual_seed(0)
    parts, _ = objective.evaluate(codec, images(), Q)
    parts["loss"].backward()
    found = gradients(codec)
    codec.zero_grad()

    # The same by one loss, with the weights as numbers.
    plain = Objective(realism=(0.5,), terms={"roughness": Roughness(3.0)})
    out: list[Any] = []
    torch.manual_seed(0)
    handle = codec.register_forward_hook(lambda *arguments: out.append(arguments[-1]))
    others = plain(codec, images(), Q)["loss"] * len(Q)
    handle.remove()
    x_hat, y_hat = out[0].x_hat, out[0].y_hat
    slope = torch.autograd.grad(others, x_hat, retain_graph=True)[0].flatten(1).norm(dim=1)
    own = term(x_hat, y_hat, Q)
    own_slope = torch.autograd.grad(own.sum(), x_hat, retain_graph=True)[0].flatten(1).norm(dim=1)
    ((others + (0.5 * 0.7 * slope / own_slope * own).sum()) / len(Q)).backward()
    expected = gradients(codec)
    assert set(found) == set(expected)
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-5 * float(expected[name].abs().max()))
    assert float(parts["adversarial_weight"]) == pytest.approx(float((0.7 * slope / own_slope).mean()), rel=1e-4)


def test_samples_of_least_distortion_are_neither_judged_nor_pushed() -> None:
    codec = tiny().train()
    term = started(adversarial(weight=5.0))
    torch.manual_seed(0)
    _, seen = Objective(realism=(0.0, 1.0, 1.0), adversarial=term).evaluate(codec, images(), Q)
    assert seen is not None and len(seen.x) == 2 and seen.batch == 3
    assert torch.equal(seen.q, Q[1:]) and torch.equal(seen.x, images()[1:])
    for q, same in ((Q[:1], True), (Q[1:2], False)):
        slopes = []
        for judged in (None, term):
            objective = Objective(realism=(0.0 if same else 1.0, 1.0)[:1], adversarial=None)
            if judged is not None:
                objective.realism, objective.adversarial = (0.0 if same else 1.0,), judged
            codec.zero_grad()
            torch.manual_seed(0)
            objective(codec, images(1), q)["loss"].backward()
            slopes.append(gradients(codec)["compressor.g_s.layers.0.weight"])
        assert torch.equal(*slopes) == same


def test_realism_that_learns_leaves_the_estimate_of_least_distortion_as_it_is() -> None:
    codec = realistic()
    parts = codec.compressor.g_s
    codec.compressor.g_s = Synthesis((8, 8, 8, 8), (0, 0, 1, 1), 8, gain=parts.gain, realistic_stages=2)
    codec.compressor.g_s.load_state_dict(parts.state_dict(), strict=False)
    names = ["reverse.realistic", "compressor.g_s.realistic"]
    learning = [codec.get_parameter(n) for n, learns in trainable_parameters(codec, names).items() if learns]
    optimizer = torch.optim.Adam(learning, 1e-2)
    objective = Objective(realism=(1.0,), steps=2, adversarial=started(adversarial()))

    def decoded(r: float) -> Tensor:
        with torch.no_grad():
            return codec.eval()(images(), Q, realism=r).x_hat

    before = decoded(0.0), decoded(1.0)
    for _ in range(3):
        objective(codec.train(), images(), Q)["loss"].backward()
        optimizer.step()
        codec.zero_grad()
    assert torch.equal(decoded(0.0), before[0])
    assert not torch.allclose(decoded(1.0), before[1], atol=1e-3)


# --- the term ---------------------------------------------------------------------------------------------------------


def test_the_weight_makes_its_gradient_a_set_share_of_the_others_sample_by_sample() -> None:
    torch.manual_seed(0)
    others, own = torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8) * torch.tensor([1e-3, 1.0, 50.0]).reshape(3, 1, 1, 1)
    weights = adversarial(weight=0.25).adapted(others, own)
    shares = (weights[:, None, None, None] * own).flatten(1).norm(dim=1) / others.flatten(1).norm(dim=1)
    assert torch.allclose(shares, torch.full((3,), 0.25))
    assert bool(adversarial().adapted(others, torch.zeros_like(own)).isfinite().all())


def test_the_discriminator_learns_alone_and_then_counts_more_and_more() -> None:
    term = adversarial(warmup_steps=10, ramp_steps=4)
    shares = []
    for term.steps in (0, 10, 11, 13, 14, 100):
        shares.append(term.share)
    assert shares == [0, 0, 0.25, 0.75, 1, 1]


def test_a_judgement_depends_on_the_picture_the_latent_and_the_level() -> None:
    network = judge()
    torch.nn.init.normal_(network.film.weight)
    x, y_hat = torch.rand(3, 3, 64, 96), torch.randn(3, 8, 4, 6)
    logits = network(x, y_hat, Q)
    assert logits.shape == (3, 1, 8, 12) and logits.dtype == torch.float32
    for others in ((1 - x, y_hat, Q), (x, -y_hat, Q), (x, y_hat, 2 * Q)):
        assert not torch.allclose(network(*others), logits, atol=1e-4)


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("r1", [0.0, 1.0])
def test_a_discriminator_learns_to_tell_originals_from_what_is_decoded(loss: Any, r1: float) -> None:
    term = Adversarial(judge(), loss=loss, lr=1e-2, r1=r1)
    generator = torch.Generator().manual_seed(0)
    y_hat = torch.zeros(3, 8, 4, 4)
    for _ in range(60):
        x = torch.rand(3, 3, 64, 64, generator=generator)
        parts = term.learn(x, 0.5 + 0.2 * (x - 0.5), y_hat, Q)
        term.step()
    assert parts["accuracy_real"] > 0.9 and parts["accuracy_decoded"] > 0.9
    assert term.steps == 60
    x = torch.rand(3, 3, 64, 64, generator=generator)
    assert bool((term(x, y_hat, Q) < term(0.5 + 0.2 * (x - 0.5), y_hat, Q)).all())  # lower is more like an original


def test_the_penalty_flattens_the_discriminator_at_originals() -> None:
    def slope(r1: float) -> float:
        term = Adversarial(judge(), lr=1e-2, r1=r1, r1_every=2)
        generator = torch.Generator().manual_seed(0)
        for _ in range(60):
            x = torch.rand(3, 3, 64, 64, generator=generator)
            term.learn(x, 0.5 + 0.2 * (x - 0.5), torch.zeros(3, 8, 4, 4), Q)
            term.step()
        x = torch.rand(3, 3, 64, 64, generator=generator, requires_grad=True)
        (found,) = torch.autograd.grad(term.discriminator(x, torch.zeros(3, 8, 4, 4), Q).sum(), x)
        return float(found.square().mean())

    assert slope(300.0) < 0.5 * slope(0.0)


def test_gradients_of_parts_of_a_batch_add_up_to_those_of_the_whole() -> None:
    x, x_hat, y_hat = torch.rand(3, 3, 64, 64), torch.rand(3, 3, 64, 64), torch.randn(3, 8, 4, 4)
    found = []
    for parts in ([slice(0, 3)], [slice(0, 1), slice(1, 3)]):
        term = adversarial()
        term.discriminator.eval()  # spectral norms go on at every call
        for part in parts:
            term.learn(x[part], x_hat[part], y_hat[part], Q[part], batch=6)
        found.append(gradients(term.discriminator))
    for name, grad in found[0].items():
        assert torch.allclose(grad, found[1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Objective(realism=(0.0,), adversarial=adversarial()), "realism names none"),
        (lambda: Objective(lambda_0=0.0, realism=(1.0,), adversarial=adversarial()), "weighed against"),
        (lambda: adversarial(loss="wasserstein"), "one of hinge, non_saturating, not 'wasserstein'"),
        (lambda: adversarial(weight=0.0), "positive"),
        (lambda: adversarial(lr=float("nan")), "positive"),
        (lambda: adversarial(warmup_steps=-1), "warmup_steps"),
        (lambda: PatchDiscriminator(width=0), "at least 1"),
        (
            lambda: LitCodec(tiny(), Objective(realism=(1.0,), adversarial=Adversarial(judge(9)))),
            "the discriminator is made for 9 latent channels",
        ),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def words(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adversarial.yaml").write_text(CONFIG)
    command, *rest = tiny_run(pictures)
    return [command, *rest, "--config", str(tmp_path / "adversarial.yaml")]


def weights(folder: Path, step: int) -> dict[str, Any]:
    return torch.load(folder / "ckpt" / f"step-{step:06d}.ckpt", weights_only=True)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def test_steps_of_a_run_are_the_decoders_and_a_gathered_step_is_one_of_both(words: list[str], tmp_path: Path) -> None:
    for gathered, batches in ((1, 3), (2, 6)):
        more = ["--trainer.max_steps", "3", "--trainer.accumulate_grad_batches", str(gathered)]
        (tmp_path / "losses" / "rank0").unlink(missing_ok=True)
        cli = make_cli([*words, *more, "--trainer.callbacks", "[{class_path: training_runs.Losses}]"])
        assert cli.trainer.global_step == cli.model.objective.adversarial.steps == 3
        assert len(losses(tmp_path)) == batches


def test_a_run_that_goes_on_is_the_uninterrupted_one_bit_for_bit(words: list[str], tmp_path: Path) -> None:
    words = [*words, "--trainer.max_steps", "6", *callback_words()]
    make_cli(words)
    whole = weights(tmp_path, 6)
    steps = losses(tmp_path)
    (tmp_path / "ckpt").rename(tmp_path / "first")
    (tmp_path / "losses" / "rank0").unlink()
    make_cli([*words, "--ckpt_path", str(tmp_path / "first" / "step-000004.ckpt")])
    assert losses(tmp_path) == steps[4:]
    again = weights(tmp_path, 6)
    for part in ("state_dict", "current_model_state", "optimizer_states", "adversarial"):
        assert same(whole[part], again[part]), part
    before = torch.load(tmp_path / "first" / "step-000004.ckpt", weights_only=True)
    assert not same(whole["adversarial"], before["adversarial"])


def test_a_run_may_begin_its_discriminator_late_and_says_so(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = [word for word in words if "adversarial" not in word][: -1 if words[-2] == "--config" else None]
    make_cli([*plain, "--trainer.max_steps", "2", *callback_words()])
    capsys.readouterr()
    path = str(tmp_path / "ckpt" / "step-000002.ckpt")
    cli = make_cli([*words, "--trainer.max_steps", "4", *callback_words(), "--ckpt_path", path])
    assert "holds no discriminator: a new one begins, and learns alone for 1 steps" in capsys.readouterr().out
    assert cli.trainer.global_step == 4 and cli.model.objective.adversarial.steps == 2


def test_a_checkpoint_of_another_discriminator_is_refused(words: list[str], tmp_path: Path) -> None:
    make_cli([*words, "--trainer.max_steps", "2", *callback_words()])
    key = "--model.objective.init_args.adversarial.init_args.discriminator.init_args.width"
    with pytest.raises(ConfigError, match="another discriminator"):
        make_cli([*words, key, "5", "--ckpt_path", str(tmp_path / "ckpt" / "step-000002.ckpt")])


def test_weights_that_are_exported_hold_nothing_of_the_discriminator(words: list[str], tmp_path: Path) -> None:
    checkpoint = (
        "{class_path: gic.training.checkpoint.Checkpoint, init_args: {dirpath: ckpt, export: ckpt/out.safetensors}}"
    )
    make_cli([*words, "--trainer.max_steps", "2", "--trainer.callbacks", f"[{checkpoint}]"])
    saved = weights(tmp_path, 2)
    assert saved["adversarial"]["steps"] == 2
    assert not any("discriminator" in name or "objective" in name for name in saved["state_dict"])
    codec = {name.removeprefix("codec.") for name in saved["state_dict"]}
    assert set(load_file(tmp_path / "ckpt" / "out.safetensors")) == codec


def test_a_discriminator_that_diverges_ends_the_run_with_one_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    term = adversarial()
    term.check(LOSS_MAX)
    for loss in (LOSS_MAX * 1.01, float("nan"), float("inf")):
        with pytest.raises(DiscriminatorError, match="diverged after 0 steps"):
            term.check(loss)
    monkeypatch.setattr("gic.quality.discriminator.LOSS_MAX", 0.5)
    with pytest.raises(DiscriminatorError, match="lower its lr"):
        make_cli(words)


def test_modules_may_have_learning_rates_of_their_own(words: list[str]) -> None:
    rates = ["--model.learning_rates", "{reverse: 0.002, compressor.g_s.layers: 0.003}", "--trainer.max_steps", "2"]
    cli = make_cli([*words, *rates, "--model.schedule.init_args.warmup_steps", "0"])
    (optimizer,) = cli.trainer.optimizers
    rates_of = {id(p): group["initial_lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in cli.model.codec.named_parameters():
        expected = 0.002 if name.startswith("reverse.") else 0.003 if "g_s.layers" in name else 5e-4
        assert rates_of[id(parameter)] == expected, name
    factors = {group["lr"] / group["initial_lr"] for group in optimizer.param_groups}
    assert max(factors) - min(factors) < 1e-9 and max(factors) < 1  # all follow the schedule
    for wrong in ("{nothing: 0.1}", "{reverse: 0.0}"):
        with pytest.raises(ConfigError, match=r"no module 'nothing'|rate of reverse must be positive"):
            make_cli([*words, "--model.learning_rates", wrong])


def test_two_processes_train_discriminator_and_codec_as_one_does(words: list[str], tmp_path: Path) -> None:
    # Two ranks draw what one rank with two workers does, in batches that alternate. Not every batch has r > 0.
    runs = {
        "two": [*DDP, "--data.num_workers", "1"],
        "one": ["--data.num_workers", "2", "--trainer.accumulate_grad_batches", "2"],
    }
    for name, more in runs.items():
        common = ["--data.batch_size", "1", "--trainer.max_steps", "3", "--data.batches_per_epoch", "8"]
        common += ["--model.objective.init_args.realism", "[0.0, 1.0]"]
        process = start([*words, *common, *more, *callback_words()], tmp_path / name)
        assert finish(process) == 0, (tmp_path / name / "out").read_text()[-3000:]
    alone = [2 * float.fromhex(loss) for _, loss in losses(tmp_path / "one")]
    for rank in (0, 1):
        shared = [float.fromhex(loss) for _, loss in losses(tmp_path / "two", rank)]
        assert len(shared) == 3
        assert shared == pytest.approx(alone[rank::2], rel=0.02)
    one, two = (weights(tmp_path / name, 2)["adversarial"]["discriminator"] for name in ("one", "two"))
    begun = Adversarial(judge()).discriminator.state_dict()
    for name in one:
        if "original" in name:  # the estimates of the norms go on at every call
            moved = float((one[name] - begun[name]).norm())
            assert float((one[name] - two[name]).norm()) < 0.05 * moved
