"""Figures of the experiments as pictures that follow the page from light to dark, on their own and without script."""

from __future__ import annotations

import base64
import re

DARK = {  # what a colour of the figures becomes on dark ground
    "#0a6a72": "#52c7c7", "#96600a": "#e3ae55", "#7a4fb0": "#bb9bec", "#9c3568": "#ea8bb8", "#66707b": "#a1abb5",
    "#cfe6e4": "#1f3d3f", "#8fc4c5": "#2d6467", "#59626c": "#a3adb6", "#1a1d21": "#e9e8e4", "#ffffff": "#1a1e22",
}  # fmt: skip
INK = "#1a1d21"  # text without a colour of its own


def themed(svg: str) -> str:
    """The figure with each known colour a variable, which a dark screen sets to another; print stays light.

    A picture keeps its own style within the page: it is shown as an image, where nothing in it can run.
    """
    light = "".join(f"--{colour[1:]}:{colour};" for colour in DARK)
    dark = "".join(f"--{colour[1:]}:{shown};" for colour, shown in DARK.items())
    style = (
        f"<style>svg{{{light}}}text{{fill:var(--{INK[1:]})}}"
        f"@media screen and (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    )
    coloured = re.sub("|".join(DARK), lambda match: f"var(--{match[0][1:]})", svg)
    return re.sub(r"(<svg\b[^>]*>)", lambda match: match[1] + style, coloured, count=1)


def data_uri(image: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
