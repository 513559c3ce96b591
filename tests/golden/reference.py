"""Inputs and weights of the reference cases: every array depends only on its name and shape.

The released code made the reference numbers in the JSON files from these arrays.
"""

import zlib

import numpy as np


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Parameter or buffer ``name`` ("encoder." or "decoder." + official key): float32."""
    g = generator(name)
    if name.endswith("running_var"):
        values = g.uniform(0.5, 1.5, shape)
    elif name.endswith(("running_mean", "bias")):
        values = 0.1 * g.standard_normal(shape)
    elif len(shape) == 1:
        values = g.uniform(0.5, 1.0, shape)
    else:
        values = g.standard_normal(shape) * np.sqrt(1.0 / np.prod(shape[1:]))
    return values.astype(np.float32)


def image(name: str, n: int, h: int, w: int) -> np.ndarray:
    return generator(name).standard_normal((n, 3, h, w)).astype(np.float32)


def labels(name: str, n: int, h: int, w: int, classes: int) -> np.ndarray:
    """Blocks of 8x8 train ids with an ignored border of 4, int64 (n, h, w)."""
    blocks = generator(name).integers(0, classes, (n, -(-h // 8), -(-w // 8)))
    full = blocks.repeat(8, 1).repeat(8, 2)[:, :h, :w].astype(np.int64)
    full[:, :4] = full[:, -4:] = 255
    full[:, :, :4] = full[:, :, -4:] = 255
    return full


def logits(name: str, n: int, classes: int, h: int, w: int, scale: float) -> np.ndarray:
    """Blocky logits, so that squares agree in part: float32 (n, classes, h, w)."""
    g = generator(name)
    coarse = g.standard_normal((n, classes, -(-h // 6), -(-w // 6))) * scale
    fine = g.standard_normal((n, classes, h, w))
    return (coarse.repeat(6, 2).repeat(6, 3)[:, :, :h, :w] + fine).astype(np.float32)


def valid(n: int, h: int, w: int, padded: bool) -> np.ndarray:
    """bool (n, h, w), False in a band at the right and bottom if ``padded``."""
    mask = np.ones((n, h, w), bool)
    if padded:
        mask[:, h - 13 :] = False
        mask[:, :, w - 10 :] = False
    return mask


def prior(name: str, classes: int) -> np.ndarray:
    """Long-tailed class histogram, float32 (classes,)."""
    values = generator(name).dirichlet(np.full(classes, 0.3)) + 1e-5
    return (values / values.sum()).astype(np.float32)


def spatial_prior(name: str, classes: int, h: int, w: int) -> np.ndarray:
    """float32 (classes, h, w), sums to 1 over the classes."""
    values = generator(name).gamma(0.5, size=(classes, h, w)) + 1e-3
    return (values / values.sum(0, keepdims=True)).astype(np.float32)
