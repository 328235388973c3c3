"""Keep cards of merges as they are published, rendered from their reports.

    python scripts/model_cards.py                              # render all of them again
    python scripts/model_cards.py --check                      # fail if one is out of date
    python scripts/model_cards.py --add demo_output/merged --name digits

`model_cards/NAME` holds the report, the card and the pictures that a push of the merge to
`user/NAME` uploads, without weights. The template is `hf_zip/templates/model_card.md`.
"""

import argparse
from pathlib import Path

from hf_zip.drawing import PICTURES, pictures
from hf_zip.record import published_texts
from hf_zip.report import REPORT_NAME, Report, read
from hf_zip.save import write_file

CARDS = Path(__file__).parent.parent / "model_cards"
CARD = "README.md"


def main() -> None:
    """Renders, checks or adds cards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--add", type=Path, metavar="MERGE", help="folder of a merge")
    parser.add_argument("--name", help="what to call its card")
    arguments = parser.parse_args()
    if (arguments.add is None) != (arguments.name is None):
        parser.error("--add and --name belong together")
    if arguments.add:
        write(CARDS / arguments.name, read(arguments.add))
        return
    folders = sorted(path.parent for path in CARDS.glob(f"*/{REPORT_NAME}"))
    stale = [folder.name for folder in folders if not is_fresh(folder)]
    if arguments.check and stale:
        raise SystemExit(f"{', '.join(stale)} out of date; run python scripts/model_cards.py")
    for folder in () if arguments.check else folders:
        write(folder, read(folder))


def is_fresh(folder: Path) -> bool:
    """Tells whether the card in a folder is what its report renders to, with its pictures."""
    names = [path.name for path in folder.glob(PICTURES)]
    return (folder / CARD).read_text(encoding="utf-8") == texts(folder, read(folder), names)[CARD]


def write(folder: Path, report: Report) -> None:
    """Writes report, card and pictures; pictures of an earlier report are removed."""
    drawn = pictures(report)
    folder.mkdir(parents=True, exist_ok=True)
    contents: dict[str, str | bytes] = {**texts(folder, report, [*drawn]), **drawn}
    for name, content in contents.items():
        write_file(folder / name, content)
    for path in folder.glob(PICTURES):
        if path.name not in drawn:
            path.unlink()


def texts(folder: Path, report: Report, names: list[str]) -> dict[str, str]:
    """Returns report and card by their names, as they are published."""
    found = published_texts(report, f"user/{folder.name}", beside=names)
    return {name: found[name] for name in (REPORT_NAME, CARD)}


if __name__ == "__main__":
    main()
