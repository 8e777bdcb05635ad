"""`python -m dcr2ad.cli`: the command without its script."""

from dcr2ad.cli import main

main()
