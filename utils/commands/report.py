"""``sh run.sh report CONFIG [--baseline RUN]``: one HTML file about a run, in its folder.

Verdict, scores, class shares without labels, curves, images with pseudo-labels, configuration. The page needs nothing
from a network.
"""

import argparse
import html
from collections.abc import Mapping, Sequence
from os.path import expanduser

from dataset.program import exit_after
from utils.config.command_line import make_parser, parse_arguments, parse_config
from utils.config.declare import ConfigError
from utils.config.schema import Config

IMAGES = 100  # of each domain at most
STYLE = """
:root { color-scheme: light dark; --soft: #555; --back: #fff; --line: #ddd; }
@media (prefers-color-scheme: dark) { :root { --soft: #aaa; --back: #16181c; --line: #3a3d44; }
  svg :is(polyline, circle), .curves i { filter: brightness(1.5); } }
body { font: 15px/1.45 system-ui, sans-serif; background: var(--back); margin: 1rem auto; max-width: 72rem;
  padding: 0 1rem; }
h1, h3, p { overflow-wrap: anywhere; } h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line); }
.verdict { font-size: 1.35rem; font-weight: 600; } .warning { color: #d55e00; font-weight: 600; }
.note, .facts, figcaption { color: var(--soft); } pre { overflow-x: auto; }
.curves { display: grid; gap: 1.6rem 2.5rem; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.curves p { margin: 0; font-size: .85rem; }
i { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; }
svg text { font-size: 11px; fill: var(--soft); text-anchor: end; } svg path { stroke: var(--line); }
svg polyline { fill: none; stroke-width: 1.5; }
.panels { display: grid; gap: .7rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
figure { margin: 0; } figcaption { font-size: .85rem; } img { max-width: 100%; height: auto; }
.enlarge { cursor: zoom-in; } .enlarge input { position: absolute; opacity: 0; }
.enlarge input:focus-visible + img { outline: 3px solid; }
.enlarge input:checked + img { position: fixed; inset: 0; width: 100vw; height: 100vh; object-fit: contain;
  background: #000; cursor: zoom-out; }
"""


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Config]:
    """The ``baseline``, and how many ``images`` of each domain are looked at; the configuration of the run."""
    parser = make_parser(__doc__, "sh run.sh report")
    parser.add_argument(
        "--baseline", type=expanduser, help="run folder to compare with; default: the run that it started from"
    )
    parser.add_argument("--images", type=int, default=IMAGES, help="of each domain at most, where labels are not used")
    args = parse_arguments(parser, argv)
    if args.images < 1:
        raise ConfigError(f"command line: --images must be at least 1, got {args.images}")
    return args, parse_config(args, "evaluate")


def page(title: str, sections: Mapping[str, str]) -> str:
    """A whole HTML file; ``title`` is text, ``sections`` are HTML by title, the first one without any."""
    name = html.escape(title)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    body = [
        f"<section>{f'<h2>{title}</h2>' if title else ''}{content}</section>" for title, content in sections.items()
    ]
    text = "\n".join([f"<title>{name}</title><style>{STYLE}</style><h1>{name}</h1>", *body])
    return f'<!doctype html><html lang="en">{head}{text}</html>\n'


def main(argv: Sequence[str] | None = None) -> None:
    args, config = parse(argv)
    from utils.commands.report_sections import sections  # torch, once the command line is known to be right

    path = config.run_folder / "report.html"
    path.write_text(page(config.exp_name, sections(config, args.baseline, args.images)))
    print(path)


if __name__ == "__main__":
    exit_after(main)
