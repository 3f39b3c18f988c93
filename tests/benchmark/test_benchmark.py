"""The benchmark's runner: honest sizes, kept results, shares of images, failures that are named."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from gic.benchmark.cache import Cache
from gic.benchmark.codecs import BenchmarkCodec, Decoding, Gic
from gic.benchmark.results import Results, load_results, save_results
from gic.benchmark.runner import Runner, short_names
from gic.errors import ConfigError, DataError
from gic.quality.metric import ImageMetric, MetricInfo, NoValueError


class Posterise(BenchmarkCodec):
    """Keeps the upper bits and writes them as raw bytes; counts its calls."""

    name, suffix, version = "posterise", ".raw", "1"
    settings = ("bits=1", "bits=3")
    decodings = ("low", "middle")

    def __init__(self):
        self.encoded = self.decoded = 0

    @property
    def parameters(self):
        return {"layout": "rgb"}

    def encode(self, image, setting):
        self.encoded += 1
        bits = int(setting[-1])
        pixels = np.asarray(image) >> (8 - bits)
        return (
            bytes([bits, image.width, image.height])
            + np.packbits(np.unpackbits(pixels[..., None], axis=-1)[..., 8 - bits :]).tobytes()
        )

    def decode(self, data, decoding=""):
        self.decoded += 1
        bits, width, height = data[:3]
        flat = np.unpackbits(np.frombuffer(data[3:], np.uint8))[: width * height * 3 * bits]
        wide = np.zeros((height, width, 3, 8), np.uint8)
        wide[..., :bits] = flat.reshape(height, width, 3, bits)
        half = 0 if decoding == "low" else 1 << (7 - bits)
        return Image.fromarray(np.packbits(wide, axis=-1)[..., 0] + np.uint8(half))


class Absent(Posterise):
    name = "absent"

    def unavailable(self):
        return "its library is missing"


class Difference(ImageMetric):
    """Mean absolute difference; counts its calls."""

    info = MetricInfo("difference", "Difference", False, "image", "mean absolute difference, 8 bit")
    needs_reference = True

    def __init__(self):
        self.calls = 0

    def measure(self, x_hat, x):
        self.calls += 1
        return float((x_hat.float() - x.float()).abs().mean())


class Brightness(Difference):
    info = MetricInfo("brightness", "Brightness", True, "image", "mean, 8 bit")
    needs_reference = False

    def measure(self, x_hat, x):
        self.calls += 1
        return float(x_hat.float().mean())


class Corners:
    """Features: the four quarters' means. Value: distance of the means of all features."""

    identity = "means of quarters"

    def __call__(self, image):
        height, width = image.shape[1] // 2, image.shape[2] // 2
        return np.stack(
            [
                image[:, i * height : (i + 1) * height, j * width : (j + 1) * width].float().mean((1, 2)).numpy()
                for i in range(2)
                for j in range(2)
            ]
        ).astype(np.float32)


class Distance:
    info = MetricInfo("distance", "Distance", False, "set", "distance of mean features")

    def __init__(self, features=None):
        self.features = Corners() if features is None else features
        self.features_identity = self.features.identity

    def value(self, features, reference):
        return float(np.linalg.norm(features.mean(0, dtype=np.float64) - reference.mean(0, dtype=np.float64)))


class Thread:
    """One of several threads that play processes."""

    def __init__(self, rank, size, meeting, table):
        self.rank, self.size, self.device = rank, size, torch.device("cpu")
        self.meeting, self.table = meeting, table

    def gather(self, item):
        self.table[self.rank] = item
        self.meeting.wait()
        items = [self.table[rank] for rank in range(self.size)]
        self.meeting.wait()
        return items


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate([(40, 32), (32, 48), (50, 33), (32, 32), (64, 36)]):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(folder / f"picture{number}.png")
    return folder


def run(folder, cache, team=None, codecs=None, **options):
    runner = Runner(codecs or [Posterise()], [Difference(), Brightness()], [Distance()], cache, team, **options)
    mine, failures = runner.run(str(folder))
    records = runner.collect(mine, failures)
    return runner, runner.results(records, runner.set_values(records, mine), {"command": "test"})


def without_times(results):
    def strip(measurement):
        return replace(measurement, encode_seconds=0, decode_seconds=0, encode_peak_bytes=None, decode_peak_bytes=None)

    curves = [
        replace(c, points=[replace(p, images={k: strip(m) for k, m in p.images.items()}) for p in c.points])
        for c in results.curves
    ]
    return replace(results, curves=curves).to_json()


def test_sizes_are_those_of_the_files_over_the_pixels_of_the_originals(pictures, tmp_path):
    _, results = run(pictures, Cache(tmp_path / "cache"))
    for curve in results.curves:
        for point in curve.points:
            bits = int(point.setting[-1])
            for about in results.images:
                measured = point.images[about["key"]]
                pixels = about["width"] * about["height"]
                assert measured.bytes == 3 + -(-pixels * 3 * bits // 8)
                assert measured.bits_per_pixel == measured.bytes * 8 / pixels
            mean = sum(m.bits_per_pixel for m in point.images.values()) / 5
            assert point.mean("bits_per_pixel") == pytest.approx(mean)


def test_metrics_are_those_of_the_decoded_files(pictures, tmp_path):
    _, results = run(pictures, Cache(tmp_path / "cache"))
    codec = Posterise()
    point = next(c for c in results.curves if c.name == "posterise middle").points[1]
    for path in pictures.iterdir():
        image = Image.open(path)
        decoded = np.asarray(codec.decode(codec.encode(image, "bits=3"), "middle"), float)
        expected = np.abs(decoded - np.asarray(image, float)).mean()
        assert point.images[path.name].metrics["difference"] == pytest.approx(expected, abs=1e-4)
        assert results.originals["brightness"][path.name] == pytest.approx(np.asarray(image, float).mean(), abs=1e-3)


def test_metrics_of_all_images_together_use_all_features(pictures, tmp_path):
    _, results = run(pictures, Cache(tmp_path / "cache"))
    codec, corners = Posterise(), Corners()
    features, reference = [], []
    for path in sorted(pictures.iterdir()):
        image = Image.open(path)
        decoded = codec.decode(codec.encode(image, "bits=1"), "low")
        features.append(corners(torch.from_numpy(np.array(decoded)).permute(2, 0, 1)))
        reference.append(corners(torch.from_numpy(np.array(image)).permute(2, 0, 1)))
    expected = Distance().value(np.concatenate(features), np.concatenate(reference))
    point = next(c for c in results.curves if c.name == "posterise low").points[0]
    assert point.sets["distance"] == point.mean("distance") == pytest.approx(expected)


def test_what_is_finished_is_not_done_again_and_the_results_are_the_same(pictures, tmp_path):
    first, results = run(pictures, Cache(tmp_path / "cache"))
    again, same = run(pictures, Cache(tmp_path / "cache"))
    assert first.codecs[0].encoded > 0
    assert again.codecs[0].encoded == again.codecs[0].decoded == 0
    assert all(metric.calls == 0 for metric in again.image_metrics)
    assert same.to_json() == results.to_json()


def test_a_run_that_was_killed_goes_on_and_ends_alike(pictures, tmp_path):
    class Killed(Posterise):
        def decode(self, data, decoding=""):
            if self.decoded == 11:
                raise KeyboardInterrupt
            return super().decode(data, decoding)

    with pytest.raises(KeyboardInterrupt):
        run(pictures, Cache(tmp_path / "cache"), codecs=[Killed()])
    resumed, results = run(pictures, Cache(tmp_path / "cache"))
    whole, expected = run(pictures, Cache(tmp_path / "other"))
    assert resumed.codecs[0].encoded < whole.codecs[0].encoded
    assert without_times(results) == without_times(expected)


def test_a_metric_that_joins_later_is_computed_from_the_kept_files(pictures, tmp_path):
    cache = Cache(tmp_path / "cache")
    runner = Runner([Posterise()], [Difference()], [], cache)
    runner.run(str(pictures))
    runner, results = run(pictures, cache)
    assert runner.codecs[0].encoded == 0
    assert without_times(results) == without_times(run(pictures, Cache(tmp_path / "other"))[1])


def test_shares_of_several_processes_give_the_same_results(pictures, tmp_path):
    _, alone = run(pictures, Cache(tmp_path / "alone"))
    meeting, table, outcomes = threading.Barrier(2), {}, {}

    def process(rank):
        team = Thread(rank, 2, meeting, table)
        outcomes[rank] = run(pictures, Cache(tmp_path / f"cache{rank}"), team)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    shares = [outcomes[rank][0].codecs[0].encoded for rank in range(2)]
    assert shares == [3 * 2 + 1, 2 * 2 + 1]  # each image once, and one to warm up
    for _, results in outcomes.values():
        assert without_times(results) == without_times(alone)


def test_an_image_that_cannot_be_read_fails_the_run_at_its_end(pictures, tmp_path):
    (pictures / "broken.png").write_bytes((pictures / "picture0.png").read_bytes()[:60])
    runner = Runner([Posterise()], [Difference()], [], Cache(tmp_path / "cache"))
    mine, failures = runner.run(str(pictures))
    assert len(mine) == 5  # the others were measured, and are kept
    with pytest.raises(DataError, match=r"1 of 6 images failed.*broken\.png"):
        runner.collect(mine, failures)


def test_a_picture_of_another_size_is_a_failure_and_no_measurement(pictures, tmp_path):
    class Crops(Posterise):
        def decode(self, data, decoding=""):
            return super().decode(data, decoding).crop((0, 0, 16, 16))

    runner = Runner([Crops()], [Difference()], [], Cache(tmp_path / "cache"))
    mine, failures = runner.run(str(pictures / "picture0.png"))
    assert not mine
    assert "decodes to" in failures[0]


def test_a_codec_that_cannot_run_is_named_with_the_reason(pictures, tmp_path):
    _, results = run(pictures, Cache(tmp_path / "cache"), codecs=[Posterise(), Absent()])
    assert results.not_computed == {"absent": "its library is missing"}
    assert {curve.codec for curve in results.curves} == {"posterise"}


def test_a_metric_without_patches_is_named_with_the_reason(pictures, tmp_path):
    class Nothing(Corners):
        identity = "nothing"

        def __call__(self, image):
            return np.zeros((0, 3), np.float32)

    metric = Distance(Nothing())
    runner = Runner([Posterise()], [Difference()], [metric], Cache(tmp_path / "cache"))
    mine, failures = runner.run(str(pictures))
    records = runner.collect(mine, failures)
    results = runner.results(records, runner.set_values(records, mine), {})
    assert list(results.metrics) == ["difference"]
    assert "0 patches" in results.not_computed["distance"]


def test_two_codecs_of_one_name_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="'posterise'"):
        Runner([Posterise(), Posterise()], [], [], Cache(tmp_path))


def test_names_are_short_where_they_can_be():
    assert short_names(["a/x.png", "b/x.png", "b/y.png"]) == {
        "a/x.png": "a/x.png",
        "b/x.png": "b/x.png",
        "b/y.png": "y.png",
    }
    with pytest.raises(DataError, match="twice"):
        short_names(["a/x.png", "a/x.png"])


def test_results_survive_json_and_their_means_are_written(pictures, tmp_path):
    _, results = run(pictures, Cache(tmp_path / "cache"))
    save_results(tmp_path / "out", results)
    again = load_results(tmp_path / "out" / "results.json")
    assert again.to_json() == results.to_json()
    plain = json.loads((tmp_path / "out" / "results.json").read_text())
    entry = plain["curves"][0]["points"][0]
    assert entry["mean"]["difference"] == pytest.approx(results.curves[0].points[0].mean("difference"))
    rows = (tmp_path / "out" / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 4
    assert rows[0].startswith("curve,codec,decoding,setting,images,bytes,bits_per_pixel")


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense", '{"schema": "other"}'])
def test_other_files_are_no_results(text):
    with pytest.raises(DataError):
        Results.from_json(text)


class Picky(Difference):
    """Has no value for the wide pictures."""

    info = MetricInfo("picky", "Picky", False, "image", "no value for width 64", "")

    def measure(self, x_hat, x):
        if x.shape[-1] == 64:
            raise NoValueError("it is 64 pixels wide")
        return super().measure(x_hat, x)


class PickyJudge(Brightness):
    """Has no value for wide pictures that posterise made dark."""

    info = MetricInfo("judge", "Judge", True, "image", "no value for dark pictures")

    def measure(self, x_hat, x):
        return float("nan") if x.shape[-1] == 64 and x_hat.float().mean() < 70 else super().measure(x_hat, x)


def measured(pictures, tmp_path, *metrics, sets=()):
    runner = Runner([Posterise()], [Difference(), *metrics], list(sets), Cache(tmp_path / "cache"))
    mine, failures = runner.run(str(pictures))
    assert not failures
    records = runner.collect(mine, failures)
    return runner.results(records, runner.set_values(records, mine), {})


def test_a_metric_without_a_value_for_one_image_costs_nothing_else(pictures, tmp_path):
    results = measured(pictures, tmp_path, Picky())
    plain = measured(pictures, tmp_path / "other")
    for curve, other in zip(results.curves, plain.curves, strict=True):
        for point, same in zip(curve.points, other.points, strict=True):
            assert point.mean("difference") == same.mean("difference")
            assert point.images["picture4.png"].metrics["picky"] is None
            assert point.images["picture4.png"].reasons == {"picky": "it is 64 pixels wide"}
            others = [m.metrics["picky"] for key, m in point.images.items() if key != "picture4.png"]
            assert point.mean("picky") == pytest.approx(sum(others) / 4)
            assert len(point.having("picky")) == 4 and len(point.having("difference")) == 5


def test_a_mean_over_fewer_images_says_so_wherever_it_is_given(pictures, tmp_path):
    results = measured(pictures, tmp_path, Picky())
    (remark,) = results.remarks()
    assert remark == (
        "Picky has no value for 1 of 5 images, and its means are over the others: picture4.png: it is 64 pixels wide"
    )
    point = json.loads(results.to_json())["curves"][0]["points"][0]
    assert point["n"] == {"picky": 4}
    assert point["images"]["picture4.png"]["metrics"]["picky"] is None
    assert Results.from_json(results.to_json()) == results
    head, *rows = (row.split(",") for row in results.to_csv().splitlines())
    assert {row[head.index("n_picky")] for row in rows} == {"4"} and "n_difference" not in head
    assert results.over(results.metrics["picky"]) == "n = 4 of 5 images" and not results.over(
        results.metrics["difference"]
    )


def test_without_gaps_nothing_is_remarked(pictures, tmp_path):
    results = measured(pictures, tmp_path)
    assert results.remarks() == []
    assert all(point["n"] == {} for curve in json.loads(results.to_json())["curves"] for point in curve["points"])
    assert "n_" not in results.to_csv().splitlines()[0]


def test_an_image_without_a_value_at_some_points_is_in_no_curve(pictures, tmp_path):
    """Curves compare: they are over the images that all of them have, the originals too."""
    results = measured(pictures, tmp_path, PickyJudge())
    assert [[len(point.having("judge")) for point in curve.points] for curve in results.curves] == [[4, 5], [5, 5]]
    assert results.common("judge") == [f"picture{number}.png" for number in range(4)]
    results.originals["judge"].pop("picture0.png")
    assert results.common("judge") == [f"picture{number}.png" for number in range(1, 4)]
    (remark,) = results.remarks()
    assert "at some points" in remark and "its computation gives nan" in remark


def test_a_reason_is_kept_and_an_older_cache_without_one_is_measured_again(pictures, tmp_path):
    first = measured(pictures, tmp_path, Picky())
    again = Picky()
    assert measured(pictures, tmp_path, again).to_json() == first.to_json()
    assert again.calls == 0
    identity = Picky.info.identity
    for path in (tmp_path / "cache").rglob("*.json"):
        kept = json.loads(path.read_text())
        if isinstance(kept.get(identity), str):
            path.write_text(json.dumps({**kept, identity: None}))
    assert measured(pictures, tmp_path, Picky()).to_json() == first.to_json()


def test_a_metric_without_any_value_is_not_computed(pictures, tmp_path):
    class Never(Difference):
        info = MetricInfo("never", "Never", True, "image", "never")
        smallest = 100

    results = measured(pictures, tmp_path, Never())
    assert list(results.metrics) == ["difference"]
    reason = "it has no value for any image: 40 x 32 pixels are too few: it takes sides of 100"
    assert results.not_computed == {"never": reason}


def test_the_number_of_patches_is_kept_and_too_few_are_remarked(pictures, tmp_path):
    class Scarce(Distance):
        info = MetricInfo("scarce", "Scarce", False, "set", "distance of mean features", enough=21)

    class Enough(Distance):
        info = MetricInfo("enough", "Enough", False, "set", "distance of mean features", enough=20)

    results = measured(pictures, tmp_path, sets=[Scarce(), Enough()])
    assert results.patches == json.loads(results.to_json())["patches"] == {"scarce": 20, "enough": 20}
    (remark,) = results.remarks()
    assert remark == "Scarce is over 20 patches: below 21 it must not be compared with values over other images"
    assert results.label(results.metrics["scarce"]) == "Scarce, n = 20"
    assert results.over(results.metrics["enough"]) == "n = 20 patches"


def test_a_metric_of_sets_that_fails_costs_nothing_else(pictures, tmp_path):
    class Fails(Distance):
        info = MetricInfo("fails", "Fails", False, "set", "distance of mean features")

        def value(self, features, reference):
            raise np.linalg.LinAlgError("SVD did not converge")

    class Sometimes(Distance):
        info = MetricInfo("sometimes", "Sometimes", False, "set", "distance of mean features")

        def value(self, features, reference):
            return super().value(features, reference) if features.max() > 200 else float("nan")

    results = measured(pictures, tmp_path, sets=[Fails(), Sometimes()])
    assert results.not_computed == {"fails": "its computation fails: SVD did not converge"}
    assert list(results.metrics) == ["difference", "sometimes"]
    (remark,) = results.remarks()
    assert remark == "Sometimes has no value at 4 of 4 points"


def test_features_that_fail_on_an_image_name_it(pictures, tmp_path):
    class Breaks(Corners):
        def __call__(self, image):
            if image.shape[-1] == 64:
                raise RuntimeError("no features\nfor this")
            return super().__call__(image)

    runner = Runner([Posterise()], [], [Distance(Breaks())], Cache(tmp_path / "cache"))
    mine, failures = runner.run(str(pictures))
    assert len(mine) == 4 and failures == [f"{pictures}/picture4.png: means of quarters fails: no features for this"]


# --- gic among the codecs -----------------------------------------------------------------------------------------


def test_points_and_decodings_of_gic_are_named_in_order(tmp_path):
    with pytest.raises(ConfigError, match="not both"):
        Gic(q=[1.0], bpp=[0.1])
    with pytest.raises(ConfigError, match="at least one decoding"):
        Gic(decodings=[])
    assert Gic(decodings=[Decoding(0.0), Decoding(1.0, "euler", 1)]).decodings == ["r=0", "r=1, euler, 1 step"]


def test_a_sampler_that_there_is_not_is_found_before_anything_is_measured():
    with pytest.raises(ConfigError, match="there is no sampler 'midpiont'"):
        Decoding(1.0, "midpiont")
    with pytest.raises(ConfigError, match="alpha must lie in"):
        Decoding(1.0, "sde(alpha=2)")
