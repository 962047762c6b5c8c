"""The page of the demo: a section a job, everything escaped, nothing requested from anywhere else."""

import html
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import mmattn
from mmattn.cli.credits import Credit
from mmattn.cli.scene_jobs import MODEL as SCENE_MODEL
from mmattn.cli.studio import Job, Shot
from mmattn.cli.word_jobs import MODEL as WORD_MODEL

_POLICY = "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'"

_COMMAND = "Command line"

_SIZES = {"B": 1, "KB": 1000, "MB": 1000**2}


def page(jobs: Sequence[Job], *, folder: Path, model: str, credits: Sequence[Credit]) -> str:
    """Return the gallery as a whole HTML document.

    Parameters
    ----------
    jobs
        In order.
    folder
        Where their pictures lie, for the size of each.
    model
        What drew the photographs.
    credits
        One for each photo or scene that is shown.

    """
    style = files("mmattn.cli").joinpath("gallery.css").read_text(encoding="utf-8")
    links = "\n".join(f'<a href="#{_attr(job.key)}">{_text(job.title)}</a>' for job in jobs)
    sections = "\n".join(_section(job, folder) for job in jobs)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>What {_text(model)} looked at</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="kicker">mmattn {_text(mmattn.__version__)}</p>
<h1>What a vision model looked at</h1>
<p class="lead">Every picture here was drawn by <code>mmattn demo</code> from attention that was captured while a
model ran: <code>{_text(model)}</code> on photographs, <code>{SCENE_MODEL}</code> on composed scenes, and
<code>{WORD_MODEL}</code> on scenes and sentences. Commands and Python lines work in this folder.</p>
<nav aria-label="Sections">
{links}
<a href="#pictures">Pictures</a>
</nav>
</header>
<main>
{sections}
{_credits(credits)}
</main>
</body>
</html>
"""


def _section(job: Job, folder: Path) -> str:
    shots = "\n".join(_figure(shot, folder, alt=f"{job.title}: {shot.caption}") for shot in job.shots)
    opened = "".join(
        f'<li><a href="{_href(file)}">{_text(Path(file).name)}</a> <span>{_size(folder / file)}</span></li>'
        for file in job.files
    )
    return f"""<section id="{_attr(job.key)}" class="{_attr(job.layout)}">
<h2>{_text(job.title)}</h2>
<p class="sentence">{_text(job.sentence)}</p>
<div class="shots">
{shots}
</div>
<div class="lines">
{_code(_COMMAND, chr(10).join(job.commands)) if job.commands else ""}
{_code("Python", job.python)}
{f'<ul class="files">{opened}</ul>' if opened else ""}
</div>
</section>"""


def _figure(shot: Shot, folder: Path, *, alt: str) -> str:
    width, height = _picture_size(folder / shot.file)
    size = f' width="{width}" height="{height}"' if width else ""
    return f"""<figure>
<a href="{_href(shot.file)}"><img src="{_href(shot.file)}"{size} loading="lazy" alt="{_attr(alt)}"></a>
<figcaption>{_text(shot.caption)}</figcaption>
</figure>"""


def _code(title: str, lines: str) -> str:
    keep = _words if title == _COMMAND else _text
    spans = "".join(f'<span class="line">{keep(line)}</span>' for line in lines.split("\n"))
    return f'<div class="code"><h3>{_text(title)}</h3><pre><code>{spans}</code></pre></div>'


def _words(line: str) -> str:
    """Return a command whose words stay whole: browsers break lines at the hyphens of options."""
    return " ".join(f"<kbd>{_text(word)}</kbd>" for word in line.split(" "))


def _credits(credits: Sequence[Credit]) -> str:
    rows = "\n".join(
        f'<tr><td><a href="{_href(f"{credit.folder}/{credit.file}")}">{_text(credit.file)}</a></td>'
        f"<td>{_text(credit.what)}</td><td>{_text(credit.author)}</td><td>{_license(credit)}</td></tr>"
        for credit in credits
    )
    return f"""<section id="pictures">
<h2>Photographs and scenes</h2>
<p class="sentence">All are free to use and pass on; those under a CC BY licence ask for their author's name, those
under MIT for its notice.</p>
<div class="table"><table>
<thead><tr><th>File</th><th>What</th><th>Author</th><th>Licence</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
</section>"""


def _license(credit: Credit) -> str:
    name = _text(credit.license)
    return f'<a href="{_attr(credit.url)}" rel="noreferrer">{name}</a>' if credit.url else name


def _picture_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels, so that the page does not jump while it loads; zeros for SVG."""
    if path.suffix == ".svg":
        return 0, 0
    from PIL import Image

    with Image.open(path) as image:
        return image.size


def _size(path: Path) -> str:
    count = path.stat().st_size
    unit, step = next((unit, step) for unit, step in reversed(_SIZES.items()) if count >= step or step == 1)
    return f"{count / step:.1f} {unit}" if step == _SIZES["MB"] else f"{count / step:.0f} {unit}"


def _href(file: str) -> str:
    return _attr(quote(file))


def _text(text: str) -> str:
    return html.escape(text, quote=False)


def _attr(text: str) -> str:
    return html.escape(text, quote=True)
