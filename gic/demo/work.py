"""What the demo computes: ``.gic`` files of a picture at any size, and what each codec makes of the same bytes.

Nothing here knows of the network. Results are told in events, dictionaries that JSON holds, as soon as they are there.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gic.bitstream.container import MAGIC, truncate, unpack
from gic.codec.encoder import Encoding
from gic.codec.image_codec import ImageCodec
from gic.codec.rate import nearest
from gic.demo.equal_bytes import LABELS, EqualBytes, other_codecs
from gic.demo.judges import Judges, psnr
from gic.demo.turns import Check, Shelf
from gic.errors import ConfigError, DataError, GicError, ImageError
from gic.pictures.load import load_rgb

Tell = Callable[[Mapping[str, Any]], None]

REDUCED = 1 << 21
"""Pixels to which larger pictures are reduced where the page does not ask for all of them."""
JUDGED = 1 << 22
"""Pixels up to which metrics in PyTorch are computed, which take some 600 bytes of memory for each."""
SIDES = ("original", "gic", "gic-0", "gic-1", *LABELS)
"""What a side of the page may show: gic at the realism of the page, at 0, at 1; other codecs by name."""
STEPS = 200
"""Steps of the slider of sizes."""
OPENING = 0.4
"""Bits per pixel of the file that the page opens with, as near as the picture comes to it."""
NOT_YET = "Not a picture yet: more of the file must arrive."

_PICTURES = 3
_RESULTS = 32
_MEMORY = 1 << 29  # bytes of decoded pictures that are kept
_FILES = 16


class Coded:
    """A picture that is analysed: its files by level, and how long each took.

    Args:
        encoding: The analysed picture.
        seconds: How long that took.
    """

    def __init__(self, encoding: Encoding, seconds: float) -> None:
        self.encoding, self.seconds = encoding, seconds
        self.width, self.height = encoding.width, encoding.height
        self.finest, self.coarsest = encoding.finest, encoding.coarsest
        self.smallest, self.largest = (encoding.estimate(code) for code in (self.coarsest, self.finest))
        self._files: OrderedDict[int, tuple[bytes, float]] = OrderedDict()

    def estimate(self, code: int) -> int:
        """Estimated size of the file at a level, in bytes."""
        return self.encoding.estimate(code)

    def at(self, code: int) -> bytes:
        """The file at a level."""
        if code not in self._files:
            started = time.perf_counter()
            data = self.encoding.at(code)
            self._files[code] = data, time.perf_counter() - started
            if len(self._files) > _FILES:
                self._files.popitem(last=False)
        return self._files[code][0]

    def part(self, size: float) -> float:
        """The part of :meth:`sized` that comes nearest to a size in bytes, at a step of the page's slider."""
        if self.largest <= self.smallest:
            return 1.0
        part = math.log(size / self.smallest) / math.log(self.largest / self.smallest)
        return round(STEPS * min(1.0, max(0.0, part))) / STEPS

    def sized(self, part: float) -> tuple[bytes, float]:
        """A file, and the seconds that analysing and coding took.

        Args:
            part: 0 for the smallest, 1 for the largest, and between them linear in the logarithm of the size.
        """
        target = math.exp((1 - part) * math.log(self.smallest) + part * math.log(self.largest))
        data = nearest(self, target)
        return data, self.seconds + self._files[unpack(data).code][1]


@dataclass
class Picture:
    """A picture that the page has sent or named.

    Attributes:
        image: Mode "RGB".
        whole: Width and height that it had.
        notes: What was changed to make 8 bit sRGB of it.
        coded: Analysed for plain and for progressive files, as far as that was asked for.
        equal: Its files by other codecs.
    """

    image: Image.Image
    whole: tuple[int, int]
    notes: Sequence[str]
    equal: EqualBytes
    coded: dict[bool, Coded] = field(default_factory=dict)


@dataclass
class Result:
    """A decoded picture and what the page says of it.

    Attributes:
        image: Mode "RGB".
        picture: Identifies the original.
        about: ``name``, ``setting``, ``bytes``, ``bpp``, ``encode`` and ``decode`` (seconds), ``metrics`` by name.
    """

    image: Image.Image
    picture: str
    about: dict[str, Any]


@dataclass(frozen=True)
class Wish:
    """What the page asks for.

    Attributes:
        picture: Identifies the picture.
        size: From 0, the smallest file, to 1, the largest; None for :data:`OPENING`.
        realism: r in [0, 1].
        progressive: Whether the file is a progressive one.
        received: Part of it that has arrived, in [0, 1]; of others all has.
        left: One of :data:`SIDES`.
        right: The same.
        playing: Whether the file is arriving just now: other codecs then stay at the size of the whole file.
    """

    picture: str
    size: float | None
    realism: float
    progressive: bool
    received: float
    left: str
    right: str
    playing: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Wish:
        """Read what a page has sent.

        Raises:
            ConfigError: If something is missing, or of another kind.
        """
        size = given.get("size")
        shares = [given.get(name) for name in ("realism", "received")] + ([] if size is None else [size])
        sides = [given.get(name) for name in ("left", "right")]
        if (
            not all(isinstance(share, (int, float)) and 0 <= share <= 1 for share in shares)
            or not all(side in SIDES for side in sides)
            or not isinstance(given.get("picture"), str)
        ):
            raise ConfigError("the page asks for something that this gic does not know: reload the page")
        realism, received, *sizes = map(float, shares)  # type: ignore[arg-type]  # all numbers
        left, right = map(str, sides)
        progressive, playing = bool(given.get("progressive")), bool(given.get("playing"))
        return cls(given["picture"], sizes[0] if sizes else None, realism, progressive, received, left, right, playing)


class Work:
    """The codec, and the pictures that pages have sent, the last few.

    Args:
        codec: With its weights.
        examples: Pictures that the page offers.
    """

    def __init__(self, codec: ImageCodec, examples: Sequence[Path] = ()) -> None:
        self.codec, self.examples = codec, tuple(examples)
        self.judges = Judges()
        self.unavailable = {name: why for name, other in other_codecs().items() if (why := other.unavailable())}
        self._secret = secrets.token_bytes(32)
        self._pictures: Shelf[Picture] = Shelf(_PICTURES, _MEMORY)
        self._results: Shelf[Result] = Shelf(_RESULTS, _MEMORY)
        self._files: Shelf[bytes] = Shelf(_FILES, _MEMORY)

    def about(self) -> dict[str, Any]:
        """What the page needs to know before it has a picture."""
        return {
            "examples": [path.name for path in self.examples],
            "codecs": [{"name": n, "label": label, "missing": self.unavailable.get(n)} for n, label in LABELS.items()],
            "metrics": self.judges.described,
            "steps": STEPS,
            "advice": self.judges.advice,
        }

    # --- pictures -------------------------------------------------------------------------------------------------

    def example(self, number: Any, whole: bool, tell: Tell) -> None:
        """Take one of the examples, by its number.

        Raises:
            GicError: If there is none, or it cannot be read.
        """
        if not isinstance(number, int) or not 0 <= number < len(self.examples):
            raise DataError("there is no such example: reload the page")
        try:
            data = self.examples[number].read_bytes()
        except OSError as error:
            raise DataError(f"{self.examples[number].name} cannot be read: {error.strerror}") from error
        self.add(data, whole, tell)

    def add(self, data: bytes, whole: bool, tell: Tell) -> None:
        """Take a picture.

        Args:
            data: Its file.
            whole: Whether to keep all its pixels where it has more than :data:`REDUCED`.
            tell: Is told its id and size.

        Raises:
            ImageError: If it is none that gic reads.
        """
        if data.startswith(MAGIC):
            raise ImageError("this is a .gic file and no picture: gic decompress makes a picture of it")
        name = self._name("picture", hashlib.sha256(data).hexdigest(), str(whole))
        picture = self._pictures.get(name)
        if picture is None:
            tell({"event": "status", "text": "reading the picture"})
            loaded = load_rgb(data, name="the file")
            image, size = loaded.image, loaded.image.size
            if not whole and image.width * image.height > REDUCED:
                scale = math.sqrt(REDUCED / (image.width * image.height))
                smaller = max(1, round(image.width * scale)), max(1, round(image.height * scale))
                image = image.resize(smaller, Image.Resampling.LANCZOS, reducing_gap=3)
            picture = Picture(image, size, loaded.notes, EqualBytes(image))
            self._pictures.put(name, picture, _weight(image))
        tell(
            {
                "event": "picture",
                "id": name,
                "width": picture.image.width,
                "height": picture.image.height,
                "whole": picture.whole,
                "notes": picture.notes,
            }
        )

    def _picture(self, name: str) -> Picture:
        picture = self._pictures.get(name)
        if picture is None:
            raise DataError("this picture is no longer kept (the last few are): choose it again")
        return picture

    def shown(self, name: str) -> Image.Image | None:
        """A picture or result by its id; None if it is not kept."""
        kept = self._pictures.get(name) or self._results.get(name)
        return None if kept is None else kept.image

    def file(self, name: str) -> bytes | None:
        """A ``.gic`` file by its id; None if it is not kept."""
        return self._files.get(name)

    # --- comparing ------------------------------------------------------------------------------------------------

    def compare(self, wish: Wish, tell: Tell, check: Check) -> None:
        """Make the file of a wish and what both sides show.

        Raises:
            GicError: If the picture is not kept, or cannot be coded.
            SupersededError: From ``check``.
        """
        picture = self._picture(wish.picture)
        coded = self._coded(picture, wish.progressive, tell, check)
        pixels = coded.width * coded.height
        size = coded.part(OPENING * pixels / 8) if wish.size is None else wish.size
        tell({"event": "range", "smallest": coded.smallest, "largest": coded.largest, "size": size})
        tell({"event": "status", "text": "coding"})
        data, seconds = coded.sized(size)
        check()
        part, first = data, 0
        if wish.progressive and (progressive := unpack(data).progressive):
            first = progressive.start
            arrived = round(wish.received * len(data))
            part = truncate(data, arrived) if arrived >= first else data[:arrived]
        file = self._name("file", hashlib.sha256(part).hexdigest())
        self._files.put(file, part, len(part))
        tell(
            {
                "event": "file",
                "id": file if len(part) >= first else None,
                "bytes": len(part),
                "bpp": 8 * len(part) / pixels,
                "whole": len(data),
                "first": first,
            }
        )
        # While a file arrives, and before its first picture, the others stay at the size of the whole file.
        equal = len(data) if wish.playing or len(part) < first else len(part)
        made: dict[str, dict[str, Any]] = {}
        for side, what in (("left", wish.left), ("right", wish.right)):
            if what not in made:
                if len(part) < first and what.startswith("gic"):
                    made[what] = {"name": "gic", "picture": None, "missing": NOT_YET, "metrics": {}}
                else:
                    made[what] = self._side(what, wish, picture, part, equal, seconds, tell, check)
            tell({"event": "side", "side": side, **made[what]})

    def _coded(self, picture: Picture, progressive: bool, tell: Tell, check: Check) -> Coded:
        if progressive not in picture.coded:
            tell({"event": "status", "text": "analysing the picture"})
            started = time.perf_counter()
            encoding = self.codec.encoding(
                np.asarray(picture.image), progressive=progressive, progress=_progress("analysing", tell, check)
            )
            picture.coded[progressive] = Coded(encoding, time.perf_counter() - started)
        return picture.coded[progressive]

    def _side(
        self,
        what: str,
        wish: Wish,
        picture: Picture,
        part: bytes,
        equal: int,
        seconds: float,
        tell: Tell,
        check: Check,
    ) -> dict[str, Any]:
        """What a side shows, and what the page says of it; other codecs come near to ``equal`` bytes."""
        check()
        if what == "original":
            return {"name": "original", "picture": wish.picture, "metrics": {}}
        try:
            if what in LABELS:
                return self._other(what, wish, picture, equal, tell, check)
            realism = {"gic-0": 0.0, "gic-1": 1.0}.get(what, wish.realism)
            return self._gic(realism, wish, picture, part, seconds, tell, check)
        except ImageError as error:
            return {"name": LABELS.get(what, "gic"), "picture": None, "missing": str(error), "metrics": {}}

    def _gic(
        self, realism: float, wish: Wish, picture: Picture, part: bytes, seconds: float, tell: Tell, check: Check
    ) -> dict[str, Any]:
        name = self._name("gic", wish.picture, hashlib.sha256(part).hexdigest(), repr(realism))
        if (kept := self._results.get(name)) is not None:
            return {"picture": name, **kept.about}
        file = unpack(part)
        q = file.levels[file.progressive.complete if file.progressive else 0]
        tell({"event": "status", "text": "decoding"})
        started = time.perf_counter()
        image = self.codec.decompress(part, realism=realism, progress=_progress("decoding", tell, check)).convert("RGB")
        about = {"name": "gic", "setting": f"q={q:.3g}, r={realism:.2g}", "bytes": len(part), "encode": seconds}
        return self._keep(name, image, wish.picture, picture, {**about, "decode": time.perf_counter() - started})

    def _other(self, what: str, wish: Wish, picture: Picture, size: int, tell: Tell, check: Check) -> dict[str, Any]:
        tell({"event": "status", "text": f"looking for the {LABELS[what]} file nearest in size"})
        if (why := self.unavailable.get(what)) is not None:
            raise ImageError(f"{LABELS[what]} is not available: {why}")
        found = picture.equal.near(what, size, check)
        name = self._name(what, wish.picture, found.setting)
        if (kept := self._results.get(name)) is not None:
            return {"picture": name, **kept.about}
        started = time.perf_counter()
        image = other_codecs()[what].decode(found.data).convert("RGB")
        about = {"name": LABELS[what], "setting": found.setting, "bytes": len(found.data), "encode": found.seconds}
        return self._keep(name, image, wish.picture, picture, {**about, "decode": time.perf_counter() - started})

    def _keep(
        self, name: str, image: Image.Image, original: str, picture: Picture, about: dict[str, Any]
    ) -> dict[str, Any]:
        about["bpp"] = 8 * about["bytes"] / (image.width * image.height)
        about["metrics"] = {"psnr": psnr(image, picture.image)}
        self._results.put(name, Result(image, original, about), _weight(image))
        return {"picture": name, **about}

    # --- judging --------------------------------------------------------------------------------------------------

    def judge(self, names: Sequence[Any], tell: Tell, check: Check) -> None:
        """Measure results with what takes longer; a metric that fails is told and left out from then on.

        Args:
            names: Ids of results; others are passed over.
            tell: Is told each value.
            check: Called before each.
        """
        for metric in list(self.judges.names):
            for name in names:
                result = self._results.get(name) if isinstance(name, str) else None
                original = None if result is None else self._pictures.get(result.picture)
                if result is None or original is None:
                    continue
                values = result.about["metrics"]
                if original.image.width * original.image.height > JUDGED:
                    values[metric] = None
                    limit = f"{JUDGED / 1e6:.0f} million pixels"
                    tell({"event": "advice", "text": f"SSIMULACRA 2 and LPIPS are measured for pictures up to {limit}"})
                elif metric not in values:
                    check()
                    tell({"event": "status", "text": "measuring"})
                    try:
                        values[metric] = self.judges.measure(metric, result.image, original.image)
                    except GicError as error:
                        self.judges.names.remove(metric)
                        tell({"event": "advice", "text": str(error)})
                        break
                tell({"event": "value", "picture": name, "metric": metric, "value": values[metric]})

    def _name(self, *parts: str) -> str:
        """The id of something: the same for the same thing, and nobody can guess it."""
        return hashlib.blake2b("\n".join(parts).encode(), key=self._secret, digest_size=16).hexdigest()


def _weight(image: Image.Image) -> int:
    return 3 * image.width * image.height


def _progress(what: str, tell: Tell, check: Check) -> Callable[[int, int], None]:
    """What tells the tiles of a large picture, and ends the work that nobody waits for."""

    def report(done: int, total: int) -> None:
        if done < total:
            check()
            tell({"event": "status", "text": what, "done": done, "of": total})

    return report
