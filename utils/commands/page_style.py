"""The result page's frame and style sheet: light and dark, from a phone's width on, without anything from a network."""

import html

STYLE = """
:root { color-scheme: light dark; --text: #222; --soft: #555; --back: #fff; --line: #ddd; --fill: #f3f6f9;
  --own: #0072b2; --before: #999; --up: #11702f; --down: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e4e4; --soft: #aaa; --back: #16181c; --line: #3a3d44;
  --fill: #23262c; --own: #4aa8e0; --before: #8a8a8a; --up: #6cc788; --down: #f2857c; } }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--back);
  margin: 1rem auto; max-width: 72rem; padding: 0 1rem; }
h1, h3, p, .keys td + td { overflow-wrap: anywhere; }
h1 { margin: 1rem 0 .3rem; } h3 { margin: 1.4rem 0 .4rem; font-size: 1rem; }
h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
.verdict { font-size: 1.35rem; line-height: 1.3; margin: .3rem 0 .6rem; font-weight: 600; }
.facts { color: var(--soft); margin: .2rem 0; } .facts b { color: var(--text); font-weight: 600; }
.note { color: var(--soft); max-width: 48rem; } .warn { color: var(--down); font-weight: 600; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .12rem 0 .12rem .7rem; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; padding-left: 0; white-space: normal; }
.scroll { overflow-x: auto; }
.iou { width: 100%; max-width: 46rem; } .iou tr, .shares tr { border-bottom: 1px solid var(--line); }
.means td { font-weight: 600; background: var(--fill); }
.iou td:last-child { width: 40%; }
.own { background: var(--own); height: .45rem; } .before { background: var(--before); height: .2rem; }
.up { color: var(--up); } .down { color: var(--down); }
.shares { width: 100%; max-width: 46rem; }
.confusion { font-size: .8rem; } .confusion td { padding: .1rem .3rem; min-width: 1.9rem; text-align: center; }
.confusion th { font-weight: 400; padding: .1rem .3rem; text-align: center; vertical-align: bottom; }
.confusion td:first-child { text-align: right; white-space: nowrap; position: sticky; left: 0;
  background: var(--back); padding-right: .6rem; }
.confusion th span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; }
.confusion .much { color: #fff; }
.keys :is(td, th) { text-align: left; white-space: normal; vertical-align: top; }
.curves { display: grid; gap: 1.6rem 2.5rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.curves table { font-size: .85rem; }
svg text { font-size: 11px; fill: var(--soft); } svg path { stroke: var(--line); }
svg polyline { fill: none; stroke-width: 1.5; stroke-linejoin: round; }
@media (prefers-color-scheme: dark) { svg :is(polyline, circle), .curves i { filter: brightness(1.5); } }
.panels { display: grid; gap: .7rem; grid-template-columns: repeat(4, 1fr); }
figure { margin: 0; min-width: 0; } figcaption { color: var(--soft); font-size: .85rem; }
figcaption b { color: var(--text); font-size: .95rem; }
img, svg { width: 100%; height: auto; display: block; }
.enlarge { cursor: zoom-in; display: block; } .enlarge input { position: absolute; opacity: 0; }
.enlarge input:focus-visible + img { outline: 3px solid var(--own); }
.enlarge input:checked + img { position: fixed; inset: 0; width: 100vw; height: 100vh; object-fit: contain;
  background: #000; z-index: 9; cursor: zoom-out; }
i { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; vertical-align: -.08rem;
  box-shadow: 0 0 0 1px #8886; }
.legend { list-style: none; margin: 0; padding: .4rem 0; position: sticky; top: 0; background: var(--back);
  display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .8rem; z-index: 1; }
pre { overflow-x: auto; background: var(--fill); padding: .7rem; }
@media (max-width: 40rem) {
  .panels { grid-template-columns: repeat(2, 1fr); } td, th { padding-left: .5rem; }
  .iou :is(td, th):last-child { display: none; } .iou td:first-child, .shares td:first-child { width: 100%; }
  .shares { font-size: .85rem; } .shares th { white-space: normal; vertical-align: bottom; }
  .legend { position: static; } .verdict { font-size: 1.15rem; } .keys { font-size: .85rem; } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML file; ``title`` is text, ``body`` HTML."""
    name = html.escape(title)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return f'<!doctype html><html lang="en">{head}<title>{name}</title><style>{STYLE}</style>{body}</html>\n'
