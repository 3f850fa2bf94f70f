"""Deterministic weight / input filler (numpy only; no torch, no third-party model code).

Every number below is defined by integer arithmetic (crc32 + splitmix64) followed by a few IEEE
double operations and ONE rounding to float32, so it can be re-created bit for bit in any language.
The prose definition is in README.md ("Filler formula").
"""

import math
import re
import zlib

import numpy as np

GAMMA = 0x9E3779B97F4A7C15
MASK64 = (1 << 64) - 1
_CHUNK = 1 << 16


def _mix_int(z):
    z &= MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
    return z ^ (z >> 31)


def key_state(key):
    """64-bit stream state of a key string: mix64(crc32(utf8(key)) + GAMMA)."""
    return _mix_int(zlib.crc32(key.encode("utf-8")) + GAMMA)


def words(key, n):
    """uint64[n]; word i (i = 0 .. n-1) = mix64(state + (i + 1) * GAMMA mod 2**64)."""
    out = np.empty(n, np.uint64)
    s = np.uint64(key_state(key))
    g = np.uint64(GAMMA)
    with np.errstate(over="ignore"):
        for a in range(0, n, _CHUNK):
            b = min(n, a + _CHUNK)
            z = np.arange(a + 1, b + 1, dtype=np.uint64)
            z *= g
            z += s
            z ^= z >> np.uint64(30)
            z *= np.uint64(0xBF58476D1CE4E5B9)
            z ^= z >> np.uint64(27)
            z *= np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
            out[a:b] = z
    return out


def uniform(key, shape):
    """float64 in [0, 1): (word >> 11) * 2**-53, C order."""
    n = int(np.prod(shape, dtype=np.int64))
    return ((words(key, n) >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def normal(key, shape):
    """float64, mean 0, variance 1 (Irwin-Hall of the four 16-bit chunks of the word), |x| < 3.47.

    x = ((w & 0xFFFF) + ((w >> 16) & 0xFFFF) + ((w >> 32) & 0xFFFF) + (w >> 48) - 131070) / 37837.0
    """
    n = int(np.prod(shape, dtype=np.int64))
    w = words(key, n)
    m = np.uint64(0xFFFF)
    t = (w & m) + ((w >> np.uint64(16)) & m) + ((w >> np.uint64(32)) & m) + (w >> np.uint64(48))
    return ((t.astype(np.int64) - 131070).astype(np.float64) / 37837.0).reshape(shape)


# direction (x, y) of head h = 0..7 in the sampling_offsets bias
DIRS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))


def fill(name, shape, salt=""):
    """float32 array for the state-dict entry `name` of shape `shape`; the first matching rule wins."""
    shape = tuple(int(v) for v in shape)
    key = name if not salt else salt + "/" + name
    nd = len(shape)
    fan_in = int(np.prod(shape[1:], dtype=np.int64)) if nd >= 2 else 0

    def n(mean, std):  # std may be an array that broadcasts to `shape`
        return (mean + std * normal(key, shape)).astype(np.float32)

    def lin(gain):
        return n(0.0, gain / math.sqrt(fan_in))

    if name.endswith("num_batches_tracked"):  # R0
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):  # R1
        return (0.75 + 0.5 * uniform(key, shape)).astype(np.float32)
    if name.endswith("running_mean"):  # R2
        return n(0.0, 0.1)
    if name == "query_pos" or re.search(r"(row_embed|col_embed)(\.weight)?$", name):  # R3
        return uniform(key, shape).astype(np.float32)
    if "backbone" in name:
        if nd == 4:  # R4  convolutions
            return n(0.0, math.sqrt(2.0 / fan_in))
        if name.endswith("bn3.weight"):  # R5
            return n(0.3, 0.05)
        if name.endswith(".weight"):  # R6
            return n(1.0, 0.1)
        if name.endswith("bn3.bias"):  # R7
            return n(-0.1, 0.1)
        if name.endswith("downsample.1.bias"):  # R8
            return n(0.0, 0.1)
        return n(-0.5, 0.1)  # R9  bn1.bias, bn2.bias
    if name.endswith("sampling_offsets.bias"):  # R10
        levels = shape[0] // 64  # 8 heads x levels x 4 points x 2
        base = np.empty((8, levels, 4, 2), np.float64)
        for h in range(8):
            for p in range(4):
                base[h, :, p, 0] = DIRS[h][0] * (p + 1)
                base[h, :, p, 1] = DIRS[h][1] * (p + 1)
        return n(base.reshape(shape), 0.25)
    if name.endswith("sampling_offsets.weight"):  # R11
        return n(0.0, 0.04)
    if re.search(r"class_embed\.\d+\.bias$", name):  # R12 sigmoid/focal heads
        return n(-4.5, 0.5)
    if name.endswith(("class_embed.bias", "linear_class.bias")):  # R13 softmax heads
        return n(0.0, 0.5)
    if re.search(r"(class_embed(\.\d+)?|linear_class)\.weight$", name):  # R14
        return lin(1.0)
    if re.search(r"bbox_embed(\.\d+)?\.layers\.2\.bias$", name):  # R15
        return n(np.array([0.0, 0.0, -0.25, -0.25]), 0.1)
    if re.search(r"bbox_embed\.\d+\.layers\.2\.weight$", name):  # R16 (indexed heads)
        return lin(0.5)
    if re.search(r"bbox_embed(\.\d+)?\.layers\.\d\.weight$", name):  # R17
        return lin(1.4)
    if name.endswith(("query_embed.weight", "level_embed")):  # R18
        return n(0.0, 1.0)
    if nd == 1 and name.endswith(".weight"):  # R19 layer / group norms
        return n(1.0, 0.1)
    if nd == 1:  # R20 every other bias
        return n(0.0, 0.05)
    if name.endswith("mask_head.lay1.weight"):  # R21
        g = np.where(np.arange(shape[1]) < 256, 1.0, 100.0)[None, :, None, None]
        return n(0.0, g * math.sqrt(2.0 / fan_in))
    if "mask_head.adapter" in name:  # R22
        return lin(0.3)
    if "mask_head" in name:  # R23
        return n(0.0, math.sqrt(2.0 / fan_in))
    if name.endswith(("q_linear.weight", "k_linear.weight")):  # R24
        return lin(3.0)
    if name == "conv.weight":  # R25 (demo model)
        return lin(3.0)
    if nd == 4:  # R26 input_proj
        return lin(0.6)
    if name.endswith("in_proj_weight"):  # R27 q and k rows larger
        v = 1.5 if "multihead_attn" in name else 0.5
        g = np.where(np.arange(shape[0]) < 2 * shape[0] // 3, 2.5, v)[:, None]
        return n(0.0, g / math.sqrt(fan_in))
    if name.endswith("multihead_attn.out_proj.weight"):  # R28 decoder cross-attention
        return lin(1.4)
    if name.endswith(("out_proj.weight", "linear2.weight")):  # R29
        return lin(0.6)
    if name.endswith("linear1.weight"):  # R30
        return lin(0.5)
    return lin(1.0)  # R31


def canonical(name, shared_heads=False):
    """Name under which an entry is filled when several state-dict entries share one tensor.

    Two-stage / box-refine models list their heads twice -> the top-level name counts.
    Without box refinement (shared_heads=True) all class_embed.k / bbox_embed.k are one tensor -> k = 0.
    """
    name = re.sub(r"^(.*\.)?transformer\.decoder\.(bbox_embed|class_embed)\.", r"\2.", name)
    if shared_heads:
        name = re.sub(r"^(bbox_embed|class_embed)\.\d+\.", r"\1.0.", name)
    return name


def image(key, h, w, salt=""):
    """float32 [3, h, w]: 32x32-pixel blocks + half-amplitude white noise."""
    key = "image/" + key
    if salt:
        key = salt + "/" + key
    hc, wc = -(-h // 32), -(-w // 32)
    c = normal(key + "/coarse", (3, hc, wc))
    c = np.repeat(np.repeat(c, 32, 1), 32, 2)[:, :h, :w]
    return (c + 0.5 * normal(key + "/fine", (3, h, w))).astype(np.float32)
