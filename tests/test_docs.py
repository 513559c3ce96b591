"""The documents: no dead link, no name of something that is gone, and a first page that stays one page."""

import re
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from dataset.labels import CITYSCAPES
from utils.commands.__main__ import COMMANDS, OF_RUN_SH
from utils.config.values import KEYS

ROOT = next(folder for folder in Path(__file__).parents if (folder / "run.sh").is_file())
# What a working copy may hold beside the project; tests/data is a room, so only the top level counts.
FOREIGN = {".git", ".pytest_cache", ".venv", "runs", "data", "pretrained"}
ROOMS = ("utils", "dataset", "models", "tests")
WRITTEN_BY_THE_READER = {"cfgs/own.yaml"}
MAX_LINES, MAX_BYTES = 230, 14 * 1024  # of the first page


def documents() -> list[Path]:
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    own = (path for path in found if path.parts[0] not in FOREIGN)
    return sorted(path for path in own if not any((ROOT / folder / "pyvenv.cfg").is_file() for folder in path.parents))


DOCUMENTS = documents()


def text_of(document: Path) -> str:
    """Without the blocks of code."""
    return re.sub(r"^```.*?^```$", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)


def blocks(document: Path, language: str) -> list[str]:
    """The blocks of code in a language, as ``python`` or ``sh``."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """GitHub's names of the headings: lower case, no punctuation, spaces as hyphens; a repeated one is numbered."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#+ (.+)$", text_of(document), re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def links(document: Path) -> list[str]:
    """Targets of links and pictures, in Markdown and in HTML, that point into the project."""
    text = text_of(document)
    targets = re.findall(r"\]\(([^()\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def listed(document: Path) -> Iterator[tuple[str, str]]:
    """(names of files and folders, what they are for): the rows of tables that begin with ``file`` or ``room``."""
    inside = False
    for line in text_of(document).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif inside and not cells[0].startswith("--"):
            yield cells[0], cells[1]
        inside = inside or cells[:1] in (["file"], ["room"])


def names(document: Path) -> list[str]:
    return [name for cell, _ in listed(document) for name in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_to_files_and_headings(document):
    for target in links(document):
        path, _, anchor = target.partition("#")
        aim = (ROOT / document.parent / path).resolve() if path else ROOT / document
        assert aim.exists() and ROOT in (aim, *aim.parents), f"{document}: no {target}"
        if anchor:
            assert anchor in anchors(aim.relative_to(ROOT)), f"{document}: no heading {target}"


def test_links_are_found():
    assert {".github/demo.png", ".github/method.svg", "LICENSE.md"} <= set(links(Path("README.md")))
    assert any("#" in target for target in links(Path("README.md")))


def test_first_page_is_one_page():
    page = (ROOT / "README.md").read_bytes()
    assert page.count(b"\n") < MAX_LINES and len(page) < MAX_BYTES


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if names(d)], ids=str)
def test_files_and_rooms_of_a_table_exist(document):
    for name in names(document):
        assert list((ROOT / document.parent).glob(name)), f"{document} lists {name}, which is not there"


def test_map_names_every_room_and_nothing_else():
    cells = " ".join(f"{cell} {what}" for cell, what in listed(Path("README.md")))
    named = {name for name in re.findall(r"`([\w./]+)`", cells) if "/" in name}
    missing = [name for name in named if not (ROOT / name).exists()]
    assert named and not missing
    rooms = {path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    alone = {"utils"}  # its own files have lines of their own
    assert {str(room) for room in rooms} <= {name.rstrip("/") for name in named} | alone


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_commands_exist(document):
    text = (ROOT / document).read_text()
    for name in re.findall(r"\brun\.sh\s([a-z][\w.]*)", text):
        assert name in (*COMMANDS, *OF_RUN_SH) or (ROOT / name).is_file(), f"{document}: sh run.sh {name}"
    for module in re.findall(r"\bpython -m ([\w.]+)", text):
        assert find_spec(module), f"{document}: python -m {module}"
    for config in set(re.findall(r"\bcfgs/[\w/]+\.yaml", text)) - WRITTEN_BY_THE_READER:
        assert (ROOT / config).is_file(), f"{document}: no {config}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_keys_exist(document):
    groups = "|".join(sorted({key.split(".")[0] for key in KEYS if "." in key}))
    code = " ".join(re.findall(r"`([^`]+)`", text_of(document)))
    named = set(re.findall(rf"(?<![\w./])((?:{groups})\.[a-z_]+)\b(?!\.)", code))
    unknown = {name for name in named - KEYS.keys() if not name.endswith((".txt", ".py", ".pth"))}
    assert not unknown, f"{document}: no key {unknown}"


def test_train_ids_are_in_the_order_of_the_code():
    assert ", ".join(CITYSCAPES.names) in " ".join((ROOT / "dataset/README.md").read_text().split())
