"""``python -m wsi_pgdips`` is the command ``wsi-pgdips``."""

from wsi_pgdips.cli import main

if __name__ == "__main__":
    main()
