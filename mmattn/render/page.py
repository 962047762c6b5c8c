"""Drawing -> one static HTML file that holds everything: the picture as data, title and caption as text.

No script, no request to anywhere, every word escaped; readable in the light and in the dark.
"""

import base64
import html
from dataclasses import replace

from mmattn.render import raster
from mmattn.render.drawing import Drawing, described
from mmattn.render.fonts import clean

_PNG_PX = 1_500_000  # larger pictures go in as JPEG, a fifth of the size

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --ink: #1c1c20; --soft: #5f5f68; --card: #fff; --line: #e4e4e8; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17171a; --ink: #ececf0; --soft: #a4a4ae; --card: #fff; --line: #2c2c32; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: min(96vw, 80rem); margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0 0 1.25rem; overflow-wrap: anywhere; }
figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; }
figcaption { margin-top: 1rem; max-width: 72ch; color: var(--soft); font-size: .95rem; overflow-wrap: anywhere; }
"""


def encode(drawing: Drawing, *, width_px: int | None = None) -> bytes:
    """Return the drawing as a whole HTML document in UTF-8."""
    words = described(drawing)
    title, caption = _safe(words["title"]), _safe(words["caption"])
    bare = replace(drawing, title="", caption="")
    heading = f"<h1>{title}</h1>" if drawing.title or any(panel.title for panel in drawing.panels) else ""
    image = picture(bare, alternative=f"{words['title']}. {words['caption']}", width_px=width_px)
    document = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{heading}
<figure>
{image}
<figcaption>{caption}</figcaption>
</figure>
</main>
</body>
</html>
"""
    return document.encode("utf-8")


def fragment(drawing: Drawing, *, most_px: int) -> str:
    """Return the drawing as one `<img>` for a notebook."""
    words = described(drawing)
    width = raster.width_at_most(drawing, most_px)
    return picture(drawing, alternative=f"{words['title']}. {words['caption']}", width_px=width)


def picture(drawing: Drawing, *, alternative: str, width_px: int | None = None) -> str:
    """Return an `<img>` that carries the drawing's pixels in itself."""
    pixels = raster.render(drawing, width_px=width_px)
    height, width = pixels.shape[:2]
    suffix, kind = ("png", "png") if width * height <= _PNG_PX else ("jpg", "jpeg")
    data = base64.b64encode(raster.encode_pixels(pixels, suffix)).decode("ascii")
    alt = _safe(alternative)
    return f'<img src="data:image/{kind};base64,{data}" width="{width}" height="{height}" alt="{alt}">'


def _safe(text: str) -> str:
    return html.escape(clean(text), quote=True)
