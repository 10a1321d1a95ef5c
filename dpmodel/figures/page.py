"""A web page in one file: light and dark style, no scripts, nothing to download."""

from __future__ import annotations

from html import escape

from dpmodel.figures.style import ROLES

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --panel: #f6f8fa; --good: #1a7f37; --bad: #cf222e; %(light)s }
@media (prefers-color-scheme: dark) {
  :root { --page: #0d1117; --panel: #161b22; --good: #3fb950; --bad: #f85149; %(dark)s }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; }
p { margin: .5rem 0; max-width: 46rem; }
.lead { font-size: 1.1rem; }
.muted, figcaption, footer { color: var(--muted); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.5rem 0 0;
  padding: 0; list-style: none; }
.facts li { background: var(--panel); border-radius: .5rem; padding: .7rem .9rem; }
.facts b { display: block; font-size: 1.25rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
.facts span { color: var(--muted); font-size: .85rem; }
.wide { overflow-x: auto; border: 1px solid var(--grid); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
th { color: var(--muted); font-weight: 600; background: var(--panel); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; color: var(--ink); font-weight: 600; }
thead th { white-space: normal; }
tr:last-child td { border-bottom: 0; }
.higher { color: var(--good); font-weight: 600; }
.lower { color: var(--bad); font-weight: 600; }
.warning { border-left: .3rem solid var(--bad); background: var(--panel); padding: .7rem 1rem; border-radius: .3rem; }
figure { margin: 0 0 2rem; border: 1px solid var(--grid); border-radius: .5rem; padding: 1rem; }
figcaption { font-size: .9rem; margin-top: .5rem; }
svg { display: block; width: 100%%; max-width: 62rem; margin: 0 auto; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
details { margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--panel); border-radius: .5rem; padding: .9rem 1rem; overflow-x: auto; font-size: .85rem;
line-height: 1.4; } code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
li { margin: .3rem 0; max-width: 52rem; }
footer { margin-top: 3rem; font-size: .85rem; border-top: 1px solid var(--grid); padding-top: 1rem; }
@media print { details { display: block; } }
"""


def web_page(title: str, body: str) -> str:
    """A complete HTML document.

    Args:
        title: Plain text.
        body: HTML of the page.

    Example:
        >>> web_page("A & B", "<p>text</p>").splitlines()[4]
        '<title>A &amp; B</title>'
    """
    light = " ".join(f"--{role}: {colours[0]};" for role, colours in ROLES.items())
    dark = " ".join(f"--{role}: {colours[1]};" for role, colours in ROLES.items())
    head = [
        "<!doctype html>",
        '<html lang="en">',
        '<head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        # Without an icon, browsers request one from the server.
        '<link rel="icon" href="data:,">',
        f"<style>{_STYLE % {'light': light, 'dark': dark}}</style>",
        "</head>",
    ]
    return "\n".join([*head, f"<body><main>\n{body}\n</main></body>", "</html>", ""])
