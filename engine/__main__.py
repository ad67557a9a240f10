"""``python -m engine`` is the console script ``engine``."""

import sys

from engine.cli import main

if __name__ == "__main__":
    sys.argv[0] = "engine"  # so that the completion script is installed for a command that exists
    main()
