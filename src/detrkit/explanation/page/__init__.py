"""The page: one HTML file that shows an explanation in a browser, without a server or network.

The file holds the image, the detections and quantized attention. What fits into its size is chosen in `plans`; the
page says in words what was left out.
"""

from __future__ import annotations

from detrkit.explanation.page.build import MAX_MEGABYTES, page_html, save_page

__all__ = ["MAX_MEGABYTES", "page_html", "save_page"]
