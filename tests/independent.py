"""A second decoder of symbols, written from docs/format.md in plain Python: it shares no code with gic."""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from functools import cache, partial

from torch import Tensor

Grid = list[list[list[int]]]


class Coder:
    """Section 3."""

    def __init__(self, code: bytes, size: int | None = None) -> None:
        size = len(code) if size is None else size
        head = size if size <= 5 else 5 if size % 2 else 4
        self.ended = len(code) < head
        """Whether a word is needed that a code which is cut has not."""
        self.cut = len(code) < size
        self.state = int.from_bytes(code[:head], "big") if code else 2**16
        self.words = [int.from_bytes(code[i : i + 2], "big") for i in range(head, len(code) - self.cut, 2)]

    def take(self, start: int, count: int) -> None:
        self.state = count * (self.state // 2**16) + self.state % 2**16 - start
        if self.state < 2**24 and self.words:
            self.state = self.state * 2**16 + self.words.pop(0)
        elif self.state < 2**24:
            self.ended = self.cut

    def event(self, starts: list[int]) -> int:
        slot = self.state % 2**16
        index = max(i for i, start in enumerate(starts) if start <= slot)
        self.take(starts[index], [*starts, 2**16][index + 1] - starts[index])
        return index

    def number(self, bits: int) -> int:
        value = self.state % 2**16 >> (16 - bits)
        self.take(value << (16 - bits), 1 << (16 - bits))
        return value

    def symbols(self, tables: list[tuple[int, int, list[int]]]) -> list[int]:
        events = [self.event(starts) for _, _, starts in tables]
        symbols = []
        for event, (low, size, _) in zip(events, tables, strict=True):
            if event < size:
                symbols.append(low + event)
                continue
            n, below = divmod(self.number(6), 2)
            distance = 2**n
            while n > 0:
                bits = min(n, 16)
                n -= bits
                distance += self.number(bits) << n
            symbols.append(low - distance if below else low + size - 1 + distance)
        assert self.state == 2**16 and not self.words
        return symbols

    def first_symbols(self, tables: list[tuple[int, int, list[int]]]) -> list[int | None]:
        """Of a code that is cut: those that it tells, None for those outside their table."""
        found: list[int | None] = []
        for low, size, starts in tables:
            if self.ended:
                break
            event = self.event(starts)
            found.append(low + event if event < size else None)
        return found


def table(low: int, size: int, f: Callable[[int], float]) -> tuple[int, int, list[int]]:
    starts, highest = [], 0
    for i in range(size + 1):
        highest = max(highest, math.floor((f(low + i) - f(low)) * (2**16 - size - 1) + 0.5))
        starts.append(i + highest)
    return low, size, starts


def tables_of_z(weights: Mapping[str, Tensor]) -> list[tuple[int, int, list[int]]]:
    """Section 4."""
    prior = {n.split("prior_z.")[1]: p.double().tolist() for n, p in weights.items() if "prior_z." in n}
    layers = sum(name.startswith("matrices") for name in prior)

    def logit(channel: int, v: float) -> float:
        values = [v]
        for layer in range(layers):
            matrix, biases, out = prior[f"matrices.{layer}"][channel], prior[f"biases.{layer}"][channel], []
            for row, (bias,) in zip(matrix, biases, strict=True):
                out.append(bias + sum(math.log1p(math.exp(m)) * x for m, x in zip(row, values, strict=True)))
            if layer < layers - 1:
                factors = [row[0] for row in prior[f"factors.{layer}"][channel]]
                out = [x + math.tanh(a) * math.tanh(x) for x, a in zip(out, factors, strict=True)]
            values = out
        return values[0]

    found = []
    for c in range(len(prior["matrices.0"])):
        numbers = range(-2048, 2049)
        low = max(-2048, bisect_right(numbers, -11, key=partial(lambda c, k: logit(c, k - 0.5), c)) - 2049)
        high = min(2048, bisect_left(numbers, 11, key=partial(lambda c, k: logit(c, k + 0.5), c)) - 2048)

        def f(k: int, c: int = c) -> float:
            return 1 / (1 + math.exp(-logit(c, k - 0.5)))

        found.append(table(low, max(high, low) - low + 1, f))
    return found


def groups(first: int, count: int) -> list[int]:
    """Section 5: group of each detail channel, of ``count`` from channel ``first`` on."""

    def rank(place: tuple[int, int, int]) -> tuple[float, bool]:
        colour, u, v = place
        return (3 if colour else 1) * math.sqrt((u + 0.5) ** 2 + (v + 0.5) ** 2), place == (0, 10, 10)

    places = sorted(((c, u, v) for c in range(3) for u in range(16) for v in range(16)), key=rank)
    keys = []
    for colour, u, v in places[first : first + count]:
        a, b = 2 * u + 1, 2 * v + 1
        keys.append((colour, math.floor(math.log2(a * a + b * b)) + 1, 0 if a >= 2 * b else 2 if b >= 2 * a else 1))
    return [sorted(set(keys)).index(key) for key in keys]


def importance(channels: int) -> list[list[int]]:
    """Of each channel of the lapped transform at the 16 places of a block of means."""

    def rank(place: tuple[int, int, int]) -> tuple[float, bool]:
        colour, u, v = place
        return (3 if colour else 1) * math.sqrt((u + 0.5) ** 2 + (v + 0.5) ** 2), place == (0, 10, 10)

    places = sorted(((c, u, v) for c in range(3) for u in range(16) for v in range(16)), key=rank)
    numbers = []
    for colour, u, v in places[:channels]:
        at = [(r, c, 24) for r in range(4) for c in range(4)] if u == v == 0 else [(u, v, 0)] * 16
        whole = [(((2 * a + 1) ** 2 + (2 * b + 1) ** 2) ** 6, less) for a, b, less in at]
        numbers.append([math.floor(math.log2(s)) - less + (0, 9, 17)[colour] for s, less in whole])
    return numbers


@cache
def thirds(j: int, away: bool, laplace: bool) -> tuple[tuple[int, int, list[int]], int]:
    """Table of d, from mu outwards, and the value of an element, in tenths of an octave."""
    scale = scale_of(j, laplace)
    t = math.exp(-math.sqrt(2) / scale)
    if away:
        p = [x / (1 + t + t * t) for x in (1, t, t * t)]
        variance = p[1] + 4 * p[2] - (p[1] + 2 * p[2]) ** 2
    else:
        side = (t**0.5 - t**1.5) / 2 / (1 - t**1.5)
        p = [side, 1 - 2 * side, side]
        variance = 2 * side * (0.5 + scale / math.sqrt(2) - t / (1 - t)) ** 2
    entropy = -sum(x * math.log2(max(x, 2**-60)) for x in p)
    edges = [0, p[0], p[0] + p[1], 1]
    return table(-1, 3, lambda k: edges[k + 1]), math.floor(10 * math.log2(variance / entropy) + 0.5)


def refine(
    chunks: list[tuple[int, int, int, bytes, int]],
    levels: int,
    log_sigma: list[int],
    weight: list[int],
    y: list[int],
    level: list[int],
    laplace: bool,
) -> tuple[list[int], list[int]]:
    """Symbols of y and their levels with the chunks of a tile; ``level`` are those of ``y``."""
    for number in range(levels):
        finer = [value - 1623 for value in level]
        coded = [i for i, value in enumerate(log_sigma) if value >= finer[i] - 4288]
        known = {i for i in coded if log_sigma[i] >= level[i] - 4288}
        scale = [number_of(value - finer[i], laplace) for i, value in enumerate(log_sigma)]
        order = sorted(coded, key=lambda i: (-(thirds(scale[i], y[i] != 0, laplace)[1] + weight[i]), i))
        tables = [
            thirds(scale[i], y[i] != 0, laplace)[0] if i in known else table_of_y(scale[i], 0.0, False, laplace)
            for i in order
        ]
        new: dict[int, int] = {}
        at = 0
        for of_level, _, count, code, size in chunks:
            if of_level == number:
                own = slice(at, at + count)
                coder = Coder(code, size)
                found: list[int | None] = [*(coder.first_symbols if coder.cut else coder.symbols)(tables[own])]
                for i, event in zip(order[own], found, strict=False):
                    if event is not None:
                        new[i] = 3 * y[i] + (-event if y[i] < 0 else event)
                at += count
        if len(new) < len(order):
            return [new.get(i, k) for i, k in enumerate(y)], [finer[i] if i in new else level[i] for i in range(len(y))]
        y, level = [new.get(i, 0) for i in range(len(y))], finer
    return y, level


def prior(weights: Mapping[str, Tensor], z: Grid, m: int) -> Grid:
    """Section 5: mu in units of 2^-11 of the M channels, then L of all."""

    def convolve(x: Grid, name: str, bits: int, limit: int, gains: list[float], out_limit: int) -> Grid:
        kernel, bias = weights[f"{name}.weight"].double().tolist(), weights[f"{name}.bias"].double().tolist()
        height, width = len(x[0]), len(x[0][0])
        result = []
        for o, gain in enumerate(gains):
            w = [kernel[o][i][r][c] * gain for i in range(len(x)) for r in range(3) for c in range(3)]
            largest = max(map(abs, w))
            e = min(20 - (math.frexp(largest)[1] if largest else 0), 40 - bits)
            while True:
                whole = [math.floor(math.ldexp(value, e) + 0.5) for value in w]
                s = e + bits
                b = math.floor(math.ldexp(bias[o] * gain, s) + 0.5) + (2 ** (s - 1) if s > 0 else 0)
                if limit * sum(map(abs, whole)) + abs(b) < 2**53:
                    break
                e -= 1
            rows = []
            for r in range(height):
                row = []
                for c in range(width):
                    total, n = b, 0
                    for i in range(len(x)):
                        for dr in (-1, 0, 1):
                            for dc in (-1, 0, 1):
                                if 0 <= r + dr < height and 0 <= c + dc < width:
                                    total += whole[n] * x[i][r + dr][c + dc]
                                n += 1
                    total = total >> s if s >= 0 else total << -s
                    row.append(min(max(total, -out_limit), out_limit))
                rows.append(row)
            result.append(rows)
        return result

    def shuffle(x: Grid) -> Grid:
        """Pixel shuffle by 2 and ReLU."""
        return [
            [
                [max(0, x[4 * c + 2 * (r % 2) + k % 2][r // 2][k // 2]) for k in range(2 * len(x[0][0]))]
                for r in range(2 * len(x[0]))
            ]
            for c in range(len(x) // 4)
        ]

    n = len(z)
    x = [[[min(max(value, -(2**15)), 2**15) for value in row] for row in rows] for rows in z]
    x = shuffle(convolve(x, "compressor.h_s.0.0", 0, 2**15, [2.0**12] * 4 * n, 2**26))
    x = shuffle(convolve(x, "compressor.h_s.2.0", 12, 2**26, [2.0**12] * 4 * n, 2**26))
    log2_e = float.fromhex("0x1.71547652b82fep+0")
    gains = [2.0**11] * m + [1024 * log2_e] * (len(weights["compressor.h_s.4.bias"]) - m)
    out = convolve(x, "compressor.h_s.4", 12, 2**26, gains, 2**24)
    detail = weights["compressor.detail"].double().tolist() if "compressor.detail" in weights else []
    shifts = [math.floor(value * (1024 * log2_e) + 0.5) for value in detail]
    return out[: 2 * m] + [
        [[value + shift for value in row] for row in out[2 * m + group]]
        for group, shift in zip(groups(m, len(detail)), shifts, strict=True)
    ]


def philox(seed: int, tile: int, count: int) -> list[int]:
    """Section 6: ``count`` bytes of Philox4x64-10 (Salmon et al. 2011)."""
    out = b""
    mask = 2**64 - 1
    for n in range(1, count // 32 + 2):
        x, k = [n, 0, 0, tile], [seed, 0]
        for turn in range(10):
            if turn:
                k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
            a, b = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
            x = [(b >> 64) ^ x[1] ^ k[0], b & mask, (a >> 64) ^ x[3] ^ k[1], a & mask]
        out += b"".join(word.to_bytes(8, "little") for word in x)
    return list(out[:count])


def number_of(ratio: int, laplace: bool) -> int:
    """j of section 6 from L - code."""
    return min(max((ratio + (4320 if laplace else 3296)) // 64, 0), 195 if laplace else 179)


def scale_of(j: int, laplace: bool) -> float:
    return 2.0 ** ((64 * j - (4288 if laplace else 3264)) / 1024)


@cache
def table_of_y(j: int, u: float, dither: bool, laplace: bool) -> tuple[int, int, list[int]]:
    scale = scale_of(j, laplace)
    radius = max(1, math.floor((5.5 if laplace else 4.3) * scale + (1 if dither else 0.5)))

    def below(k: int) -> float:
        x = (k - 0.5 + u) / scale
        if laplace:
            tail = math.exp(-math.sqrt(2) * abs(x)) / 2
            return tail if x < 0 else 1 - tail
        return math.erfc(-x / math.sqrt(2)) / 2

    return table(-radius, 2 * radius + 1, below)


def decode(
    data: bytes, weights: Mapping[str, Tensor], highest: int = 8192, lapped: bool = False, laplace: bool = False
) -> list[tuple[list[int], list[int], list[int]]]:
    """Symbols of z and y of each tile and the levels of y, in the order of the shape.

    Args:
        data: The file; of a progressive one the first bytes suffice.
        weights: Of the model.
        highest: U of section 5.
        lapped: Whether the model has the lapped transform.
        laplace: Whether its configuration says ``prior: laplace``.
    """
    assert data[:4] in (b"GIC\1", b"GIC\2")
    progressive = data[3] == 2
    assert progressive or zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
    n, m = weights["compressor.h_s.0.0.weight"].shape[1], weights["compressor.g_s.layers.0.weight"].shape[1]
    flags, at = data[4], 11

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift += 7
            at += 1
            if data[at - 1] < 0x80:
                return value

    def number(size: int, signed: bool = False) -> int:
        nonlocal at
        at += size
        return int.from_bytes(data[at - size : at], "little", signed=signed)

    width, height = varint(), varint()
    level = number(2, signed=True)
    seed = number(4) if flags & 1 else 0
    tile = 64 * varint() if flags & 2 else 2**18
    if flags & 4:
        size = varint()
        at += size
    boxes = [
        (x // 64, y // 64, min(tile, width - x), min(tile, height - y))
        for y in range(0, height, tile)
        for x in range(0, width, tile)
    ]
    of_levels = [varint() for _ in range(number(1))] if progressive else []
    columns = -(-width // 64)
    regions = bytes(columns * -(-height // 64))
    if flags & 32:
        size = varint()
        regions = zlib.decompress(data[at : at + size], -15)
        at += size
    sizes = [varint() for _ in range(2 * len(boxes) - (not progressive))]
    if not progressive:
        sizes.append(len(data) - 4 - at - sum(sizes))
    parts = []
    for size in sizes:
        parts.append(data[at : at + size])
        at += size

    chunks = []
    if progressive:
        crc = zlib.crc32(data[:at])
        assert crc == number(4)
        ends = [at + sum(of_levels[: i + 1]) for i in range(len(of_levels))]
        while at < len(data):
            begin, which = at, sum(end <= at for end in ends)
            try:
                chunk = (varint() if flags & 2 else 0, varint(), varint())
            except IndexError:
                break
            code = data[at : at + chunk[2]]
            at += chunk[2]
            crc = zlib.crc32(data[begin:at], crc)
            chunks.append((which, chunk[0], chunk[1], code, chunk[2]))
            if at + 2 <= len(data):
                assert crc % 2**16 == int.from_bytes(data[at : at + 2], "little")
            at += 2
        level += 1623 * len(of_levels)

    found = []
    per_channel = tables_of_z(weights)
    for index, (left, top, w, h) in enumerate(boxes):
        w, h = -(-w // 64), -(-h // 64)
        z = Coder(parts[2 * index]).symbols([per_channel[c] for c in range(n) for _ in range(h * w)])
        grid = [[z[(c * h + r) * w : (c * h + r + 1) * w] for r in range(h)] for c in range(n)]
        log_sigma = [value for rows in prior(weights, grid, m)[m:] for row in rows for value in row]
        log_sigma = [min(max(value, -4426), highest) for value in log_sigma]
        offsets = [byte % 16 for byte in philox(seed, index, len(log_sigma))]
        own_blocks = [regions[(top + r // 4) * columns + left + c // 4] for r in range(4 * h) for c in range(4 * w)]
        levels = [level + 256 * block for block in own_blocks] * (len(log_sigma) // len(own_blocks))
        coded, tables = [], []
        for i, value in enumerate(log_sigma):
            if value >= levels[i] - (3261 if flags & 1 else 4288):
                j = number_of(value - levels[i], laplace)
                u = (offsets[i] + 0.5) / 16 - 0.5 if flags & 1 else 0.0
                coded.append(i)
                tables.append(table_of_y(j, u, bool(flags & 1), laplace))
        y = [0] * len(log_sigma)
        for i, symbol in zip(coded, Coder(parts[2 * index + 1]).symbols(tables), strict=True):
            y[i] = symbol
        numbers = importance(len(y) // (16 * h * w)) if lapped else [[0] * 16] * (len(y) // (16 * h * w))
        weight = [n[4 * (r % 4) + c % 4] for n in numbers for r in range(4 * h) for c in range(4 * w)]
        own = [chunk for chunk in chunks if chunk[1] == index]
        found.append((z, *refine(own, len(of_levels), log_sigma, weight, y, levels, laplace)))
    return found
