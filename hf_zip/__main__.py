"""`python -m hf_zip` is `hf-zip`."""

from hf_zip.cli import main

main()
