"""A report as HTML in one file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from hwnas.files import write_atomically


def write_page(path: Path, title: str, sections: Sequence[str]) -> Path:
    """Write a page of these pieces of HTML, atomically; empty ones are left out. Returns ``path``."""
    body = "\n".join(filter(None, sections))
    write_atomically(path, _PAGE.format(title=html.escape(title), body=body).encode())
    return path


def section(title: str, body: str) -> str:
    """HTML under a heading, or under none where ``title`` is empty."""
    return f"<section>{f'<h2>{html.escape(title)}</h2>' if title else ''}{body}</section>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; }}
h3 {{ font-size: 1rem; margin: 1rem 0 .3rem; font-weight: 600; }}
table {{ border-collapse: collapse; }} th {{ text-align: left; padding-right: .8rem; font-weight: 600; }}
td {{ padding: .15rem .8rem .15rem 0; vertical-align: top; overflow-wrap: anywhere; }}
td.n {{ font-variant-numeric: tabular-nums; white-space: nowrap; }} td.w {{ width: 16rem; }}
.bar {{ background: #0072B2; height: .8rem; margin-top: .3rem; }}
svg, img {{ max-width: 100%; height: auto; }} figure {{ margin: 0 0 1rem; }}
figcaption {{ color: #666; font-size: .85rem; }}
summary {{ cursor: pointer; margin-top: 1rem; }} details td.n {{ white-space: normal; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""
