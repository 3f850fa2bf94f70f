"""Which files are images, by their names: those that Pillow opens, but no videos, documents, icons or measurements."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, features

_JPEG_2000 = {".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
# Suffixes that other programs find in image folders, too: written images have one of them.
COMMON_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"})
SUFFIXES = COMMON_SUFFIXES.union(
    {".jpe", ".jfif", ".mpo", ".apng", ".dib", ".pbm", ".pnm", ".tga", ".qoi"},
    _JPEG_2000 if features.check("jpg_2000") else (),
    {".avif"} if features.check("avif") else (),
)
_PLUGIN_SUFFIXES = frozenset({".heic", ".heif", ".avif", ".jxl"})  # images once a plugin for Pillow is imported


def is_image_file(file: Path) -> bool:
    """Tell by its name whether a file of an image folder is an image; hidden files ("._a.jpg" of macOS) are not."""
    suffix = file.suffix.lower()
    is_image = suffix in SUFFIXES or (suffix in _PLUGIN_SUFFIXES and suffix in Image.EXTENSION)
    return is_image and not file.name.startswith(".")
