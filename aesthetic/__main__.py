"""python -m aesthetic: the command line."""

import sys

if __name__ == "__main__":
    try:
        from .cli.main import main  # which takes long enough for Ctrl-C

        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
