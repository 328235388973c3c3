"""Write the generated tables of README.md: methods, options, supported models, a family's table.

python scripts/readme_tables.py          # refresh them
python scripts/readme_tables.py --check  # fail if they are out of date
"""

import argparse
import re
from pathlib import Path

from hf_zip.catalogue import adapters_table, classes_table, methods_table, table_example

README = Path(__file__).parent.parent / "README.md"


def main() -> None:
    """Refreshes or checks the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    fresh = refreshed(text)
    if check and fresh != text:
        raise SystemExit("README.md is out of date; run python scripts/readme_tables.py")
    if not check:
        README.write_text(fresh, encoding="utf-8")


def refreshed(text: str) -> str:
    """Returns the README with every generated table as it should be."""
    tables = {
        "methods": methods_table(),
        "adapters": adapters_table(),
        "classes": classes_table(),
        "table": table_example(),
    }
    for name, table in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(\n\n|\Z)"
        if not re.search(pattern, text, flags=re.DOTALL):
            raise SystemExit(f"README.md has no '<!-- {name} -->' to put a table under")
        text = re.sub(pattern, rf"\g<1>{table}\g<2>", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    main()
